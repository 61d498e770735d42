"""What a teacher gives a student: the difference of both students on the same cases, over all seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from microtome.clinical.statistics import bootstrap_mean
from structure_plans import WITH, WITHOUT, Plan


def teacher_table(out: Path, plans: list[Plan]) -> Iterator[str]:
    """Yield a Markdown table: per network the mean difference of each seed, and of all with its interval by patient.

    Args:
        out: the folder of the benchmark.
        plans: of the part `student`.
    """
    yield "\n### with a teacher − without, on the same cases\n"
    yield "| network | seeds | each | all seeds (95 % interval by patient) |"
    yield "|---|---|---|---|"
    titles = {(plan.network, plan.what): plan.title for plan in plans}
    for network in dict.fromkeys(plan.network for plan in plans):
        ours, plain = titles[network, WITH], titles[network, WITHOUT]
        seeds = [seed for seed in range(10) if all((out / f"{title}-{seed}.json").exists() for title in (ours, plain))]
        if not seeds:
            continue
        gains, patients = [], {}
        for seed in seeds:
            one, other = (_cases(out / f"{title}-{seed}") for title in (ours, plain))
            gains.append({case: row["dice"] - other[case]["dice"] for case, row in one.items()})
            patients |= {case: row["patient"] for case, row in one.items() if case not in patients}
        cases = list(gains[0])
        found = bootstrap_mean(
            np.array([np.mean([gain[case] for gain in gains]) for case in cases]), [patients[case] for case in cases]
        )
        each = ", ".join(f"{np.mean(list(gain.values())):+.4f}" for gain in gains)
        yield f"| {network} | {len(seeds)} | {each} | {found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f}) |"


def _cases(package: Path) -> dict[tuple[float, ...], dict[str, Any]]:
    """Return Dice and patient of each case, by what its parent reaches: pseudonyms differ from seed to seed."""
    rows = json.loads((package / "result.json").read_text())["cases"]
    found = {
        tuple(row["parent"][name] for name in sorted(row["parent"]) if row["parent"][name] is not None): {
            "dice": row["compressed"]["dice"],
            "patient": row["patient"],
        }
        for row in rows
    }
    assert len(found) == len(rows)
    return found
