"""What a verdict on one metric may not hide: a structure or class that lost, a parent that is no better than chance.

Every structure, class and further metric with a limit (`Metric.guard`, or its margin) is tested for a loss beyond that
limit, one-sided, the other way round from the verdict: what is found is shown to be worse. The level of 5 % holds for
all tests of one metric together (Holm, Scandinavian Journal of Statistics 1979). One loss makes the verdict "inferior".

Where the verdict is on one structure or class (`dice/tumour`), that one is primary: of the others, what lost is said
and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from microtome.clinical.doubts import Doubt
from microtome.clinical.noninferiority import MINIMUM_PATIENTS, Verdict
from microtome.clinical.statistics import CONFIDENCE, Replicates, negative
from microtome.metrics import Metric, about, base, part, title
from microtome.types import Interval

# So many margins: what moved by more than that, for better or worse, no longer behaves as the parent does.
SEVERAL = 3.0
MOST_NAMED = 3
SMALL = 0.0001  # p-values below are not told apart

Json = dict[str, Any]


@dataclass(frozen=True)
class Loss:
    """A metric that lost more than its limit.

    Attributes:
        metric: such as `dice/tumour`.
        margin: its limit, above 0.
        patients: that the difference rests on.
        difference: compressed − parent with its two-sided 95 % interval.
        p: of "it lost no more than that", after Holm's correction; None where patients are too few for a test.
    """

    metric: str
    margin: float
    patients: int
    difference: Interval
    p: float | None

    def to_dict(self) -> Json:
        """An entry of `verdict.losses`."""
        found = self.difference
        return {
            "metric": self.metric,
            "margin": self.margin,
            "patients": self.patients,
            "value": found.value,
            "low": found.low,
            "high": found.high,
            "p": self.p,
        }


def guarded(
    verdict: Verdict,
    differences: Mapping[str, Replicates],
    *,
    doubts: Sequence[Doubt] = (),
    left_out: Sequence[str] = (),
    remarks: Sequence[str] = (),
    support: Mapping[str, int] | None = None,
    own: Mapping[str, Metric] | None = None,
) -> Json:
    """The `verdict` part of `result.json`, with what else must be known before it is believed.

    Args:
        verdict: on the chosen metric.
        differences: compressed − parent of every metric.
        doubts: what forbids "non-inferior".
        left_out: structures that no reference has, and that the means therefore leave out.
        remarks: further sentences that nobody may overlook.
        support: patients that a metric rests on, where these are fewer than those of its difference.
        own: a task's own metrics, beside those of `microtome.metrics`.

    Returns:
        What `Verdict.to_dict` gives, corrected, and `cause` (`margin`, `cases`, `undefined`, `loss`, `reference`,
        `parent`, `agreement`), `losses` (beyond their limits), `others` (the same, but of no weight beside a primary
        structure), `left_out`, and `remarks`.
    """
    primary, found = part(verdict.metric), verdict.to_dict()
    lost, rare = losses(verdict.metric, verdict.margin, differences, support, own)
    rare = [loss for loss in rare if not primary or part(loss.metric) == primary]
    deciding = [loss for loss in lost if not primary or part(loss.metric) == primary]
    others = [loss for loss in lost if loss not in deciding]
    sentences = list(remarks)
    found["cause"] = _cause(verdict, differences)
    if verdict.non_inferior is not False and verdict.patients >= MINIMUM_PATIENTS and deciding:
        found |= {"non_inferior": False, "cause": "loss"}
        found["reason"] = f"{_lost(deciding, own)} {verdict.reason}"
    elif verdict.non_inferior and doubts:
        found |= {"non_inferior": None, "cause": doubts[0].cause}
        found["reason"] = f"{' '.join(doubt.reason for doubt in doubts)} {verdict.reason}"
    elif verdict.non_inferior is None and any(doubt.cause == "reference" for doubt in doubts):
        found |= {"cause": "reference"}
        found["reason"] = f"{' '.join(doubt.reason for doubt in doubts)} {verdict.reason}"
    elif verdict.non_inferior and rare:
        found |= {"non_inferior": None, "cause": "cases"}
        found["reason"] = f"{_few(rare, own)} {verdict.reason}"
    if found["cause"] not in {doubt.cause for doubt in doubts}:
        sentences += [doubt.reason for doubt in doubts]
    if left_out:
        sentences.append(absent(left_out))
    if others:
        sentences.append(f"The verdict is about {primary} alone. {_lost(others, own)}")
    sentences += _strangers(verdict, differences, own)
    return {
        **found,
        "losses": [loss.to_dict() for loss in deciding],
        "others": [loss.to_dict() for loss in others],
        "left_out": list(left_out),
        "remarks": sentences,
    }


def losses(
    metric: str,
    margin: float,
    differences: Mapping[str, Replicates],
    support: Mapping[str, int] | None = None,
    own: Mapping[str, Metric] | None = None,
) -> tuple[list[Loss], list[Loss]]:
    """What lost more than its limit, beyond doubt; and what lost a multiple of it in too few patients to tell.

    Args:
        metric: the one of the verdict, which is not tested again; its structures have its margin.
        margin: of the verdict.
        differences: compressed − parent of every metric.
        support: patients that a metric rests on, where these are fewer than those of its difference.
        own: a task's own metrics, beside those of `microtome.metrics`.

    Returns:
        Both with the largest loss in limits first.
    """
    limits = {name: limit for name in differences if (limit := _limit(name, metric, margin, own)) and name != metric}
    tested: dict[str, dict[str, float]] = {}
    moved = {}
    for name, limit in limits.items():
        moved[name] = _supported(differences[name], (support or {}).get(name))
        chance = _gain(moved[name], name, own).chance_of(-limit)
        if chance is not None and moved[name].groups >= MINIMUM_PATIENTS:
            tested.setdefault(base(name), {})[name] = chance
    corrected = {name: p for family in tested.values() for name, p in holm(family).items()}
    lost, rare = [], []
    for name in sorted(limits, key=lambda name: about(name, own).gain(moved[name].value) / limits[name]):
        p, groups = corrected.get(name), moved[name].groups
        entry = Loss(name, limits[name], groups, moved[name].interval(), p)
        if p is not None and p < 1 - CONFIDENCE:
            lost.append(entry)
        elif groups < MINIMUM_PATIENTS and about(name, own).gain(moved[name].value) <= -SEVERAL * limits[name]:
            rare.append(entry)
    return lost, rare


def holm(chances: Mapping[str, float]) -> dict[str, float]:
    """P-values, corrected for their number: the k-th smallest of m times m − k + 1, never falling, at most 1.

    Example:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    corrected: dict[str, float] = {}
    least = 0.0
    for place, (name, p) in enumerate(sorted(chances.items(), key=lambda entry: entry[1])):
        least = max(least, min(1.0, p * (len(chances) - place)))
        corrected[name] = least
    return corrected


