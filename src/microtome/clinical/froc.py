"""Scores of many cases with boxes, of one class: average precision, and sensitivity over false positives per image.

`Hits` holds what a network found in all cases at one overlap. Its metrics are functions of weights (R, N), as those of
`clinical.classification` are: a case that is drawn twice counts twice, with all of its boxes. Without any reference box
they are NaN. Two boxes of one score count as COCO has it, in the order of the cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from microtome.clinical.boxes import iou, matched
from microtome.types import Array

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # of false positives per image (LUNA16: Setio et al., MedIA 2017)
MOST = 100  # findings of a case and class that count, those of the highest scores
RECALLS = np.linspace(0.0, 1.0, 101)
AT_ONCE = 4_000_000  # numbers held at a time


@dataclass(frozen=True)
class Hits:
    """Findings of one class in all cases, by falling score, and whether each is right.

    Attributes:
        scores: (n,), falling.
        cases: (n,), the case of each.
        right: (n,), bool: it has a reference of its own.
        wanted: (N,), references of each case.
    """

    scores: Array
    cases: Array
    right: Array
    wanted: Array

    @cached_property
    def _last(self) -> Array:
        """The last finding of each distinct score."""
        different = np.flatnonzero(np.diff(self.scores) != 0)
        return np.append(different, self.scores.size - 1) if self.scores.size else different

    @cached_property
    def _before(self) -> Array:
        """False ones of each case before each right one, (rights, N)."""
        places = np.flatnonzero(self.right)
        counts = np.zeros((len(self.scores) + 1, len(self.wanted)), np.float32)
        counts[np.flatnonzero(~self.right) + 1, self.cases[~self.right]] = 1
        before: Array = np.cumsum(counts, axis=0, dtype=np.float32)[places]
        return before

    def average_precision(self, weights: Array) -> Array:
        """Mean over 101 recalls of the best precision at that recall or more (COCO), (R,)."""
        total = weights @ self.wanted
        found = np.full(len(weights), np.nan)
        rights = self.cases[self.right]
        if not rights.size:
            return np.where(total > 0, 0.0, found)
        before = self._before
        step = max(1, AT_ONCE // rights.size)
        for first in range(0, len(weights), step):
            rows = weights[first : first + step]
            true = np.cumsum(rows[:, rights], axis=1)
            false = rows @ before.T
            some = true + false
            precision = np.where(some > 0, true / np.where(some > 0, some, 1.0), 0.0)
            best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            with np.errstate(invalid="ignore", divide="ignore"):
                recall = true / total[first : first + step, None]
            found[first : first + step] = [
                np.append(line, 0.0)[np.searchsorted(rise, RECALLS, side="left")].mean()
                for line, rise in zip(best, recall, strict=True)
            ]
        return np.where(total > 0, found, np.nan)

    def sensitivities(self, weights: Array, rates: Sequence[float] = RATES) -> Array:
        """Share of references found where so many false ones per image are allowed, (rates, R).

        Points of the curve are the distinct scores; between two of them it is a straight line, and behind the last it
        goes on as it ends (as LUNA16's and MONAI's do).
        """
        total, images = weights @ self.wanted, weights.sum(axis=1)
        found = np.zeros((len(rates), len(weights)))
        if self.scores.size:
            last = self._last
            step = max(1, AT_ONCE // self.scores.size)
            for first in range(0, len(weights), step):
                part = slice(first, first + step)
                each = weights[part][:, self.cases]
                rows = np.arange(len(each))
                with np.errstate(invalid="ignore", divide="ignore"):
                    true = np.cumsum(each * self.right, axis=1)[:, last] / total[part, None]
                    false = np.cumsum(each * ~self.right, axis=1)[:, last] / images[part, None]
                true, false = (np.concatenate([np.zeros((len(each), 1)), one], axis=1) for one in (true, false))
                for place, rate in enumerate(rates):
                    left = (false <= rate).sum(axis=1) - 1
                    right = np.minimum(left + 1, false.shape[1] - 1)
                    gap = false[rows, right] - false[rows, left]
                    share = np.where(gap > 0, (rate - false[rows, left]) / np.where(gap > 0, gap, 1.0), 0.0)
                    found[place, part] = true[rows, left] + share * (true[rows, right] - true[rows, left])
        return np.where(total > 0, found, np.nan)

    def at(self, threshold: float, weights: Array) -> tuple[Array, Array]:
        """Share of references found, and false ones per image, among the findings of at least that score; (R,) each."""
        counted = self.scores >= threshold
        right = np.bincount(self.cases[counted & self.right], minlength=len(self.wanted))
        false = np.bincount(self.cases[counted & ~self.right], minlength=len(self.wanted))
        with np.errstate(invalid="ignore", divide="ignore"):
            return (weights @ right) / (weights @ self.wanted), (weights @ false) / weights.sum(axis=1)

    def curve(self) -> tuple[Array, Array]:
        """False ones per image and sensitivity at every distinct score, for drawing; from (0, 0)."""
        last = self._last
        true, false = np.cumsum(self.right)[last], np.cumsum(~self.right)[last]
        total = max(int(self.wanted.sum()), 1)
        return np.append(0.0, false / max(len(self.wanted), 1)), np.append(0.0, true / total)

    def best_threshold(self) -> float | None:
        """The score at which 2·right / (found + wanted), the F1, is largest; None where nothing is right.

        It lies midway between two distinct scores, so that small changes of scores flip few findings.
        """
        if not self.right.any():
            return None
        last = self._last
        right = np.cumsum(self.right)[last]
        f1 = 2 * right / (last + 1 + self.wanted.sum())
        place = int(np.argmax(f1))
        score = float(self.scores[last[place]])
        below = float(self.scores[last[place + 1]]) if place + 1 < len(last) else 0.0
        middle = score - (score - below) / 2
        return middle if below < middle <= score else score


def hits_of(found: Sequence[Array], references: Sequence[Array], of: int, least: float) -> Hits:
    """What a network found of one class, matched with the references case by case (`boxes.matched`).

    Args:
        found: of each case (n, 2 + 2·d): class, score, box.
        references: of each case (m, 1 + 2·d): class, box.
        of: number of the class.
        least: the smallest overlap that counts.
    """
    scores, cases, right = [], [], []
    wanted = np.zeros(len(found))
    for k, (ours, theirs) in enumerate(zip(found, references, strict=True)):
        boxes = theirs[theirs[:, 0] == of][:, 1:]
        mine = ours[ours[:, 0] == of]
        mine = mine[np.argsort(-mine[:, 1], kind="stable")][:MOST]
        wanted[k] = len(boxes)
        scores.append(mine[:, 1])
        cases.append(np.full(len(mine), k))
        right.append(matched(iou(mine[:, 2:], boxes), least) >= 0)
    if not scores:
        return Hits(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, bool), wanted)
    joined = np.concatenate(scores)
    order = np.argsort(-joined, kind="stable")
    return Hits(joined[order], np.concatenate(cases)[order], np.concatenate(right)[order], wanted)
