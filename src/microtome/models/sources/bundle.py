"""MONAI bundle folders (MONAI Bundle Specification): network, weights, and what its metadata and configs declare."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import MissingExtraError, OptionError, ReadError
from microtome.graph.quiet import first_line, quiet
from microtome.models.base import Loaded, Wanted, captured, shape_of
from microtome.models.bundles.building import NETWORKS, build
from microtome.models.bundles.declared import Declared, disabled, kind_of, multiple_of, sizes_of, tables

if TYPE_CHECKING:
    from torch import nn

    from microtome.graph.network import Network
    from microtome.medical.pipeline import Pipeline
    from microtome.models.base import Given
    from microtome.models.bundles.translate import Translation

NAME = "bundle"
LOOKS_LIKE = "a MONAI bundle folder"
SUFFIXES = ("json", "yaml", "yml")
CONFIGS = tuple(f"{name}.{suffix}" for name in ("inference", "train") for suffix in SUFFIXES)
FREE_SIZE = 64  # for sizes that the metadata leaves free
UNTRAINED = "The bundle has no {}: the network has random weights, and only its shape means anything."


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds.

    Attributes:
        module: the network, with the weights that its definition gives it.
        translation: of the preprocessing, the inferer, the postprocessing and the metadata.
        input_shape: (C, *S) that the metadata names; free sizes are 64, or a multiple that they allow.
        title: its name.
        files: the configs that were read.
        weights: the file with its weights, be it there or not.
    """

    module: nn.Module
    translation: Translation
    input_shape: tuple[int, ...] | None
    title: str
    files: tuple[Path, ...]
    weights: Path


def matches(source: Given) -> bool:
    """Whether it is a folder with the configs of a bundle."""
    return any((Path(str(source)) / "configs" / name).is_file() for name in ("metadata.json", *CONFIGS))


