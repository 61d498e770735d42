"""Is the compressed network at most a margin worse than its parent?

A one-sided test of the paired difference (compressed − parent), read from its confidence bound as CONSORT for
non-inferiority trials (Piaggio et al., JAMA 2012) and FDA, "Non-Inferiority Clinical Trials to Establish
Effectiveness", 2016, ask: non-inferior if the lower one-sided 95 % bound lies above −margin; inferior if the upper one
lies below −margin; otherwise the cohort cannot tell, and the answer is "not enough cases" with the number that would
do. Bounds come from the bootstrap by patient (`microtome.clinical.statistics`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from microtome.clinical.statistics import CONFIDENCE, Replicates, required_cases
from microtome.errors import OptionError
from microtome.types import Interval

DEFAULT_MARGINS = {"dice": 0.005, "auroc": 0.01}
MINIMUM_PATIENTS = 5  # below, neither an interval nor a normal approximation means anything
ROUNDING = 1e-9  # what float arithmetic may leave of a short decimal number, such as -0.006000000000000002
LOWER_IS_BETTER = frozenset({"hd95"})

NAMES = {"dice": "Dice", "nsd": "NSD", "hd95": "HD95", "auroc": "AUROC", "auprc": "AUPRC"}


@dataclass(frozen=True)
class Verdict:
    """Whether nothing clinical was lost.

    Attributes:
        metric: what was compared, such as `dice`, `dice/anterior` or `auroc`.
        margin: the loss that is still acceptable, above 0.
        cases: cases that the difference rests on.
        patients: patients that it rests on.
        difference: compressed − parent with its two-sided 95 % interval.
        lower_one_sided: the lower one-sided 95 % bound; None where it cannot be computed.
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


def chosen_margin(metric: str, margin: float | None) -> float:
    """The margin to use: `margin`, or the default of the metric (0.005 for Dice, 0.01 for AUROC).

    Raises:
        OptionError: the margin is not above 0, the metric has no default, or lower values of the metric are better.
    """
    if metric.partition("/")[0] in LOWER_IS_BETTER:
        raise OptionError(f"No verdict rests on {metric}: lower is better there.", "Choose dice, nsd or auroc.")
    if margin is None:
        margin = DEFAULT_MARGINS.get(metric.partition("/")[0])
    if margin is None:
        raise OptionError(f"There is no default margin for {metric}.", "Give one with --margin.")
    if not 0 < margin < 1:
        raise OptionError(f"The margin is {margin}.", "Give a margin between 0 and 1, such as 0.005.")
    return margin


def non_inferiority(metric: str, difference: Replicates, *, margin: float | None = None) -> Verdict:
    """The verdict on the paired difference of one metric, higher values being better (method: see the module).

    Args:
        metric: its name, such as `dice`.
        difference: compressed − parent, from `statistics.difference` or `statistics.resample_means`.
        margin: the acceptable loss; None takes the default of the metric.

    Raises:
        OptionError: as `chosen_margin`.
    """
    margin = chosen_margin(metric, margin)
    lower, upper = difference.quantile(1 - CONFIDENCE), difference.quantile(CONFIDENCE)
    answer, reason = _judge(title(metric), margin, difference, lower, upper)
    return Verdict(metric, margin, difference.cases, difference.groups, difference.interval(), lower, answer, reason)


def no_reference(metric: str, *, margin: float | None = None) -> Verdict:
    """The verdict on a cohort without reference labels: none.

    Raises:
        OptionError: as `chosen_margin`.
    """
    reason = "No case has a reference label, so the clinical result cannot be judged."
    return Verdict(metric, chosen_margin(metric, margin), 0, 0, Interval(None, None, None), None, None, reason)


def title(metric: str) -> str:
    """The metric as it is written in a sentence: `dice/anterior` → "Dice (anterior)"."""
    base, _, structure = metric.partition("/")
    return NAMES.get(base, base) + (f" ({structure})" if structure else "")


def _judge(
    name: str, margin: float, difference: Replicates, lower: float | None, upper: float | None
) -> tuple[bool | None, str]:
    patients = f"{difference.groups} patient" + ("" if difference.groups == 1 else "s")
    if difference.groups < MINIMUM_PATIENTS:
        return None, (
            f"Not enough cases: the {name} difference rests on {patients}, and a verdict needs at least "
            f"{MINIMUM_PATIENTS}."
        )
    if lower is None or upper is None:
        return None, f"The {name} difference cannot be computed: a class or structure is missing, or too rare."
    number = _writer(margin, lower, upper)
    bound = f"bound of the one-sided 95 % interval of the {name} difference,"
    if lower > -margin:
        return True, f"The lower {bound} {number(lower)}, lies above the margin of {number(-margin)}."
    if upper < -margin:
        return False, (
            f"Inferior: the upper {bound} {number(upper)}, lies below the margin of {number(-margin)}. "
            f"The loss is larger than what was called acceptable."
        )
    verb = "lies at or below" if lower <= -margin else "reaches"
    return None, (
        f"Not enough cases: the lower {bound} {number(lower)}, {verb} the margin of {number(-margin)}, "
        f"and the upper one, {number(upper)}, does not. {_more(difference, margin, number)}"
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


def _writer(*values: float) -> Callable[[float], str]:
    """A formatter with enough digits that the bounds and the margin can be told apart."""
    for digits in range(4, 12):
        texts = {f"{value:.{digits}f}" for value in (-values[0], *values[1:])}
        if len(texts) == len({-values[0], *values[1:]}):
            break

    def write(value: float) -> str:
        text = f"{value:.{digits}f}"
        text = text.rstrip("0") if abs(float(text) - value) < ROUNDING else text
        return "0" if float(text) == 0 else text.rstrip(".")

    return write
