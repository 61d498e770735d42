"""Where a package comes from, so that it can be checked later: hashes, versions, seeds, and who was used for what."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.evidence.same_images import Same
from microtome.files import sha256
from microtome.medical.cohort import Cohort
from microtome.progress import Progress
from microtome.results import Result
from microtome.types import Case

if TYPE_CHECKING:
    from microtome.models import Loaded


def provenance(
    loaded: Loaded,
    cohort: Cohort,
    calibration_cohort: Cohort,
    calibration: Sequence[Case],
    result: Result,
    folder: Path,
    progress: Progress,
    *,
    same: Same,
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
        same: what comparing the images found.
    """
    roles = {"calibration": list(calibration), "tuning": list(cohort.tuning), "evaluation": list(cohort.evaluation)}
    own = calibration_cohort is cohort
    evaluated = [(cohort, case) for case in (*cohort.tuning, *cohort.evaluation)]
    calibrated = [(calibration_cohort, case) for case in calibration]
    title, total = "hash the cases", len(evaluated) + len(calibrated)
    hashes = [hash_case(source, case) for source, case in progress.track(evaluated + calibrated, title, total)]
    given, used = hashes[: len(evaluated)], hashes[len(evaluated) :]
    patients = {name: {case.patient for case in cases} for name, cases in roles.items()}
    disjoint = not patients["tuning"] & patients["evaluation"]
    if own:
        disjoint = disjoint and not patients["calibration"] & (patients["tuning"] | patients["evaluation"])
    disjoint = disjoint and not {h["image"] for h in used} & {h["image"] for h in given}
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
            "patients": cohort.patient_rule,
            "same_images": dict(same.counts),
            "calibration_from_another_cohort": not own,
            "roles": {
                name: [{"case": case.id, "patient": case.patient} for case in cases] for name, cases in roles.items()
            },
            "sha256": {case.id: value for (_, case), value in zip(evaluated, given, strict=True)},
            "calibration_sha256": {case.id: value for (_, case), value in zip(calibrated, used, strict=True)},
            "calibration_voxels_sha256": {
                case.id: same.voxels[case.id] for case in calibration if case.id in same.voxels
            },
        },
        "package": {
            file.relative_to(folder).as_posix(): sha256(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file() and file.name != "provenance.json"
        },
        "environment": result["environment"],
        "created": result["created"],
    }


def hash_case(cohort: Cohort, case: Case) -> dict[str, str | None]:
    """Return the SHA-256 of a case's image (`image`) and, where its reference is a file, of that (`mask`)."""
    hashes = [sha256(file) for file in case.reference_files if file.is_file()]
    mask = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return {"image": cohort.sha256(case.without_reference()), "mask": mask if hashes else None}
