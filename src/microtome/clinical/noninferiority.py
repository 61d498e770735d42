"""Is the compressed network at most a margin worse than its parent?

A one-sided test of the paired difference (compressed − parent), read from its confidence bound as CONSORT for
non-inferiority trials (Piaggio et al., JAMA 2012) and FDA, "Non-Inferiority Clinical Trials to Establish
Effectiveness", 2016, ask: non-inferior if the lower one-sided 95 % bound lies above −margin; inferior if the upper one
lies below −margin; otherwise the cohort cannot tell, and the answer is "not enough cases" with the number that would
do. Bounds come from the bootstrap by patient (`microtome.clinical.statistics`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from microtome.clinical.statistics import CONFIDENCE, Replicates, negative, required_cases
from microtome.errors import OptionError
from microtome.metrics import Metric, about, title
from microtome.types import Interval

MINIMUM_PATIENTS = 5  # below, neither an interval nor a normal approximation means anything
ROUNDING = 1e-9  # what float arithmetic may leave of a short decimal number, such as -0.006000000000000002


@dataclass(frozen=True)
class Verdict:
    """Whether nothing clinical was lost.

    Attributes:
        metric: what was compared, such as `dice`, `dice/anterior` or `auroc`.
        margin: the loss that is still acceptable, above 0.
        cases: cases that the difference rests on.
        patients: patients that it rests on.
        difference: compressed − parent with its two-sided 95 % interval.
        lower_one_sided: the one-sided 95 % bound that the verdict rests on, the lower one where higher values are
            better; None where it cannot be computed.
        non_inferior: True, False ("inferior"), or None ("not enough cases").
        reason: why, in full sentences.
    """

    metric: str
    margin: float
    cases: int
    patients: int
    difference: Interval
    lower_one_sided: float | None
    non_inferior: bool | None
    reason: str

    def to_dict(self) -> dict[str, str | float | int | bool | None]:
        """The `verdict` part of `result.json`."""
        return {
            "metric": self.metric,
            "margin": self.margin,
            "cases": self.cases,
            "patients": self.patients,
            "lower": self.lower_one_sided,
            "non_inferior": self.non_inferior,
            "reason": self.reason,
        }


def chosen_margin(metric: str, margin: float | None, own: Mapping[str, Metric] | None = None) -> float:
    """The margin to use: `margin`, or the default of the metric (0.005 for Dice, 0.01 for AUROC).

    Args:
        metric: its name.
        margin: what was asked for.
        own: a task's own metrics, beside those of `microtome.metrics`.

    Raises:
        OptionError: the margin is not above 0, or not below 1 for a share; or the metric has no default.
    """
    known = about(metric, own)
    margin = known.margin if margin is None else margin
    if margin is None:
        raise OptionError(f"There is no default margin for {metric}.", "Give one with --margin.")
    if not (margin > 0 and (known.unit or margin < 1)):
        between = "above 0" if known.unit else "between 0 and 1, such as 0.005"
        raise OptionError(f"The margin is {margin}.", f"Give a margin {between}.")
    return margin


def non_inferiority(
    metric: str, difference: Replicates, *, margin: float | None = None, own: Mapping[str, Metric] | None = None
) -> Verdict:
    """The verdict on the paired difference of one metric (method: see the module).

    Args:
        metric: its name, such as `dice`.
        difference: compressed − parent, from `statistics.difference` or `statistics.resample_means`.
        margin: the acceptable loss; None takes the default of the metric.
        own: a task's own metrics, beside those of `microtome.metrics`.

    Raises:
        OptionError: as `chosen_margin`.
    """
    margin = chosen_margin(metric, margin, own)
    known = about(metric, own)
    # A gain is positive from here on: where lower values are better, both sides of the difference change places.
    gain = negative(difference) if known.lower_is_better else difference
    lower, upper = gain.quantile(1 - CONFIDENCE), gain.quantile(CONFIDENCE)
    answer, reason = _judge(title(metric, own), margin, gain, lower, upper, sign=-1 if known.lower_is_better else 1)
    bound = lower if lower is None or not known.lower_is_better else -lower
    return Verdict(metric, margin, difference.cases, difference.groups, difference.interval(), bound, answer, reason)


def no_reference(metric: str, *, margin: float | None = None, own: Mapping[str, Metric] | None = None) -> Verdict:
    """The verdict on a cohort without reference labels: none.

    Raises:
        OptionError: as `chosen_margin`.
    """
    reason = "No case has a reference label, so the clinical result cannot be judged."
    interval = Interval(None, None, None)
    return Verdict(metric, chosen_margin(metric, margin, own), 0, 0, interval, None, None, reason)


def _judge(
    name: str, margin: float, gain: Replicates, lower: float | None, upper: float | None, *, sign: int
) -> tuple[bool | None, str]:
    """Compare the bounds of the gain with the margin; `sign` turns them back into those of the difference."""
    patients = f"{gain.groups} patient" + ("" if gain.groups == 1 else "s")
    if gain.groups < MINIMUM_PATIENTS:
        return None, (
            f"Not enough cases: the {name} difference rests on {patients}, and a verdict needs at least "
            f"{MINIMUM_PATIENTS}."
        )
    if lower is None or upper is None:
        return None, f"The {name} difference cannot be computed: a class or structure is missing, or too rare."
    write = writer(margin, lower, upper)

    def number(gain: float) -> str:
        return write(sign * gain)

    worse, better = ("lower", "upper") if sign > 0 else ("upper", "lower")
    beyond, within = ("below", "above") if sign > 0 else ("above", "below")
    bound = f"bound of the one-sided 95 % interval of the {name} difference,"
    if lower > -margin:
        return True, f"The {worse} {bound} {number(lower)}, lies {within} the margin of {number(-margin)}."
    if upper < -margin:
        return False, (
            f"Inferior: the {better} {bound} {number(upper)}, lies {beyond} the margin of {number(-margin)}. "
            f"The loss is larger than what was called acceptable."
        )
    verb = f"lies at or {beyond}" if lower <= -margin else "reaches"
    return None, (
        f"Not enough cases: the {worse} {bound} {number(lower)}, {verb} the margin of {number(-margin)}, "
        f"and the {better} one, {number(upper)}, does not. {_more(gain, margin, number)}"
    )


def _more(difference: Replicates, margin: float, number: Callable[[float], str]) -> str:
    """How many cases would decide, if the true difference is the one seen where that is a loss, otherwise 0."""
    room = margin + min(difference.value, 0.0)
    sd = difference.sd or 0.0
    if room <= 0:
        return f"The difference seen, {number(difference.value)}, is beyond the margin: more cases will hardly help."
    unit = "cases" if difference.cases == difference.groups else "patients"
    now = difference.groups
    needed = max(required_cases(sd, room), now + 1)
    return f"About {needed:,} {unit} are needed to decide (sd of the paired differences {sd:.3f}); there are {now:,}."


def writer(*values: float) -> Callable[[float], str]:
    """A formatter of numbers, with enough digits that these values can be told apart."""
    for digits in range(4, 12):
        texts = {f"{value:.{digits}f}" for value in values}
        if len(texts) == len(set(values)):
            break

    def write(value: float) -> str:
        text = f"{value:.{digits}f}"
        text = text.rstrip("0") if abs(float(text) - value) < ROUNDING else text
        return "0" if float(text) == 0 else text.rstrip(".")

    return write
