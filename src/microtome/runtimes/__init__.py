"""Runtimes: one file per target, with what it can run, how a network is written for it, and a session that runs it."""

from __future__ import annotations

from typing import cast

from microtome.plugins import find
from microtome.runtimes.base import Exporter, Runner, Runtime

TARGETS = {
    "openvino": "microtome.runtimes.openvino",
    "onnxruntime": "microtome.runtimes.onnxruntime",
    "litert": "microtome.runtimes.litert",
    "executorch": "microtome.runtimes.executorch",
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
    found = cast(Runtime, find(target, TARGETS, "target", form="their_pkg.module", required=REQUIRED))
    found.capabilities()
    return found
