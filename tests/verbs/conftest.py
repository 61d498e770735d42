"""Packages of tiny networks that the tests of several verbs read: each made once per session."""

from pathlib import Path

import pytest
from torch import nn

import microtome
from microtome.verbs.options import CompressOptions
from sharing import Once
from tiny import CLASSES, PICTURES, VOLUMES, Brightness, Spots, class_cohort, manifest_cohort, volume_cohort


def compressed(module: nn.Module, cohort: Path, folder: Path, options: CompressOptions) -> None:
    microtome.compress(module, cohort, folder / "package", options=options)


@pytest.fixture(scope="session")
def pictures(once: Once) -> tuple[Path, Path]:
    """A package made of pictures in two subgroups, and the folder of pictures."""
    options = CompressOptions(pipeline=PICTURES, threads=1, calibration_cases=8)
    folder = once("pictures", lambda to: compressed(Spots(), manifest_cohort(to / "cohort"), to, options))
    return folder / "package", folder / "cohort" / "images"


@pytest.fixture(scope="session")
def volumes(once: Once) -> tuple[Path, Path]:
    """A package that takes volumes window by window, and the folder of volumes."""
    options = CompressOptions(pipeline=VOLUMES, threads=1, calibration_cases=6)
    folder = once("volumes", lambda to: compressed(Spots(3), volume_cohort(to / "cohort"), to, options))
    return folder / "package", folder / "cohort" / "imagesTr"


@pytest.fixture(scope="session")
def classes(once: Once) -> tuple[Path, Path]:
    """A package that classifies, and the folder of the pictures of one class."""
    options = CompressOptions(pipeline=CLASSES, threads=1, calibration_cases=8, tuning=0.3)
    folder = once("classes", lambda to: compressed(Brightness(), class_cohort(to / "cohort"), to, options))
    return folder / "package", folder / "cohort" / "light"
