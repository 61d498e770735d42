"""Runtimes: one file per target, with what it can run, how a network is written for it, and a session that runs it."""

from __future__ import annotations

import importlib
from typing import cast

from microtome.errors import OptionError
from microtome.runtimes.base import Runtime

TARGETS = {
    "openvino": "microtome.runtimes.openvino",
    "onnxruntime": "microtome.runtimes.onnxruntime",
    "reference": "microtome.runtimes.reference",
}


def runtime(target: str) -> Runtime:
    """Return the runtime of a target name.

    Raises:
        OptionError: there is no such target.
        MissingExtraError: its package is not installed.
    """
    if target not in TARGETS:
        raise OptionError(f"there is no target {target!r}.", f"Choose one of {', '.join(TARGETS)}.")
    module = cast(Runtime, importlib.import_module(TARGETS[target]))
    module.capabilities()
    return module
