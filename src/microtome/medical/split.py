"""Who is trained on, tuned on and evaluated on: roles by patient, so that no patient has two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from microtome.errors import OptionError, SplitError
from microtome.medical.formats.table import Row, Split, count_of
from microtome.types import Role


def assign_roles(
    rows: Sequence[Row], *, seed: int, tuning: float, evaluation: float, source: Path
) -> tuple[list[Role | None], tuple[str, ...]]:
    """A role for each row, None for rows that are left out, and notes on these.

    An official split is kept: test → evaluation, val → tuning, train → train. A patient of evaluation is taken out of
    tuning and train, a patient of tuning out of train. What the official split lacks is drawn from the train patients.

    Raises:
        OptionError: shares outside [0, 1], or too large together.
        SplitError: no patients are left for evaluation or for training.
    """
    _check_shares(tuning, evaluation)
    rng = np.random.default_rng([seed, 0])
    official: set[Split] = {row.split for row in rows if row.split is not None}
    tested = {row.patient for row in rows if row.split == "test"}
    validated = {row.patient for row in rows if row.split == "val"} - tested
    rest = {row.patient for row in rows} - tested - validated
    if "test" not in official:
        drawn = rest if evaluation == 1 and not official else _draw(rest, evaluation, rows, rng)
        tested |= drawn
        rest -= drawn
    if "val" not in official:
        drawn = _draw(rest, tuning, rows, rng) if evaluation < 1 or official else set()
        validated |= drawn
        rest -= drawn
    role_of: dict[str, Role] = dict.fromkeys(rest, "train")
    role_of |= dict.fromkeys(validated, "tuning")
    role_of |= dict.fromkeys(tested, "evaluation")
    roles = [role_of[row.patient] if _keeps(row, role_of[row.patient], official) else None for row in rows]
    _check_left(roles, rows, evaluation, source)
    return roles, _notes(rows, roles)


def _check_shares(tuning: float, evaluation: float) -> None:
    if not 0 <= tuning < 1 or not 0 < evaluation <= 1 or (evaluation < 1 and tuning + evaluation >= 1):
        raise OptionError(
            f"The shares {tuning:g} for tuning and {evaluation:g} for evaluation make no sense.",
            "Take shares of the patients that leave some for calibration, such as 0.1 and 0.3.",
        )


def _keeps(row: Row, role: Role, official: set[Split]) -> bool:
    """A row stays unless its official part is not the one that its patient got from other rows."""
    if role == "evaluation":
        return row.split == "test" or "test" not in official
    if role == "tuning":
        return row.split == "val" or "val" not in official
    return True


def _draw(patients: set[str], share: float, rows: Sequence[Row], rng: np.random.Generator) -> set[str]:
    """A share of the patients, at random within each class, and at least one if the share is above 0."""
    label_of: dict[str, int] = {}
    for row in rows:
        if row.patient in patients:
            # a reference that is a number makes no classes
            label = row.label if isinstance(row.label, int) else -1
            label_of[row.patient] = max(label_of.get(row.patient, -1), label)
    shuffled = [sorted(patients)[k] for k in rng.permutation(len(patients))]
    drawn: set[str] = set()
    for label in sorted(set(label_of.values())):
        group = [patient for patient in shuffled if label_of[patient] == label]
        drawn |= set(group[: round(share * len(group))])
    if not drawn and share > 0 and len(patients) > 1:
        drawn = set(shuffled[:1])
    return drawn


def _check_left(roles: Sequence[Role | None], rows: Sequence[Row], evaluation: float, source: Path) -> None:
    patients = count_of(len({row.patient for row in rows}), "patient")
    if "evaluation" not in roles:
        raise SplitError(f"{source} has {patients}: none is left for evaluation.", "Add cases of other patients.")
    if "train" not in roles and evaluation < 1:
        raise SplitError(
            f"{source} has {patients}: none is left for calibration.",
            "Add cases of other patients, or lower the shares for tuning and evaluation.",
        )


def _notes(rows: Sequence[Row], roles: Sequence[Role | None]) -> tuple[str, ...]:
    out = [row for row, role in zip(rows, roles, strict=True) if role is None]
    if not out:
        return ()
    parts = {"train": "training", "val": "tuning"}
    counts = [(name, sum(row.split == split for row in out)) for split, name in parts.items()]
    text = " and ".join(f"{count_of(count, 'case')} from {name}" for name, count in counts if count)
    return (f"Left out {text}: the same patients are in the evaluation or tuning part.",)
