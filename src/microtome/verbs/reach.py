"""`targets`: what each target runs in integers, and whether this machine has it."""

from __future__ import annotations

import importlib.metadata
from importlib.util import find_spec
from typing import Any

from microtome.environment import processor
from microtome.errors import MissingExtraError
from microtome.runtimes import TARGETS, runtime
from microtome.types import Capabilities, OperatorSupport, QType

PACKAGES = {"litert": "ai-edge-litert", "reference": "torch"}  # where they are not called as the target is
DIMENSIONS = {"conv", "conv_transpose"}


def targets(*, only: str | None = None) -> dict[str, Any]:
    """Return what microtome can write networks for.

    Args:
        only: this target; None is all.

    Returns:
        `processor` and its `instructions`; `targets`: by name `installed` and `version` of its package, `extra` that
        installs it, `runs` (whether this machine can run its files), `floats` (precisions of what stays in float), and
        of one that is installed `layers` (kind → `activation`, `weight`, `axes`), `operators` (other kinds that run on
        integers) and `everywhere` (whether a network must be in integers from end to end).

    Raises:
        OptionError: there is no such target.
    """
    name, instructions = processor()
    found = {target: _target(target) for target in ([only] if only is not None else TARGETS)}
    return {"processor": name, "instructions": list(instructions), "targets": found}


def _target(name: str) -> dict[str, Any]:
    try:
        module = runtime(name)
    except MissingExtraError as error:
        return {"installed": False, "version": None, "extra": error.extra, "runs": False, "floats": []}
    package = PACKAGES.get(name, name)
    known = find_spec(package.replace("-", "_")) is not None
    return {
        "installed": True,
        "version": importlib.metadata.version(package) if known else None,
        "extra": module.EXTRA,
        "runs": module.measurable(),
        "integers": module.RUNS_INTEGERS,
        "floats": list(module.PRECISIONS),
        **_of(module.capabilities()),
    }


def _of(capabilities: Capabilities) -> dict[str, Any]:
    layers = {kind: _layer(kind, support) for kind, support in capabilities.operators.items()}
    others = {*capabilities.transparent, *capabilities.readers, *capabilities.integers, *capabilities.same_grid}
    return {
        "layers": layers,
        "operators": sorted({kind.rstrip("_") for kind in others}),
        "everywhere": bool(capabilities.integers),
    }


def _layer(kind: str, support: OperatorSupport) -> dict[str, Any]:
    axes = list(support.spatial_dims) if kind in DIMENSIONS else []
    return {"activation": _format(support.activation), "weight": _format(support.weight), "axes": axes}


def _format(qtype: QType | None) -> str:
    return "float" if qtype is None else qtype.name
