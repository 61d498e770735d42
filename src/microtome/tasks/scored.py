"""What tasks have in common whose every case has metrics of its own: choosing cases, listing and drawing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from microtome.metrics import about
from microtome.report import plots, words
from microtome.report.headline import main_metric
from microtome.tasks.base import Task, examples

WORST = 3  # example cases that lost most


class ScoredTask(Task):
    """A task that scores case by case, the first of its metrics being the one that cases are chosen by.

    Attributes:
        DECIMALS: of that metric, in what is said of an example.
        ALIKE: how a voxel on which both networks agree is said of a case without a reference.
    """

    DECIMALS: ClassVar[int]
    ALIKE: ClassVar[str]

    def choose(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Choose the cases that lost most, the lowest, a typical one and the best."""
        metric = self.METRICS[0]
        scored = [r for r in rows if r["parent"].get(metric) is not None and r["compressed"].get(metric) is not None]
        if not scored:
            ordered = sorted(rows, key=lambda r: float(r["agreement"]))
            return examples([("worst", r, f"{r['agreement']:.2%} {self.ALIKE}") for r in ordered[:WORST]])
        lost = sorted(scored, key=lambda r: float(r["compressed"][metric] - r["parent"][metric]))
        level = sorted(scored, key=lambda r: float(r["compressed"][metric]))
        chosen = [("worst", r) for r in [*lost[:WORST], level[0]]]
        chosen += [("typical", level[len(level) // 2]), ("best", level[-1])]
        return examples([(kind, r, self._told(r["parent"][metric], r["compressed"][metric])) for kind, r in chosen])

    def _told(self, before: float, after: float) -> str:
        known = about(self.METRICS[0])
        return f"{known.title} {before:.{self.DECIMALS}f} → {after:.{self.DECIMALS}f} {known.unit}".rstrip()

    def case_value(self, result: Mapping[str, Any], case: Mapping[str, Any], side: str) -> float | None:
        """Return the case's main metric."""
        return words.interval(words.mapping(case.get(side)).get(main_metric(result))).value

    def case_title(self, result: Mapping[str, Any]) -> str:
        """Return the main metric."""
        return main_metric(result)

    def worst_first(self, moved: float) -> float:
        """List those that lost most first."""
        return moved

    def drawings(
        self, result: Mapping[str, Any], pairs: Sequence[tuple[float | None, float | None]]
    ) -> list[dict[str, str]]:
        """Draw parent against compressed, and how much each case changed."""
        parent, compressed = (np.array([pair[side] for pair in pairs], dtype=float) for side in (0, 1))
        chosen = main_metric(result)
        what = words.metric_name(chosen) if chosen else "metric"
        worse = "Above" if chosen and words.about(chosen).lower_is_better else "Below"
        return [
            {
                "svg": plots.pairs(parent, compressed, name="cases", what=what),
                "caption": f"{what} of every case. On the dashed line nothing changed.",
            },
            {
                "svg": plots.changes(parent, compressed, name="changes", what=what),
                "caption": f"How much {what} of every case changed. {worse} the dashed line is worse.",
            },
        ]
