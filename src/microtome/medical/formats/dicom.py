"""A folder of DICOM series, at any depth: one case per series, without labels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from microtome.errors import DataError
from microtome.medical.formats.table import PatientOf, Row, Table, count_of
from microtome.medical.readers import elements
from microtome.medical.readers.kind import is_dicom

NAME = "dicom"
LOOKS_LIKE = "a folder of DICOM files, whatever their names"

RULE = "the PatientID of the DICOM header; where it is empty, the study, or else the folder"
LOOK = 50  # files that are looked at to recognise the format


def matches(path: Path) -> bool:
    """A DICOM file is among the first files below the folder."""
    return path.is_dir() and any(is_dicom(file) for file in itertools.islice(_files(path), LOOK))


def rows(path: Path, patient_of: PatientOf | None) -> Table:
    """One row per series. The patient is the PatientID; where it is empty, the study, or else the folder.

    Raises:
        ReadError: a broken DICOM file.
        DataError: no DICOM image.
    """
    if not path.is_dir():
        raise DataError(f"{path} is not a folder.", f"Wanted: {LOOKS_LIKE}.")
    files = sorted(_files(path))
    series, others = elements.split_series([file for file in files if is_dicom(file)])
    if not series:
        raise DataError(f"{path} holds no DICOM images.", f"Wanted: {LOOKS_LIKE}.")
    found = [Row(patient=patient_of(one[0]) if patient_of else _patient(one[0]), image=tuple(one)) for one in series]
    rest = len(files) - sum(len(one) for one in series)
    notes = [f"{count_of(rest, 'file')} left out: no DICOM image."] if rest else []
    if len(others) == rest and rest:
        notes = [f"{count_of(rest, 'DICOM file')} without image left out."]
    return Table("segmentation", tuple(found), (), tuple(notes), told=frozenset(files), patients=RULE)


def _files(path: Path) -> Iterator[Path]:
    return (file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))


def _patient(file: Path) -> str:
    header = elements.load(file, pixels=False)
    for keyword in ("PatientID", "StudyInstanceUID"):
        found = elements.value(header, keyword, file)
        if found:
            return str(found)
    return str(file.parent)
