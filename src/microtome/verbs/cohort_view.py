"""What a cohort looks like to a network: split, classes, pre-processing, and one case before and after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import nibabel
import numpy as np

from microtome.medical.cohort import Cohort
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.records import plain
from microtome.verbs.roles import cohort_notes

ROLES = ("train", "tuning", "evaluation")
KNOWN = ("task", "classes", "channels", "spatial_dims")  # what a guess takes from the cohort as it is


def pipeline_fields(pipeline: Pipeline, *, guessed: bool) -> list[dict[str, Any]]:
    """Return the fields of a pipeline that say something: `name`, `value`, and whether it is `guessed`."""
    rows = []
    for field in dataclasses.fields(pipeline):
        value = getattr(pipeline, field.name)
        if value != field.default:
            rows.append({"name": field.name, "value": _plain(value), "guessed": guessed and field.name not in KNOWN})
    return rows


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it; of records, what they say beyond their defaults."""
    if isinstance(value, tuple):
        return [_said(one) if dataclasses.is_dataclass(one) else plain(one) for one in value]
    if not isinstance(value, Mapping):
        return plain(value)
    return {name: _said(one) if dataclasses.is_dataclass(one) else plain(one) for name, one in value.items()}


def _said(record: Any) -> dict[str, Any]:
    fields = [field for field in dataclasses.fields(record) if getattr(record, field.name) != field.default]
    return {field.name: plain(getattr(record, field.name)) for field in fields}


def view_of(cohort: Cohort, pipeline: Pipeline) -> dict[str, Any]:
    """Return what a cohort is, without reading more than one image.

    Returns:
        `format`, `task`, `classes`, `split` (role → `cases`, `patients`, `labelled`), `case` (one case: `size`,
        `spacing`, `orientation`, `type`, `range`, `labels` before the pipeline; `input` and `input_range` after it),
        `patients` (`rule`, and `examples` of files and who their patient is by it: they may identify patients, and are
        for the user's own screen) and `notes`.

    Raises:
        DataError: the case cannot be read.
    """
    split = {}
    for role in ROLES:
        cases = [case for case in cohort.cases if case.role == role]
        split[role] = {
            "cases": len(cases),
            "patients": len({case.patient for case in cases}),
            "labelled": sum(case.labelled for case in cases),
        }
    return {
        "format": cohort.format,
        "task": cohort.task,
        "classes": list(cohort.classes),
        "split": split,
        "patients": {"rule": cohort.patient_rule, "examples": cohort.patient_examples()},
        "case": _case(cohort, pipeline),
        "notes": list(cohort_notes(cohort)),
    }


def _case(cohort: Cohort, pipeline: Pipeline) -> dict[str, Any]:
    case = (cohort.train or cohort.cases)[0]
    image = cohort.image(case)
    prepared = prepare(image, pipeline).array
    affine = image.affine
    found: dict[str, Any] = {
        "size": list(image.array.shape),
        "spacing": [round(float(value), 4) for value in image.spacing] if affine is not None else None,
        "orientation": None if affine is None else "".join(nibabel.orientations.aff2axcodes(affine)),
        "type": str(image.array.dtype),
        "range": [float(image.array.min()), float(image.array.max())],
        "input": list(prepared.shape),
        "input_range": [round(float(prepared.min()), 4), round(float(prepared.max()), 4)],
    }
    if case.mask is not None:
        mask = cohort.mask(case, image)
        found["labels"] = [] if mask is None else [int(value) for value in np.unique(mask)]
    elif case.boxes is not None:
        found["labels"] = [cohort.classes[label] for label in case.boxes.labels]
    elif case.label is not None:
        found["labels"] = list(case.label) if isinstance(case.label, tuple) else [case.label]
    return found
