"""TorchScript: a file that `torch.jit.save` wrote, told by its content, or such a module in Python."""

from __future__ import annotations

import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from microtome.errors import OptionError, ReadError
from microtome.graph.quiet import first_line, quiet
from microtome.models.base import Loaded, Wanted

if TYPE_CHECKING:
    from microtome.models.base import Given

NAME = "torchscript"
LOOKS_LIKE = "a TorchScript file"


def matches(source: Given) -> bool:
    """Whether it is a script module, or an archive with TorchScript's code and constants."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(source, torch.nn.Module):
        return isinstance(source, torch.jit.ScriptModule)
    path = Path(str(source))
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        names = zipfile.ZipFile(path).namelist()
    except (zipfile.BadZipFile, ValueError, OSError):
        return False
    return any(n.endswith("/constants.pkl") for n in names) and any("/code/" in n for n in names)


def load(source: Given, wanted: Wanted) -> Loaded:
    """Read, translate and capture it, and compare it with the script module."""
    import torch

    from microtome.models.foreign.torchscript_network import network_of

    if wanted.weights is not None:
        raise OptionError("TorchScript has its own weights.", "Leave --weights out.")
    if isinstance(source, torch.nn.Module):
        name = getattr(source, "original_name", type(source).__name__)
        return replace(network_of(source, wanted, of=name), title=name)
    path = Path(str(source))
    try:
        with quiet():
            module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:  # torch raises several kinds
        raise ReadError(
            f"{path} is TorchScript that cannot be loaded ({first_line(error)}).",
            "Copy the file again from its source, or give the Python code that builds the network.",
        ) from error
    return replace(network_of(module, wanted, of=str(path)), title=path.stem, files=(path,))
