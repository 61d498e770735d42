"""From an ONNX model to a captured network that was compared with the model's own runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from microtome.errors import ModelError, OptionError
from microtome.graph.capture import capture
from microtome.graph.network import INPUT
from microtome.graph.quantizers import quantizers
from microtome.models.base import SIDE, Loaded, Wanted, on_device, shape_of, wish_of
from microtome.models.foreign.check import BatchError, Reference, onnx_reference, same_outputs
from microtome.models.foreign.layout import MOST_CHANNELS, channels_last
from microtome.models.foreign.module import Graphed, missing, unknown
from microtome.models.foreign.names import identifier
from microtome.models.foreign.patterns import put_together
from microtome.models.foreign.steps import Graph, read_graph
from microtome.models.foreign.tidy import tidied

if TYPE_CHECKING:
    from microtome.graph.network import Network

QUANTIZED = "quantized"  # the state in which methods that quantize leave a network


def network_of(model: Any, path: Path, wanted: Wanted, *, reference: tuple[Reference, str] | None = None) -> Loaded:
    """Translate, capture and check a model.

    Args:
        model: an ONNX model, with all of its weights.
        path: of its file, for its own runtime and for errors.
        wanted: how the model is wanted.
        reference: what to compare with, and its name; None is what runs the file at `path`.

    Raises:
        ModelError: an operator has no translation, or the outputs differ from the file's own runtime.
        OptionError: the shape does not fit, or there is none.
        CaptureError: see `capture`.
    """
    graph = put_together(read_graph(model))
    if lacking := missing(graph):
        raise unknown(lacking)
    last_in, last_out = channels_last(graph)
    module = Graphed(graph, last_in=last_in, last_out=last_out)
    shapes = _shapes(graph, last_in, wanted, path)
    pairs = {identifier(name): (name, name in last_in) for name in graph.inputs}
    if len(pairs) == 1:
        pairs[INPUT] = next(iter(pairs.values()))
    run, runtime = reference or onnx_reference(path, model, pairs, frozenset(last_out))
    network = _captured(module, shapes, wanted)
    rounded = any(True for _ in quantizers(network))
    checked = (run, runtime, rounded)
    try:
        network, said = _checked(network, module, checked)
    except BatchError:  # sizes in the file are those of one image
        module.any_batch = False
        network, said = _checked(_captured(module, shapes, wanted), module, checked)
    notes = [said]
    notes += [f"{path.name} has channels last; the network takes and gives them first."] if last_in or last_out else []
    count = sum(1 for _ in quantizers(network))
    notes += [f"{path.name} is quantized: its {count} grids are taken as they are."] if count else []
    state = frozenset({QUANTIZED}) if count else network.state
    network = replace(network, notes=(*network.notes, *notes), state=state)
    return Loaded(on_device(network, wanted.device), wanted.pipeline, path.stem, (), network.notes)


def plain_module(model: Any, shape: tuple[int, ...]) -> torch.nn.Module:
    """Return a model of one input as a module that can be captured, its parameters made for an input of a shape."""
    graph = put_together(read_graph(model))
    if lacking := missing(graph):
        raise unknown(lacking)
    module = Graphed(graph)
    with torch.no_grad():
        module(torch.zeros(shape))
    return Single(module)


def _captured(module: Graphed, shapes: Mapping[str, tuple[int, ...]], wanted: Wanted) -> Network:
    """Run the module once, which makes its parameters, and capture it."""
    image = wanted.pipeline.input if wanted.pipeline is not None else None
    with torch.no_grad():
        module(**{name: torch.zeros((1, *shape)) for name, shape in shapes.items()})
    if len(shapes) > 1 or image is not None:
        return capture(module, shapes, keep=wish_of(wanted))
    return capture(Single(module), next(iter(shapes.values())), keep=wish_of(wanted))


class Single(torch.nn.Module):
    """A graph of one input, as a module of one argument; a single output comes as a tensor."""

    def __init__(self, graph: Graphed) -> None:
        """Keep the graph's tensors as one's own, by their names."""
        super().__init__()
        vars(self)["run"] = graph  # not as a part of this module, whose tensors have the same names
        self._modules, self._parameters, self._buffers = graph._modules, graph._parameters, graph._buffers

    def forward(self, x: torch.Tensor) -> Any:
        """Run the graph."""
        outputs = vars(self)["run"](x)
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs


def _checked(network: Network, module: Graphed, how: tuple[Reference, str, bool]) -> tuple[Network, str]:
    reference, runtime, rounded = how
    network = tidied(network)
    names = {port.name: module.out_names.get(port.name, module.graph.outputs[0]) for port in network.outputs}
    return network, same_outputs(network, reference, names, runtime=runtime, rounded=rounded)


def _shapes(graph: Graph, last_in: tuple[str, ...], wanted: Wanted, path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each input without its batch, channels first."""
    if not graph.inputs:
        raise ModelError(f"{path} takes no input.", "Export it again with the image as its input.")
    image = wanted.pipeline.input if wanted.pipeline is not None else None
    found = {}
    for place, (name, sizes) in enumerate(graph.inputs.items()):
        own = list(sizes[1:])
        if name in last_in:
            own = [own[-1], *own[:-1]]
        is_image = identifier(name) == image if image is not None else place == 0
        found[identifier(name)] = _settled(own, wanted, path) if is_image else tuple(n or 1 for n in own)
    return found


def _settled(own: list[int | None], wanted: Wanted, path: Path) -> tuple[int, ...]:
    """Return the image's shape: what the file fixes, and else what is asked for."""
    if len(own) not in (3, 4):
        raise ModelError(
            f"{path} takes an input of {len(own) + 1} axes, and an image has (N, C, H, W) or (N, C, D, H, W).",
            "microtome compresses networks of images and volumes.",
        )
    fixed = tuple(n for n in own if n is not None)
    asked = wanted.input_shape or wanted.pipeline is not None or wanted.guess is not None
    known = tuple(n or SIDE for n in own) if own[0] is not None and (len(fixed) == len(own) or not asked) else None
    if known is not None and len(fixed) == len(own) and wanted.input_shape is None:
        shape = known
        given = wanted.pipeline.input_shape if wanted.pipeline is not None else None
        if given is not None and given != known:
            shape = given
    else:
        shape = shape_of(wanted, of=str(path), known=known)
    fits = len(shape) == len(own) and all(n in (None, m) for n, m in zip(own, shape, strict=True))
    if own[0] is not None and own[0] > MOST_CHANNELS and own[-1] is not None and own[-1] <= MOST_CHANNELS:
        raise ModelError(
            f"{path} takes inputs of {'×'.join(str(n or 'any') for n in own)}: whether the channels are its first or "
            "its last axis cannot be told.",
            "Export it with channels first, (N, C, *spatial).",
        )
    if not fits:
        takes = "×".join("any" if n is None else str(n) for n in own)
        raise OptionError(
            f"{path} takes inputs of {takes}, not {'×'.join(map(str, shape))}.",
            "Set 'size' or 'patch' in the pipeline, or --input-shape, to what it takes; or export it with free sizes.",
        )
    return shape