def absent(names: Sequence[str]) -> str:
    """The sentence on structures that no reference has."""
    one = len(names) == 1
    return f"No reference case holds {listed(names)}: the means leave {'it' if one else 'them'} out."


def _limit(name: str, metric: str, margin: float, own: Mapping[str, Metric] | None) -> float | None:
    if base(name) == base(metric):
        return margin
    known = about(name, own)
    return known.margin if known.guard is None else known.guard


def _gain(difference: Replicates, name: str, own: Mapping[str, Metric] | None) -> Replicates:
    return negative(difference) if about(name, own).lower_is_better else difference


def _cause(verdict: Verdict, differences: Mapping[str, Replicates]) -> str:
    if verdict.non_inferior is not None:
        return "margin"
    if not differences:
        return "reference"
    return "cases" if verdict.patients < MINIMUM_PATIENTS or verdict.lower_one_sided is not None else "undefined"


def _supported(difference: Replicates, patients: int | None) -> Replicates:
    return difference if patients is None else replace(difference, groups=min(difference.groups, patients))


def _lost(lost: Sequence[Loss], own: Mapping[str, Metric] | None) -> str:
    """Sentences on what lost most, with its numbers, and on what else did."""
    first, *rest = lost
    also = f" So did {listed([title(loss.metric, own) for loss in rest])}." if rest else ""
    p = first.p or 0.0
    chance = f"p = {p:.2g}" if p >= SMALL else f"p < {SMALL}"
    beyond = f"{title(first.metric, own)} lost more than its limit of {first.margin:g}"
    return f"{beyond}: {_change(first)}, {chance} after Holm's correction.{also}"


def _few(rare: Sequence[Loss], own: Mapping[str, Metric] | None) -> str:
    """Sentences on what seems to have lost most in too few patients, and on what else does."""
    first, *rest = rare
    patients = f"{first.patients} patient" + ("" if first.patients == 1 else "s")
    also = f" So are those of {listed([title(loss.metric, own) for loss in rest])}." if rest else ""
    beyond = f"{title(first.metric, own)} changed by {_change(first)} in {patients}"
    return f"Not enough cases: {beyond}, too few to judge a limit of {first.margin:g}.{also}"


def _change(loss: Loss) -> str:
    """A difference with its sign, and its interval."""
    found = loss.difference
    value = 0.0 if found.value is None else found.value
    if found.low is None or found.high is None:
        return signed(value)
    return f"{signed(value)} ({signed(found.low)} to {signed(found.high)})"


def signed(value: float) -> str:
    """A difference with its sign, to four decimals or what is left of it."""
    return f"{value:+.4f}" if abs(value) >= 0.00005 or value == 0 else f"{value:+.1e}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: `a, b and c`, or `a, b, c and 4 more`."""
    shown = list(names[:MOST_NAMED])
    if len(names) > MOST_NAMED:
        return f"{', '.join(shown)} and {len(names) - MOST_NAMED} more"
    return " and ".join(part for part in (", ".join(shown[:-1]), shown[-1]) if part)


def _strangers(verdict: Verdict, differences: Mapping[str, Replicates], own: Mapping[str, Metric] | None) -> list[str]:
    """A sentence on what moved by several margins, to either side."""
    moved: list[tuple[float, str]] = []
    for name, replicates in differences.items():
        if base(name) != base(verdict.metric) or not abs(replicates.value) >= SEVERAL * verdict.margin:
            continue
        low, high = replicates.quantile(1 - CONFIDENCE), replicates.quantile(CONFIDENCE)
        if name == verdict.metric or (low is not None and high is not None and (low > 0 or high < 0)):
            moved.append((abs(replicates.value) / verdict.margin, name))
    if not moved:
        return []
    moved.sort(key=lambda entry: (entry[1] != verdict.metric, -entry[0]))
    texts = []
    for times, name in moved[:MOST_NAMED]:
        value = differences[name].value
        texts.append(f"{title(name, own)} by {signed(value)}, {times:.1f} margins")
    more = f" and {len(moved) - MOST_NAMED} more" if len(moved) > MOST_NAMED else ""
    return [f"The two networks do not behave alike: {'; '.join(texts)}{more}. Look at single cases."]
