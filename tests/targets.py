"""The targets as tests go through them: one whose package is not installed is skipped, and says so."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from microtome.runtimes import TARGETS

LARGE = {"executorch": find_spec("executorch") is None}  # not among what `make test` installs
FIXED = frozenset({"litert", "executorch"})
"""Those whose files have one size."""
FLAT = frozenset({"executorch"})
"""Those that refuse volumes."""


def param(target: str, *more: Any, slow: bool = False) -> Any:
    """Return a parameter set that begins with a target."""
    reason = f"{target} is not installed: pip install 'microtome[{target}]'"
    marks = [pytest.mark.skipif(LARGE.get(target, False), reason=reason), *([pytest.mark.slow] if slow else [])]
    return pytest.param(target, *more, marks=marks, id="-".join(map(str, (target, *more))))


EVERY = [param(target) for target in TARGETS]
