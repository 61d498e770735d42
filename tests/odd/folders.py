"""Small files for odd folders."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image as Picture

from microtome.medical.cohort import Cohort
from microtome.types import Case


def picture(path: Path, seed: int = 0, size: int = 8) -> Path:
    """A gray picture of noise, another for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 256, (size, size), np.uint8)
    Picture.fromarray(array).save(path)
    return path


def mask(path: Path, rows: slice = slice(0, 2), value: int = 255, size: int = 8) -> Path:
    """A mask with some rows marked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((size, size), np.uint8)
    array[rows] = value
    Picture.fromarray(array).save(path)
    return path


def volume(path: Path, value: int = 0) -> Path:
    """A small NIfTI volume of one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.full((4, 5, 6), value, np.int16), np.eye(4)), path)
    return path


def table(
    path: Path, lines: Sequence[Sequence[object]], delimiter: str = ",", quoting: int = csv.QUOTE_MINIMAL
) -> Path:
    """A CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, quoting=quoting).writerows(lines)
    return path


def dataset_json(root: Path, **content: object) -> Path:
    """A dataset.json with labels, if no others are given."""
    (root / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "spot"}} | content))
    return root


def files(cohort: Cohort) -> set[str]:
    """The files of all cases, as the key has them."""
    return {file for names in cohort.key.values() for file in names.split(";")}


def case_of(cohort: Cohort, name: str) -> Case:
    """The case whose first file has that name."""
    return next(case for case in cohort.cases if case.image[0].name == name)
