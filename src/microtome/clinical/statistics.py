"""Uncertainty by the cluster bootstrap: whole patients are drawn with replacement, with all of their cases.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; Davison and Hinkley, 1997, section 3.8, for clusters.
Cases of one patient are not independent, so drawing cases would make intervals too narrow. A resample is a row of
weights: how often each case was drawn. Every metric of one call sees the same resamples, so replicates of two networks
are paired, and their difference is the paired bootstrap of the difference.

Intervals are expanded percentile intervals (Hesterberg, "What Teachers Should Know About the Bootstrap", The American
Statistician 2015): percentiles of the replicates at levels Φ(±√(n/(n−1))·t) instead of the nominal ones, t being
Student's quantile with n − 1 degrees of freedom and n the number of patients. Plain percentiles, and BCa too, are too
narrow for a few patients: with 10 they cover about 90 % instead of 95 %, and would call too many networks non-inferior.
Expanded ones agree with the t interval for a mean of symmetric data, follow skew as percentiles do, need no jackknife,
and are the plain percentiles for large n.

Resamples in which a metric is undefined (one class is missing) are left out. If they are more than half, there is no
interval. The same cases, patients and seed give the same interval, in whichever order the cases come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit  # scipy.stats has the same, and takes a second to import

from microtome.errors import OptionError
from microtome.types import Array, Interval

RESAMPLES = 2_000
CONFIDENCE = 0.95
BLOCK = 2_000_000  # weights held at once: 16 MB
FEW = 10  # so many replicates must lie beyond a bound, or their share says nothing

Statistic = Callable[[Array], Array]


@dataclass(frozen=True)
class Replicates:
    """A statistic and its bootstrap replicates.

    Attributes:
        value: the statistic of the cohort itself; NaN where undefined.
        samples: one replicate per resample, shape (resamples,); NaN where undefined.
        groups: patients that the statistic rests on.
        cases: cases that it rests on.
    """

    value: float
    samples: Array
    groups: int
    cases: int

    def quantile(self, level: float) -> float | None:
        """The expanded percentile at `level` (0…1); None if undefined, with < 2 patients or too few replicates."""
        defined = self.samples[np.isfinite(self.samples)]
        if self.groups < 2 or not math.isfinite(self.value) or 2 * defined.size < max(self.samples.size, 1):
            return None
        n = self.groups
        expanded = ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, level))
        return float(np.quantile(defined, expanded))

    def chance_of(self, bound: float) -> float | None:
        """The one-sided p-value of "the true statistic is at least `bound`"; None where `quantile` has none.

        It is small where nearly all replicates lie below `bound`, and below 1 − c just where the upper one-sided bound
        of confidence c is. The replicates tell small ones apart only so far; what is beyond is that of Student's t.
        """
        defined = self.samples[np.isfinite(self.samples)]
        if self.quantile(0.5) is None:
            return None
        n = self.groups
        above = int(np.count_nonzero(defined >= bound))
        if above >= FEW:
            return float(stdtr(n - 1, ndtri(above / defined.size) / math.sqrt(n / (n - 1))))
        error = float(defined.std()) * math.sqrt(n / (n - 1))
        gap = self.value - bound
        return float(stdtr(n - 1, gap / error)) if error > 0 else float(gap >= 0)

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """The two-sided interval; None where it cannot be computed."""
        if not 0 < confidence < 1:
            raise OptionError(f"The confidence is {confidence}.", "Give a number between 0 and 1, such as 0.95.")
        tail = (1 - confidence) / 2
        value = self.value if math.isfinite(self.value) else None
        return Interval(value, self.quantile(tail), self.quantile(1 - tail))

    @property
    def sd(self) -> float | None:
        """Standard deviation per patient: the bootstrap standard error × √(patients), unbiased; None if undefined.

        For the mean of one value per patient it is the sample standard deviation. For other statistics it plays the
        same part in `required_cases`.
        """
        if self.quantile(0.5) is None:
            return None
        return float(np.nanstd(self.samples)) * math.sqrt(self.groups * self.groups / (self.groups - 1))


def difference(compressed: Replicates, parent: Replicates) -> Replicates:
    """Compressed − parent, resample by resample. Both must come from one call of `resample` or `resample_means`."""
    return Replicates(
        compressed.value - parent.value,
        compressed.samples - parent.samples,
        min(compressed.groups, parent.groups),
        min(compressed.cases, parent.cases),
    )


def negative(replicates: Replicates) -> Replicates:
    """The same with the other sign."""
    return Replicates(-replicates.value, -replicates.samples, replicates.groups, replicates.cases)


def resample(
    statistics: Mapping[str, Statistic], groups: Sequence[Hashable], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Replicates]:
    """Bootstrap of several statistics on the same resamples of patients.

    Args:
        statistics: name → function of weights (R, N) that returns (R,), NaN where undefined.
        groups: the patient of each case, N in all.
        resamples: how many resamples.
        seed: of the draws.

    Raises:
        OptionError: no resamples.
    """
    patients, case_group = _numbered(groups)
    whole = np.ones((1, len(case_group)))
    values = {name: float(statistic(whole)[0]) for name, statistic in statistics.items()}
    drawn: dict[str, list[Array]] = {name: [] for name in statistics}
    for counts in _draws(patients, len(case_group), resamples, seed):
        weights = counts[:, case_group]
        for name, statistic in statistics.items():
            drawn[name].append(np.asarray(statistic(weights), dtype=np.float64))
    return {
        name: Replicates(values[name], np.concatenate(blocks), patients, len(case_group))
        for name, blocks in drawn.items()
    }


def resample_means(
    values: Array, groups: Sequence[Hashable], *, resamples: int = RESAMPLES, seed: int = 0
) -> list[Replicates]:
    """Bootstrap of the mean over cases of each column of `values`, on the same resamples of patients.

    Args:
        values: (N, M): N cases, M metrics. NaN is undefined and left out of its column's mean.
        groups: the patient of each case, N in all.
        resamples: how many resamples.
        seed: of the draws.

    Returns:
        One entry per column; `groups` and `cases` of it count those that have a value.

    Raises:
        OptionError: no resamples.
    """
    values = np.asarray(values, dtype=np.float64)
    patients, case_group = _numbered(groups)
    defined = np.isfinite(values)
    sums, counts = np.zeros((patients, values.shape[1])), np.zeros((patients, values.shape[1]))
    np.add.at(sums, case_group, np.where(defined, values, 0.0))
    np.add.at(counts, case_group, defined)
    with np.errstate(invalid="ignore"):
        means = sums.sum(0) / counts.sum(0)
        blocks = [(drawn @ sums) / (drawn @ counts) for drawn in _draws(patients, patients, resamples, seed)]
    samples = np.concatenate(blocks)
    return [
        Replicates(float(means[m]), samples[:, m], int(np.count_nonzero(counts[:, m])), int(counts[:, m].sum()))
        for m in range(values.shape[1])
    ]


def bootstrap_mean(
    values: Array,
    groups: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """The mean of `values` (N,) over cases, NaN left out, with its interval by patients (method: see the module).

    Raises:
        OptionError: no resamples, or a confidence outside of 0…1.

    Example:
        >>> bootstrap_mean(np.array([0.5, 0.5, 0.5]), ["a", "b", "c"])
        Interval(value=0.5, low=0.5, high=0.5)
    """
    column = np.asarray(values, dtype=np.float64)[:, None]
    return resample_means(column, groups, resamples=resamples, seed=seed)[0].interval(confidence)


def required_cases(sd: float, margin: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Cases (one per patient) that a paired non-inferiority test needs: ((z₁₋α + z_power)·sd / margin)², rounded up.

    One-sided level `alpha`, a true difference of 0, normal differences (Julious, Statistics in Medicine 2004).

    Raises:
        OptionError: the margin is not above 0.
    """
    if not margin > 0:
        raise OptionError(f"The margin is {margin}.", "Give a margin above 0.")
    quantiles = float(ndtri(1 - alpha) + ndtri(power))
    return max(1, math.ceil((quantiles * sd / margin) ** 2))


def _numbered(groups: Sequence[Hashable]) -> tuple[int, Array]:
    """How many groups there are, and each case's group number, in an order that does not depend on that of cases."""
    number = {group: index for index, group in enumerate(sorted(set(groups), key=str))}
    return len(number), np.array([number[group] for group in groups], dtype=np.intp)


def _draws(groups: int, cases: int, resamples: int, seed: int) -> Iterator[Array]:
    """Blocks of resamples, float64 (R, groups): how often each group was drawn. R shrinks as groups or cases grow."""
    if resamples < 1:
        raise OptionError(f"The number of resamples is {resamples}.", "Give at least 1; 2000 is usual.")
    random = np.random.default_rng(seed)
    rows = max(1, BLOCK // max(cases, groups, 1))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        if groups == 0:
            yield np.zeros((size, 0))
            continue
        drawn = random.integers(0, groups, (size, groups)) + np.arange(size)[:, None] * groups
        yield np.bincount(drawn.ravel(), minlength=size * groups).reshape(size, groups).astype(np.float64)
