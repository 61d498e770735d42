"""microtome compresses medical-imaging networks and proves that nothing clinical was lost.

The verbs are `compress`, `evaluate`, `bench`, `inspect` and `parity`; `predict` and `open_package` run what `compress`
made. They are loaded when they are first used: `import microtome` itself loads neither torch nor pydicom.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from microtome.version import __version__

if TYPE_CHECKING:
    from microtome.package import Package, open_package
    from microtome.verbs.bench import bench
    from microtome.verbs.compress import compress
    from microtome.verbs.evaluate import evaluate
    from microtome.verbs.inspect import inspect
    from microtome.verbs.options import CompressOptions
    from microtome.verbs.parity import parity
    from microtome.verbs.predict import predict

__all__ = [
    "CompressOptions",
    "Package",
    "__version__",
    "bench",
    "compress",
    "evaluate",
    "inspect",
    "open_package",
    "parity",
    "predict",
]

_HOMES = {
    "bench": "microtome.verbs.bench",
    "compress": "microtome.verbs.compress",
    "CompressOptions": "microtome.verbs.options",
    "evaluate": "microtome.verbs.evaluate",
    "inspect": "microtome.verbs.inspect",
    "open_package": "microtome.package",
    "Package": "microtome.package",
    "parity": "microtome.verbs.parity",
    "predict": "microtome.verbs.predict",
}


def __getattr__(name: str) -> Any:
    """Load a public name from where it lives."""
    if name not in _HOMES:
        raise AttributeError(f"module 'microtome' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
