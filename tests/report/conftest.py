from __future__ import annotations

from pathlib import Path

import pytest
from report_packages import classification, segmentation, write_package


@pytest.fixture
def segmented(tmp_path: Path) -> Path:
    return write_package(tmp_path / "segmentation", segmentation())


@pytest.fixture
def classified(tmp_path: Path) -> Path:
    return write_package(tmp_path / "classification", classification())
