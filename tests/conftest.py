"""Fixtures for all tests."""

import os
from functools import partial
from pathlib import Path

import pytest

from sharing import Once, made_once

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded; programs that a test starts inherit it

DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data"
LONGEST = ("test_cli.py", "verbs", "deployment", "parity", "contract", "methods")
"""Files and folders whose tests take longest, the longest first."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several processes, begin with what takes longest, so that they end together."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _rank(item.path))


def _rank(path: Path) -> int:
    first = path.relative_to(Path(__file__).parent).parts[0]
    return LONGEST.index(first) if first in LONGEST else len(LONGEST)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real images: `MICROTOME_DATA`, or `shared/data` beside the repository."""
    folder = Path(os.environ.get("MICROTOME_DATA", DEFAULT_DATA))
    if not (folder / "hippocampus").is_dir():
        pytest.skip(f"no real images in {folder}: set MICROTOME_DATA")
    return folder


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes folders once for all processes of the session."""
    own = tmp_path_factory.getbasetemp()
    return partial(made_once, own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)
