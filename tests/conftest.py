"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest

DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real images: `MICROTOME_DATA`, or `shared/data` beside the repository."""
    folder = Path(os.environ.get("MICROTOME_DATA", DEFAULT_DATA))
    if not (folder / "hippocampus").is_dir():
        pytest.skip(f"no real images in {folder}: set MICROTOME_DATA")
    return folder
