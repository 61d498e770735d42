"""The network of a MONAI bundle: the one part of its configs that is run, with what it refers to and nothing else."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import ModelError, ReadError
from microtome.graph.quiet import first_line, quiet
from microtome.models.bundles.declared import Declared, is_data

if TYPE_CHECKING:
    from torch import nn

NETWORKS = ("network_def", "network")
REFERENCE = re.compile(r"[@%]([A-Za-z_]\w*)")  # the top-level key that `@key::sub`, `@key#sub`, `%key` point to
IMPORTS = ("imports", "import")
DOTTED = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]")  # what `plain` has a word for, and MONAI needs as an object
CUDA = re.compile(r"torch\.device\((['\"])cuda(?::\d+)?\1\)")
FILES = frozenset((".pt", ".pth", ".ts", ".ckpt", ".npy", ".npz", ".pkl", ".json", ".yaml", ".csv", ".safetensors"))
INSTEAD = "give the network as file.py:factory with --weights"


def build(folder: Path, path: Path, declared: Declared, parser: Any) -> nn.Module:
    """Make the network that a config defines.

    Args:
        folder: of the bundle.
        path: of the config, for errors.
        declared: what is in it.
        parser: MONAI's `ConfigParser`.

    Raises:
        ReadError: the definition reads a file that is not there.
        ModelError: it fails.
    """
    from torch import nn

    config = declared.config
    key = next(key for key in NETWORKS if key in config)
    if isinstance(config[key], str):  # such as "$@net.to(@device)": take the definition itself
        targets = [k for k in REFERENCE.findall(config[key]) if isinstance(config.get(k), dict)]
        key = targets[0] if targets else key
    needed = _needed(declared, key)
    _check_files(folder, declared, needed)
    root = str(folder.resolve())
    sys.path.insert(0, root)  # bundles keep code of their own in scripts/
    try:
        with quiet():
            module = parser(needed).get_parsed_content(key)
    except Exception as error:  # anything may fail in there
        raise _failed(path, needed, error) from error
    finally:
        sys.path.remove(root)
    if not isinstance(module, nn.Module):
        raise ModelError(f"'{key}' in {path} is {type(module).__name__}, no torch.nn.Module.", _sentence(INSTEAD))
    return module


def _needed(declared: Declared, key: str) -> dict[str, Any]:
    """Return the entry and those that it refers to, with expressions worked out where no code is needed for it.

    Import statements come along where expressions are left; MONAI minds a missing package when it is used.
    """
    import torch

    needed: dict[str, Any] = {}
    waiting = [key]
    while waiting:
        current = waiting.pop()
        if current in needed or current not in declared.config:
            continue
        needed[current] = _folded(declared.config[current], declared, keep_cuda=torch.cuda.is_available())
        waiting += REFERENCE.findall(json.dumps(needed[current], default=str))
    if '"$' in json.dumps(needed, default=str):
        needed |= {name: declared.config[name] for name in IMPORTS if name in declared.config}
    return needed


def _folded(value: Any, declared: Declared, *, keep_cuda: bool) -> Any:
    if isinstance(value, Mapping):
        return {name: _folded(item, declared, keep_cuda=keep_cuda) for name, item in value.items()}
    if isinstance(value, list):
        return [_folded(item, declared, keep_cuda=keep_cuda) for item in value]
    if not isinstance(value, str) or not value.startswith("$"):
        return value
    plain = value if DOTTED.search(value) else declared.plain(value)
    if is_data(plain):
        return plain
    return value if keep_cuda else CUDA.sub("torch.device('cpu')", value)


def _check_files(folder: Path, declared: Declared, needed: Mapping[str, Any]) -> None:
    """Refuse a definition that reads a file of the bundle which is not there."""
    for name, value in needed.items():
        found = declared.plain(value)
        if not isinstance(found, str) or Path(found).suffix not in FILES:
            continue
        file = Path(found)
        if file.is_relative_to(folder) and not file.is_file():
            raise ReadError(
                f"The network of the bundle is made from a file of its own, {file} ('{name}'), which is not there.",
                f"Download the bundle whole (python -m monai.bundle download {folder.name}), or {INSTEAD}.",
            )


def _failed(path: Path, needed: Mapping[str, Any], error: BaseException) -> ModelError:
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    loads = [name for name, value in needed.items() if isinstance(value, str) and "load(" in value]
    if loads:
        return ModelError(
            f"{path} makes its network from a file that it loads by code of its own ('{loads[0]}'), which fails: "
            f"{first_line(cause)}.",
            f"Build the network yourself and {INSTEAD}.",
        )
    return ModelError(
        f"{path} defines a network that cannot be built: {first_line(cause)}.",
        f"Install what the bundle's metadata asks for, or {INSTEAD}.",
    )


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."