def load(source: Given, wanted: Wanted) -> Loaded:
    """Read a bundle and capture its network, with its own weights or those given.

    Raises:
        ReadError: a file is missing or broken.
        OptionError: a pipeline is wanted, and what the network is for has no task.
    """
    folder = Path(str(source))
    bundle = read_bundle(folder)
    made = bundle.translation
    if made.problem and wanted.pipeline is None and wanted.guess is not None:
        raise OptionError(f"nothing says how {folder} is to be used. {made.problem}", "Look at it with inspect first.")
    weights: Path | None = wanted.weights or bundle.weights
    notes = made.notes if wanted.pipeline is None else ()
    if weights is None or not weights.is_file():
        if not wanted.part.untrained or wanted.weights is not None:
            raise ReadError(
                f"The bundle has no {weights}.",
                "Download it whole (python -m monai.bundle download NAME), or give the file as --weights FILE.",
            )
        notes, weights = (UNTRAINED.format(weights), *notes), None
    wanted = replace(wanted, pipeline=wanted.pipeline or made.pipeline)
    shape = shape_of(wanted, of=str(folder), known=bundle.input_shape)
    loaded = captured(bundle.module, weights, shape, wanted)
    if loaded.pipeline is not None and loaded.pipeline is made.pipeline:
        contradiction = _contradiction(loaded.network, loaded.pipeline)
        notes += (contradiction,) if contradiction else ()
        loaded = replace(loaded, pipeline=None) if contradiction else loaded
    return replace(
        loaded,
        title=bundle.title,
        files=(*bundle.files, *loaded.files),
        notes=(*notes, *loaded.notes),
        steps=made.steps,
    )


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle. Of its code only the network definition is run; transforms and inferer are read as data.

    Raises:
        MissingExtraError: MONAI is not installed.
        ReadError: a file is missing or broken.
        ModelError: the network cannot be built.
    """
    from microtome.models.bundles.translate import translate

    try:
        with quiet():
            from monai.bundle import ConfigParser
    except ImportError as error:
        raise MissingExtraError("MONAI bundles", "monai") from error
    metadata_file = folder / "configs" / "metadata.json"
    metadata = _metadata(metadata_file)
    config_file, config = _config(folder, ConfigParser)
    declared = _declared(folder, metadata, config, ConfigParser)
    module = build(folder, config_file, replace(declared, config=config), ConfigParser)
    return Bundle(
        module,
        translate(declared),
        _input_shape(declared.image),
        str(metadata.get("name") or folder.resolve().name),
        (metadata_file, config_file),
        _weights(folder, declared),
    )


def declared_by(folder: Path) -> Declared:
    """Return what a bundle declares, without building its network.

    Raises:
        MissingExtraError: MONAI is not installed.
        ReadError: a file is missing or broken.
    """
    try:
        with quiet():
            from monai.bundle import ConfigParser
    except ImportError as error:
        raise MissingExtraError("MONAI bundles", "monai") from error
    metadata = _metadata(folder / "configs" / "metadata.json")
    return _declared(folder, metadata, _config(folder, ConfigParser)[1], ConfigParser)


def _declared(folder: Path, metadata: dict[str, Any], config: dict[str, Any], parser: Any) -> Declared:
    resolved = parser(config)
    with quiet(), contextlib.suppress(Exception):  # a macro that leads nowhere: what it stood for gets a note
        resolved.resolve_macro_and_relative_ids()
    image, prediction, outputs = _formats(metadata)
    others: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / "configs").iterdir()):
        if path.suffix[1:] in SUFFIXES and path.stem.split("_")[0] in ("train", "evaluate", "inference"):
            with contextlib.suppress(Exception):  # it is of no use then; the one with the network is read with care
                content = parser.load_config_file(path)
                others |= {path.name: content} if isinstance(content, dict) else {}
    return Declared(dict(resolved.get()), image, prediction, outputs, others)


def _metadata(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ReadError(f"The bundle has no {path}.", "Copy the whole bundle: microtome needs its metadata.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReadError(f"{path} is broken ({first_line(error)}).", "Copy the bundle again from its source.") from error
    if not isinstance(content, dict):
        raise ReadError(f"{path} is no JSON object.", "Copy the bundle again from its source.")
    return content


def _config(folder: Path, parser: Any) -> tuple[Path, dict[str, Any]]:
    """Return the first config that defines the network."""
    found = [path for name in CONFIGS if (path := folder / "configs" / name).is_file()]
    for path in found:
        try:
            content = parser.load_config_file(path)
        except Exception as error:  # JSON, YAML and MONAI raise several kinds
            raise ReadError(
                f"{path} is broken ({first_line(error)}).", "Copy the bundle again from its source."
            ) from error
        if isinstance(content, dict) and any(key in content for key in NETWORKS):
            return path, {**content, "bundle_root": str(folder)}
    names = ", ".join(path.name for path in found) or f"no {CONFIGS[0]}"
    raise ReadError(
        f"No config of the bundle {folder} defines a network ({names}).",
        "Give the network as file.py:factory with --weights models/model.pt.",
    )


def _formats(metadata: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """Return the metadata of the first input and of the first output, and the names of all outputs."""
    formats = metadata.get("network_data_format")
    found: list[dict[str, Any]] = []
    names: tuple[str, ...] = ()
    for side, name in (("inputs", "image"), ("outputs", "pred")):
        entries = formats.get(side) if isinstance(formats, dict) else None
        entries = entries if isinstance(entries, dict) else {}
        entry: Any = entries.get(name) or next(iter(entries.values()), {})
        found.append(entry if isinstance(entry, dict) else {})
        names = tuple(str(key) for key in entries)
    return found[0], found[1], names or ("pred",)


def _weights(folder: Path, declared: Declared) -> Path:
    """The file that the bundle's own loader of checkpoints reads, where that can be told."""
    for item in tables(declared.config):
        if kind_of(item) == "CheckpointLoader" and disabled(item) is not True:
            path = declared.plain(item.get("load_path"))
            if isinstance(path, str) and Path(path).suffix and Path(path).is_relative_to(folder):
                return Path(path)
    return folder / "models" / "model.pt"


def _contradiction(network: Network, pipeline: Pipeline) -> str:
    """What the network's output shows that the metadata deny; empty if nothing."""
    from microtome.tasks import task

    ports = {port.name: port for port in network.outputs}
    port = ports.get(pipeline.output or "", network.outputs[0])
    maps = len(port.shape) > 1
    if maps == task(pipeline.task).MAPS:
        return ""
    shape = "×".join(map(str, port.shape))
    return (
        f"The bundle's metadata say that it is for {pipeline.task}, but the network's output {port.name} is {shape}: "
        "declare with --pipeline what it is."
    )


def _input_shape(image: dict[str, Any] | Any) -> tuple[int, ...] | None:
    channels, spatial = image.get("num_channels"), sizes_of(image.get("spatial_shape"))
    if not isinstance(channels, int) or spatial is None or len(spatial) not in (2, 3):
        return None
    return (channels, *(_size(n) for n in spatial))


def _size(declared: object) -> int:
    """Return a size that an entry such as 96, `*`, `8*n` or `2**p*n` allows."""
    if isinstance(declared, int):
        return declared
    multiple = multiple_of(declared)
    return max(-(-FREE_SIZE // multiple) * multiple, 2 * multiple)
