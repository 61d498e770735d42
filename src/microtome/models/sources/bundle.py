"""MONAI bundle folders (MONAI Bundle Specification): network, weights, and what its metadata and configs declare."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import MissingExtraError, ModelError, ReadError
from microtome.graph.quiet import first_line, quiet
from microtome.models.base import Loaded, Wanted, captured, shape_of
from microtome.models.declared import Declared, multiple_of

if TYPE_CHECKING:
    from torch import nn

    from microtome.medical.pipeline import Pipeline
    from microtome.models.base import Given

NAME = "bundle"
LOOKS_LIKE = "a MONAI bundle folder"
CONFIGS = tuple(f"{name}.{suffix}" for name in ("inference", "train") for suffix in ("json", "yaml", "yml"))
NETWORKS = ("network_def", "network")
REFERENCE = re.compile(r"[@%]([A-Za-z_]\w*)")  # the top-level key that `@key::sub`, `@key#sub`, `%key` point to
FREE_SIZE = 64  # for sizes that the metadata leaves free


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds.

    Attributes:
        module: the network, with the weights that its definition gives it.
        pipeline: translated from the preprocessing, the inferer and the metadata; None if that cannot be done.
        input_shape: (C, *S) that the metadata names; free sizes are 64, or a multiple that they allow.
        title: its name.
        files: the configs that were read.
        notes: what could not be translated.
    """

    module: nn.Module
    pipeline: Pipeline | None
    input_shape: tuple[int, ...] | None
    title: str
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def matches(source: Given) -> bool:
    """Whether it is a folder with the configs of a bundle."""
    return any((Path(str(source)) / "configs" / name).is_file() for name in ("metadata.json", *CONFIGS))


def load(source: Given, wanted: Wanted) -> Loaded:
    """Read a bundle and capture its network, with its own weights or those given."""
    folder = Path(str(source))
    bundle = read_bundle(folder)
    weights = wanted.weights or folder / "models" / "model.pt"
    if not weights.is_file():
        raise ReadError(
            f"The bundle has no {weights}.",
            "Download it whole (python -m monai.bundle download NAME), or give the file as --weights FILE.",
        )
    notes = bundle.notes if wanted.pipeline is None else ()
    wanted = replace(wanted, pipeline=wanted.pipeline or bundle.pipeline)
    shape = shape_of(wanted, of=str(folder), known=bundle.input_shape)
    loaded = captured(bundle.module, weights, shape, wanted)
    return replace(loaded, title=bundle.title, files=(*bundle.files, *loaded.files), notes=(*notes, *loaded.notes))


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle. Of its code only the network definition is run; transforms and inferer are read as data.

    Raises:
        MissingExtraError: MONAI is not installed.
        ReadError: a file is missing or broken.
        ModelError: the network definition fails.
    """
    from microtome.models.translate import translate

    try:
        with quiet():
            from monai.bundle import ConfigParser
    except ImportError as error:
        raise MissingExtraError("MONAI bundles", "monai") from error
    metadata_file = folder / "configs" / "metadata.json"
    metadata = _metadata(metadata_file)
    config_file, config = _config(folder, ConfigParser)
    module = _network(folder, config_file, config, ConfigParser)
    parser = ConfigParser(config)
    with quiet(), contextlib.suppress(Exception):  # a macro that leads nowhere: what it stood for gets a note
        parser.resolve_macro_and_relative_ids()
    image, prediction = _formats(metadata)
    declared = Declared(dict(parser.get()), image, prediction)
    pipeline, notes = translate(declared)
    return Bundle(
        module,
        pipeline,
        _input_shape(image),
        str(metadata.get("name") or folder.resolve().name),
        (metadata_file, config_file),
        notes,
    )


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


def _network(folder: Path, path: Path, config: dict[str, Any], parser: Any) -> nn.Module:
    """Instantiate the network definition, with nothing of the config but what it refers to."""
    key = next(key for key in NETWORKS if key in config)
    if isinstance(config[key], str):  # such as "$@net.to(@device)": take the definition itself
        targets = [k for k in REFERENCE.findall(config[key]) if isinstance(config.get(k), dict)]
        key = targets[0] if targets else key
    needed = _needed(config, key)
    root = str(folder.resolve())
    sys.path.insert(0, root)  # bundles keep code of their own in scripts/
    try:
        with quiet():
            module = parser({k: config[k] for k in needed}).get_parsed_content(key)
    except Exception as error:  # anything may fail in there
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ModelError(
            f"{path} defines a network that cannot be built: {first_line(cause)}.",
            "Install what the bundle's metadata asks for, or give the network as file.py:factory with --weights.",
        ) from error
    finally:
        sys.path.remove(root)
    from torch import nn

    if not isinstance(module, nn.Module):
        raise ModelError(
            f"'{key}' in {path} is {type(module).__name__}, no torch.nn.Module.",
            "Give the network as file.py:factory with --weights.",
        )
    return module


def _needed(config: dict[str, Any], key: str) -> list[str]:
    """Return the key and those that it refers to; import statements come along where there are expressions."""
    needed, waiting = [], [key]
    while waiting:
        current = waiting.pop()
        if current in needed or current not in config:
            continue
        needed.append(current)
        text = json.dumps(config[current], default=str)
        waiting += REFERENCE.findall(text)
        if '"$' in text:
            waiting += [name for name in ("imports", "import") if name in config]
    return needed


def _formats(metadata: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metadata of the first input and of the first output."""
    formats = metadata.get("network_data_format")
    found = []
    for side, name in (("inputs", "image"), ("outputs", "pred")):
        entries = formats.get(side) if isinstance(formats, dict) else None
        entries = entries if isinstance(entries, dict) else {}
        entry: Any = entries.get(name) or next(iter(entries.values()), {})
        found.append(entry if isinstance(entry, dict) else {})
    return found[0], found[1]


def _input_shape(image: dict[str, Any]) -> tuple[int, ...] | None:
    channels, spatial = image.get("num_channels"), image.get("spatial_shape")
    if not isinstance(channels, int) or not isinstance(spatial, list) or len(spatial) not in (2, 3):
        return None
    return (channels, *(_size(n) for n in spatial))


def _size(declared: object) -> int:
    """Return a size that an entry such as 96, `*`, `8*n` or `2**p*n` allows."""
    if isinstance(declared, int):
        return declared
    multiple = multiple_of(declared)
    return max(-(-FREE_SIZE // multiple) * multiple, 2 * multiple)
