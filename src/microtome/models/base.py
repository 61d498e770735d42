"""What every source of models offers, and what most of them share."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from microtome.errors import OptionError

if TYPE_CHECKING:
    from torch import nn

    from microtome.graph.network import Network
    from microtome.graph.scores import Wish
    from microtome.medical.pipeline import Pipeline
    from microtome.models.bundles.declared import Step

    Given = str | Path | nn.Module  # what names a model: text or a path as on the command line, or a module

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
SIDE = 64  # of the example, where neither the user nor the pipeline says a size: most networks take it


@dataclass(frozen=True)
class Part:
    """What is meant of a model that holds several networks, or whose network has several outputs.

    Attributes:
        fold: of nnU-Net: one or several, as `0` or `0,1,2`; `all` is the fold of that name. None takes what the path
            says, or all folds that are there.
        configuration: of nnU-Net, such as `3d_fullres`.
        output: name of the output with the scores, whatever the pipeline says.
        untrained: a MONAI bundle whose weights are missing may have random ones, to be looked at.
    """

    fold: str | None = None
    configuration: str | None = None
    output: str | None = None
    untrained: bool = False


@dataclass(frozen=True)
class Wanted:
    """How a model is wanted, see `load_model`.

    Attributes:
        weights: a file, instead of the model's own.
        input_shape: (C, *S) to capture with.
        pipeline: instead of what is declared beside the model.
        device: where the network goes.
        guess: makes a pipeline to take the shape from where nothing else says it.
        task: what the network is for, where no pipeline says it.
        part: which fold, configuration or output is meant, where there are several.
    """

    weights: Path | None = None
    input_shape: tuple[int, ...] | None = None
    pipeline: Pipeline | None = None
    device: str = "cpu"
    guess: Callable[[], Pipeline] | None = None
    task: str | None = None
    part: Part = field(default_factory=Part)


@dataclass(frozen=True)
class Loaded:
    """A model and what is known about it.

    Attributes:
        network: captured, on the device that was asked for.
        pipeline: the one given, or else the one declared beside the model; None if unknown.
        title: what to call the model in a report.
        files: what it was read from; provenance hashes them.
        notes: what the user should know.
        steps: what became of each step of processing that the model declares, where it declares any.
        guessed: the pipeline is not known: what is used in its place is a guess from the cohort.
        trained_on: names of the cases that it was trained on, as their files have them; None if nothing says it.
    """

    network: Network
    pipeline: Pipeline | None
    title: str
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    guessed: bool = False
    trained_on: tuple[str, ...] | None = None


class Source(Protocol):
    """A source module: these names are what it must define; one of another package needs `load` alone."""

    NAME: str
    LOOKS_LIKE: str  # in a list of what can be given; empty where no text names it

    def matches(self, source: Given) -> bool:
        """Return whether this is how such a model looks, be it whole or not; nothing is loaded."""

    def load(self, source: Given, wanted: Wanted) -> Loaded:
        """Load and capture it; the errors are those of `load_model`."""


def captured(module: nn.Module, weights: Path | None, shape: tuple[int, ...], wanted: Wanted) -> Loaded:
    """Load weights into a module, which changes it, and capture it on the device that is wanted."""
    from microtome.graph.capture import capture
    from microtome.graph.plain import unwrapped
    from microtome.models.weights import apply_state, load_state

    module, notes = unwrapped(module)
    if weights is not None:
        notes += apply_state(module, load_state(weights), weights)
    if wanted.device != "cpu":
        module = module.to(wanted.device)
    network = capture(module, shapes_of(module, shape, wanted.pipeline), keep=wish_of(wanted))
    files = (weights,) if weights is not None else ()
    network = on_device(replace(network, notes=(*notes, *network.notes)), wanted.device)
    return Loaded(network, wanted.pipeline, type(module).__name__, files, network.notes)


def wish_of(wanted: Wanted) -> Wish:
    """Return what is known of the outputs that are wanted: their names, or what scores look like for the task."""
    from microtome.graph.scores import Wish
    from microtome.tasks import task

    pipeline = wanted.pipeline
    name = wanted.task if pipeline is None else pipeline.task
    kind = None if name is None else task(name)
    return Wish(
        wanted.part.output or (None if pipeline is None else pipeline.output),
        () if pipeline is None else pipeline.keep,
        None if kind is None else kind.MAPS,
        frozenset() if kind is None or pipeline is None else kind.outputs(pipeline),
    )


def shapes_of(
    module: nn.Module, shape: tuple[int, ...], pipeline: Pipeline | None
) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
    """Return the shapes to capture a module with: that of the image, or of all declared inputs by name.

    Args:
        module: the one parameter of its `forward` that the pipeline does not declare takes the image.
        shape: (C, *S) of the image.
        pipeline: may name the image's input, and declare others.

    Raises:
        OptionError: it is not clear which input takes the image.
    """
    if pipeline is None or not (pipeline.input or pipeline.apart):
        return shape
    others = {name: (channels, *(shape[1:] if spatial else ())) for name, channels, spatial in pipeline.apart}
    return {pipeline.input or _image_input(module, list(others)): shape} | others


def with_image_first(network: Network, pipeline: Pipeline | None, title: str) -> Network:
    """Return a network whose first input takes the image: the one that a pipeline names, or does not declare.

    Raises:
        OptionError: there is no such input.
    """
    from microtome.graph.program import image_first

    names = [port.name for port in network.inputs]
    if pipeline is None or not (pipeline.input or pipeline.apart):
        return network
    left = [name for name in names if name not in {name for name, _, _ in pipeline.apart}]
    image = pipeline.input or (left[0] if len(left) == 1 else None)
    if image not in names:
        what = "no input left" if image is None else f"no input {image!r}"
        raise OptionError(f"{title} has {what} for the image.", f"It takes {', '.join(names)}: set 'input'.")
    return image_first(network, image)


def _image_input(module: nn.Module, others: Sequence[str]) -> str:
    parameters = inspect.signature(module.forward).parameters.values()
    left = [one.name for one in parameters if one.default is one.empty and one.kind in NAMED and one.name not in others]
    if len(left) != 1:
        which = f"{', '.join(left)} are left" if left else "none is left"
        raise OptionError(
            f"which input of {type(module).__name__} takes the image is not clear: beside {', '.join(others)} {which}.",
            "Set 'input' in the pipeline, and declare all others under 'inputs'.",
        )
    return left[0]


def on_device(network: Network, device: str) -> Network:
    """Return the network on a device; the same one if it is there."""
    import torch

    return network if network.device.type == torch.device(device).type else network.to(device)


def shape_of(wanted: Wanted, *, of: str, known: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Return the shape to capture with: what is asked for, the pipeline's, what is known, or a guess, in this order.

    Args:
        wanted: with the pipeline that goes with the model.
        of: the model, for the error.
        known: (C, *S) that the model itself says.

    Raises:
        OptionError: nothing says it.
    """
    fixed = wanted.pipeline.input_shape if wanted.pipeline is not None else None
    pipeline = wanted.pipeline
    for shape in (wanted.input_shape, fixed, known):
        if shape is not None:
            return shape
    if pipeline is None and wanted.guess is not None:
        pipeline = wanted.guess()
    if pipeline is None:
        raise OptionError(
            f"The input shape of {of} is not known.",
            "Give --input-shape C,H,W (C,D,H,W for volumes), or a --pipeline that sets 'size' or 'patch'.",
        )
    return pipeline.input_shape or _free_shape(pipeline)


def _free_shape(pipeline: Pipeline) -> tuple[int, ...]:
    """Return a shape for a size that varies: 64, or more where the pipeline's multiple asks."""
    multiple = pipeline.divisible
    # Twice the multiple: a single voxel at the lowest level would be too few for instance normalization.
    side = max(math.ceil(SIDE / multiple) * multiple, 2 * multiple if multiple > 1 else 0)
    return (pipeline.network_channels, *(side,) * pipeline.network_dims)
