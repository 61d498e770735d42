"""Runtimes: one file per target, with what it can run, how a network is written for it, and a session that runs it."""

from __future__ import annotations

import importlib
from typing import cast

from microtome.errors import OptionError
from microtome.runtimes.base import Exporter, Runner, Runtime

TARGETS = {
    "openvino": "microtome.runtimes.openvino",
    "onnxruntime": "microtome.runtimes.onnxruntime",
    "reference": "microtome.runtimes.reference",
}
REQUIRED = [
    *(name for protocol in (Exporter, Runner) for name in protocol.__annotations__),
    *("capabilities", "export", "files", "measurable", "open_session"),
]


def runtime(target: str) -> Runtime:
    """Return the runtime of a target name, or the module of another package by its dotted path.

    Raises:
        OptionError: there is no such target, or the module is no runtime.
        MissingExtraError: its package is not installed.
    """
    if target not in TARGETS and "." not in target:
        raise OptionError(
            f"there is no target {target!r}.",
            f"Choose one of {', '.join(TARGETS)}, or name a module: their_pkg.module.",
        )
    try:
        module = importlib.import_module(TARGETS.get(target, target))
    except ImportError as error:
        raise OptionError(
            f"the target {target} cannot be imported: {error}.", "Install the package it is in."
        ) from error
    missing = [name for name in REQUIRED if not hasattr(module, name)]
    if missing:
        what = f"{target} is no runtime: it has no {', '.join(missing)}."
        raise OptionError(what, "`microtome.runtimes.base` says what a runtime defines.")
    found = cast(Runtime, module)
    found.capabilities()
    return found
