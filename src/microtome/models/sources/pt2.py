"""A `.pt2` file, ours or anybody's, with `pipeline.json` beside it if there is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from microtome.errors import OptionError, ReadError
from microtome.models.base import Loaded, Wanted, on_device, wish_of, with_image_first

if TYPE_CHECKING:
    from microtome.graph.network import Network
    from microtome.models.base import Given
    from microtome.types import Port

NAME = "pt2"
LOOKS_LIKE = "a .pt2 file"


def matches(source: Given) -> bool:
    """Whether it is called so."""
    path = Path(str(source))
    return path.suffix == ".pt2" and not path.is_dir()


def load(source: Given, wanted: Wanted) -> Loaded:
    """Read the graph, and the pipeline beside it."""
    path = Path(str(source))
    return load_file(path, wanted, path.stem)


def load_file(path: Path, wanted: Wanted, title: str, *, content: bytes | None = None) -> Loaded:
    """Read a `.pt2` file, and the pipeline beside it; see `load_model`. `content` is the file's, where it is coded."""
    from microtome.graph import pt2
    from microtome.medical.pipeline import Pipeline

    if wanted.weights is not None:
        raise OptionError(f"{path} has its own weights.", "Leave --weights out.")
    if not path.is_file():
        raise ReadError(f"{path} does not exist.", f"Give {LOOKS_LIKE}, a MONAI bundle folder, or a package folder.")
    beside = path.with_name("pipeline.json")
    pipeline, files = wanted.pipeline, [path]
    if pipeline is None and beside.is_file():
        pipeline = Pipeline.from_json(_text(beside))
        files.append(beside)
    network = pt2.load(path, keep=wish_of(replace(wanted, pipeline=pipeline)), content=content)
    network = with_image_first(network, pipeline, str(path))
    network = _with_shape(network, wanted.input_shape or (pipeline.input_shape if pipeline else None), path)
    return Loaded(on_device(network, wanted.device), pipeline, title, tuple(files), network.notes)


def _with_shape(network: Network, shape: tuple[int, ...] | None, path: Path) -> Network:
    """Return the network for images of another size, where its graph allows that."""
    import torch

    from microtome.graph.quiet import first_line

    if shape is None or shape == network.shape:
        return network
    free = len(shape) == len(network.shape) and all(
        n == own or dynamic for n, own, dynamic in zip(shape, network.shape, network.dynamic[1:], strict=True)
    )
    image = network.inputs[0]
    network = replace(network, inputs=tuple(_resized(port, image, shape) for port in network.inputs))
    try:
        if not free:
            raise ValueError("its size is fixed")
        with torch.no_grad():
            network(network.blank())
    except Exception as error:
        raise OptionError(
            f"{path} takes inputs of shape {_times(image.shape)}, not {_times(shape)} ({first_line(error)}).",
            "Set 'size' or 'patch' in the pipeline to what it takes, or capture the network again with --input-shape.",
        ) from error
    return network


def _resized(port: Port, image: Port, shape: tuple[int, ...]) -> Port:
    """Return an input for images of another shape: the image's, and others with its axes of space."""
    if port is image:
        return replace(port, shape=shape)
    return replace(port, shape=(*port.shape[:1], *shape[1:])) if port.shape[1:] == image.shape[1:] else port


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ReadError(f"{path} cannot be read ({error}).", "Copy it again.") from error


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(str(n) for n in shape)
