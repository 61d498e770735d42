"""A `torch.nn.Module` that Python hands over."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from microtome.models.base import Loaded, Wanted, captured, shape_of

if TYPE_CHECKING:
    from microtome.models.base import Given

NAME = "module"
LOOKS_LIKE = ""


def matches(source: Given) -> bool:
    """Whether it is a module; without torch there is none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.nn.Module)


def load(source: Given, wanted: Wanted) -> Loaded:
    """Capture it; what the caller passed stays as it is."""
    from torch import nn

    from microtome.graph.plain import copied

    assert isinstance(source, nn.Module)
    shape = shape_of(wanted, of=type(source).__name__)
    module = source
    if wanted.weights is not None or wanted.device != "cpu":
        module = copied(source)
    return captured(module, wanted.weights, shape, wanted)
