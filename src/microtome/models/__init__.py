"""Models in: from the user's code and weights, a `.pt2` file, a MONAI bundle or a package to a captured Network."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from microtome.errors import OptionError, ReadError
from microtome.graph import pt2
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.quiet import first_line, quiet
from microtome.medical.pipeline import Pipeline
from microtome.models.bundle import is_bundle, read_bundle
from microtome.models.factory import build, split_spec
from microtome.models.weights import apply_state, load_state

SIDE = 64  # of the example, where neither the user nor the pipeline says a size: most networks take it
FORMS = (
    "Give package.module:factory or path/to/file.py:factory (with --weights), a .pt2 file, a MONAI bundle folder, or a "
    "package folder that `compress` wrote."
)


@dataclass(frozen=True)
class Loaded:
    """A model and what is known about it.

    Attributes:
        network: captured, on the device that was asked for.
        pipeline: the one given, or else the one declared beside the model; None if unknown.
        title: what to call the model in a report.
        files: what it was read from; provenance hashes them.
        notes: what the user should know.
    """

    network: Network
    pipeline: Pipeline | None
    title: str
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def load_model(
    source: str | Path | nn.Module,
    *,
    weights: Path | None = None,
    input_shape: tuple[int, ...] | None = None,
    pipeline: Pipeline | None = None,
    device: str = "cpu",
) -> Loaded:
    """Load and capture a model.

    Args:
        source: a module; `package.module:factory` or `path/to/file.py:factory`; a `.pt2` file, with `pipeline.json`
            beside it if there is one; a MONAI bundle folder; a package folder.
        weights: for a module or factory: `.pt`, `.pth` or `.safetensors`; for a bundle instead of its own.
        input_shape: (C, *S) to capture with; None takes the pipeline's, or what a bundle says.
        pipeline: used instead of what is declared beside the model.
        device: where the network goes.

    Raises:
        ReadError: a file is missing, broken or of an unknown kind.
        WeightsError: the weights do not fit, or are not finite.
        ModelError: the user's code fails; the error names its line.
        CaptureError: torch.export cannot capture the network.
        OptionError: the input shape or the device is not known, or an option does not go with the source.
        MissingExtraError: a MONAI bundle without MONAI.
    """
    _check_device(device)
    weights = Path(weights) if weights is not None else None
    if isinstance(source, nn.Module):
        shape = _known(input_shape, _shape_of(pipeline), of=type(source).__name__)
        module = source
        if weights is not None or device != "cpu":  # what the caller passed stays as it is
            with quiet():
                module = copy.deepcopy(source)
        return _captured(module, weights, shape, pipeline, device)
    text = str(source)
    path = Path(text)
    spec = split_spec(text)
    if path.is_dir():
        if is_bundle(path):
            return _from_bundle(path, weights, input_shape, pipeline, device)
        if not (path / "network.pt2").is_file():
            kind = "a package without network.pt2" if (path / "result.json").is_file() else "no model"
            raise ReadError(f"The folder {path} is {kind}.", FORMS)
        return _from_pt2(path / "network.pt2", weights, input_shape, pipeline, device)
    if path.suffix == ".pt2":
        return _from_pt2(path, weights, input_shape, pipeline, device)
    if spec is None:
        raise _unknown_source(path)
    return _from_factory(spec, weights, input_shape, pipeline, device)


def _from_factory(
    spec: tuple[str, str],
    weights: Path | None,
    input_shape: tuple[int, ...] | None,
    pipeline: Pipeline | None,
    device: str,
) -> Loaded:
    place, name = spec
    if weights is not None and not weights.is_file():
        raise ReadError(f"The weights file {weights} does not exist.", "Give the file as --weights FILE.")
    module, file = build(place, name)
    shape = _known(input_shape, _shape_of(pipeline), of=f"{place}:{name}")
    loaded = _captured(module, weights, shape, pipeline, device)
    notes = () if weights else ("No weights file was given: the network has the weights that its own code gives it.",)
    files = (*((file,) if file else ()), *loaded.files)
    return replace(loaded, files=files, notes=(*notes, *loaded.notes))


def _from_pt2(
    path: Path,
    weights: Path | None,
    input_shape: tuple[int, ...] | None,
    pipeline: Pipeline | None,
    device: str,
) -> Loaded:
    if weights is not None:
        raise OptionError(f"{path} has its own weights.", "Leave --weights out.")
    if not path.is_file():
        raise ReadError(f"{path} does not exist.", FORMS)
    network = pt2.load(path)
    beside = path.with_name("pipeline.json")
    files = [path]
    if pipeline is None and beside.is_file():
        pipeline = Pipeline.from_json(_text(beside))
        files.append(beside)
    network = _with_shape(network, input_shape or (pipeline.input_shape if pipeline else None), path)
    title = path.parent.resolve().name if path.name == "network.pt2" else path.stem
    return Loaded(_on(network, device), pipeline, title, tuple(files), network.notes)


def _from_bundle(
    folder: Path,
    weights: Path | None,
    input_shape: tuple[int, ...] | None,
    pipeline: Pipeline | None,
    device: str,
) -> Loaded:
    bundle = read_bundle(folder)
    weights = weights or folder / "models" / "model.pt"
    if not weights.is_file():
        raise ReadError(
            f"The bundle has no {weights}.",
            "Download it whole (python -m monai.bundle download NAME), or give the file as --weights FILE.",
        )
    notes = bundle.notes if pipeline is None else ()
    pipeline = pipeline or bundle.pipeline
    fixed = pipeline.input_shape if pipeline else None
    shape = _known(input_shape, fixed, bundle.input_shape, _shape_of(pipeline), of=str(folder))
    loaded = _captured(bundle.module, weights, shape, pipeline, device)
    return replace(loaded, title=bundle.title, files=(*bundle.files, *loaded.files), notes=(*notes, *loaded.notes))


def _captured(
    module: nn.Module, weights: Path | None, shape: tuple[int, ...], pipeline: Pipeline | None, device: str
) -> Loaded:
    """Load the weights, go to the device and capture; `module` is changed where that is asked for."""
    if weights is not None:
        apply_state(module, load_state(weights), weights)
    if device != "cpu":
        module = module.to(device)
    network = capture(module, shape)
    files = (weights,) if weights is not None else ()
    return Loaded(_on(network, device), pipeline, type(module).__name__, files, network.notes)


def _on(network: Network, device: str) -> Network:
    return network if network.device.type == torch.device(device).type else network.to(device)


def _with_shape(network: Network, shape: tuple[int, ...] | None, path: Path) -> Network:
    """Return the network for inputs of another size, where its graph allows that."""
    if shape is None or shape == network.shape:
        return network
    free = len(shape) == len(network.shape) and all(
        n == own or dynamic for n, own, dynamic in zip(shape, network.shape, network.dynamic[1:], strict=True)
    )
    try:
        if not free:
            raise ValueError("its size is fixed")
        with torch.no_grad():
            network(torch.zeros((1, *shape), device=network.device))
    except Exception as error:
        raise OptionError(
            f"{path} takes inputs of shape {_times(network.shape)}, not {_times(shape)} ({first_line(error)}).",
            "Set 'size' or 'patch' in the pipeline to what it takes, or capture the network again with --input-shape.",
        ) from error
    return replace(network, shape=shape)


def _shape_of(pipeline: Pipeline | None) -> tuple[int, ...] | None:
    """Return the shape to capture with; a size that varies becomes 64, or more where the pipeline's multiple asks."""
    if pipeline is None or pipeline.input_shape is not None:
        return pipeline.input_shape if pipeline else None
    multiple = pipeline.divisible
    # Twice the multiple: a single voxel at the lowest level would be too few for instance normalization.
    side = max(math.ceil(SIDE / multiple) * multiple, 2 * multiple if multiple > 1 else 0)
    return (pipeline.channels, *(side,) * pipeline.spatial_dims)


def _known(*shapes: tuple[int, ...] | None, of: str) -> tuple[int, ...]:
    """Return the first shape that is not None."""
    for shape in shapes:
        if shape is not None:
            return shape
    raise OptionError(
        f"The input shape of {of} is not known.",
        "Give --input-shape C,H,W (C,D,H,W for volumes), or a --pipeline that sets 'size' or 'patch'.",
    )


def _unknown_source(path: Path) -> ReadError:
    if not path.exists():
        return ReadError(f"{path} is neither a file nor a folder nor module:factory.", FORMS)
    if path.suffix == ".py":
        return ReadError(f"{path} does not say what builds the network.", f"Name the function: {path}:factory.")
    if path.suffix in (".pt", ".pth", ".ckpt", ".safetensors"):
        return ReadError(
            f"{path} holds weights but no network.",
            f"Give the code that builds it, and the file as weights: file.py:factory --weights {path}",
        )
    return ReadError(f"{path} is no model that microtome reads.", FORMS)


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except Exception as error:  # torch raises several kinds
        raise OptionError(f"The device {device} cannot be used: {first_line(error)}.", "Use --device cpu.") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ReadError(f"{path} cannot be read ({first_line(error)}).", "Copy it again.") from error


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(str(n) for n in shape)
