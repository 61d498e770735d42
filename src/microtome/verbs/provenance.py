"""Where a package comes from, so that it can be checked later: hashes, versions, seeds, and who was used for what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from microtome.medical.cohort import Cohort
from microtome.models import Loaded
from microtome.package import sha256
from microtome.progress import Progress
from microtome.types import Case


def provenance(
    loaded: Loaded,
    cohort: Cohort,
    calibration_cohort: Cohort,
    calibration: Sequence[Case],
    result: dict[str, Any],
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Return the content of `provenance.json`. Cases and patients appear under their pseudonyms only.

    Args:
        loaded: the parent.
        cohort: what was tuned and evaluated on.
        calibration_cohort: what was calibrated on; mostly the same.
        calibration: its cases that were used.
        result: the content of `result.json`.
        folder: the package so far; its files are hashed.
        progress: told of each case.
    """
    roles = {"calibration": list(calibration), "tuning": list(cohort.tuning), "evaluation": list(cohort.evaluation)}
    own = calibration_cohort is cohort
    used = [(cohort, case) for case in (*cohort.tuning, *cohort.evaluation)]
    used += [(calibration_cohort, case) for case in calibration]
    hashes = [
        (source, case.id, source.sha256(case)) for source, case in progress.track(used, "hash the cases", len(used))
    ]
    patients = {name: {case.patient for case in cases} for name, cases in roles.items()}
    disjoint = not (patients["tuning"] & patients["evaluation"])
    if own:
        disjoint = disjoint and not (patients["calibration"] & (patients["tuning"] | patients["evaluation"]))
    else:
        others = {value for source, _, value in hashes if source is cohort}
        disjoint = disjoint and not ({v for s, _, v in hashes if s is calibration_cohort} & others)
    return {
        "schema": 1,
        "parent": {
            "graph_sha256": result["parent"]["sha256"],
            "files": [{"name": file.name, "sha256": sha256(file)} for file in loaded.files],
        },
        "recipe": {"name": result["recipe"], "methods": result["methods"]},
        "cohort": {
            "format": cohort.format,
            "disjoint_by_patient": disjoint,
            "calibration_from_another_cohort": not own,
            "roles": {
                name: [{"case": case.id, "patient": case.patient} for case in cases] for name, cases in roles.items()
            },
            "sha256": {case: value for source, case, value in hashes if source is cohort},
            "calibration_sha256": {case: value for source, case, value in hashes if not own and source is not cohort},
        },
        "package": {
            file.name: sha256(file)
            for file in sorted(folder.iterdir())
            if file.is_file() and file.name != "provenance.json"
        },
        "environment": result["environment"],
        "created": result["created"],
    }
