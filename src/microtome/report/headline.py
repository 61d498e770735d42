"""The top of the page: the verdict in one sentence, four figures, and what must not be overlooked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from microtome.report import words
from microtome.report.files import Result

EVIDENCE = (
    "This is evidence from the cases measured here, not clearance. It neither replaces the validation and the "
    "regulatory decision of the device's manufacturer nor the judgement of a physician."
)
VERDICTS = {
    True: ("good", "Non-inferior", "The compressed network is non-inferior to its parent."),
    False: ("bad", "Inferior", "The compressed network is inferior to its parent."),
    None: ("unsure", "Not enough cases", "There are not enough cases to tell whether anything was lost."),
}
# Where nothing was decided, and not for want of cases: `verdict.cause`.
WITHOUT = {
    "undefined": "The difference cannot be computed on these cases.",
    "reference": "What would have to be found is in none of these cases: they cannot tell whether anything was lost.",
    "parent": "The parent itself is too weak here: that nothing was lost beside it would say nothing.",
    "agreement": "The two networks agree too little: an equal score of both would be a coincidence.",
    "no parent": "There was no parent to compare with.",
    "not measured": "This machine cannot run the target: nothing was measured.",
}
MOST_NAMED = 3  # metrics in the sentence
UNDECIDED = ("unsure", "No verdict", "No verdict was recorded for this network.")


def main_metric(result: Mapping[str, Any]) -> str:
    """The metric of the verdict, otherwise the first one measured; empty when there is none."""
    named = result["verdict"].get("metric")
    if isinstance(named, str) and named:
        return named
    for source in (result["difference"], *(words.mapping(result[side].get("metrics")) for side in SIDES)):
        for metric in source:
            return str(metric)
    return ""


SIDES = ("parent", "compressed")


def headline(result: Result) -> dict[str, Any]:
    """Everything that the page's header shows."""
    kind, word, sentence = verdict(result)
    reason = words.text(result["verdict"].get("reason"), 1000)
    return {
        "kind": kind,
        "word": word,
        "sentence": sentence,
        # the reason names the bound and the margin; the difference and its interval are the third of the figures
        "because": reason if reason != words.NONE else proof(result),
        "tiles": tiles(result),
        "guess": guess(result),
        "alarms": alarms(result),
        "notes": notes(result),
        "evidence": EVIDENCE,
    }


def verdict(result: Result) -> tuple[str, str, str]:
    """Kind (good, bad, unsure), the word beside the mark, and the sentence."""
    recorded = result["verdict"]
    if not recorded:
        return UNDECIDED
    decision = recorded.get("non_inferior")
    kind, word, sentence = VERDICTS[decision if isinstance(decision, bool) else None]
    if decision is None and recorded.get("cause") in WITHOUT:
        return kind, "No verdict", WITHOUT[str(recorded["cause"])]
    where = _where(result)
    return kind, word, f"{sentence.removesuffix('.')} in {where}." if where and decision is not None else sentence


def lost(result: Mapping[str, Any]) -> list[str]:
    """The metrics that lost more than their margin, those that decided first."""
    entries = [entry for name in ("losses", "others") for entry in result["verdict"].get(name) or ()]
    return [str(words.mapping(entry).get("metric")) for entry in entries]


def _where(result: Mapping[str, Any]) -> str:
    """The structures, classes or metrics that the verdict is about; empty where that is the whole."""
    found = [words.metric_name(str(loss.get("metric"))) for loss in result["verdict"].get("losses") or ()]
    if not found and words.structure(main_metric(result)):
        found = [words.metric_name(main_metric(result))]
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return f"{', '.join(found[:MOST_NAMED])}{more}"


def proof(result: Result) -> str:
    """The numbers behind the verdict in one sentence; empty when there are none."""
    metric = main_metric(result)
    found = words.interval(result["difference"].get(metric))
    if not metric or found.value is None:
        return ""
    parts = [f"{words.metric_name(metric)} changed by {words.change(found.value, metric)}"]
    between = words.spread(result["difference"].get(metric), metric, signed=True)
    if between:
        parts.append(f"95 % interval {between}")
    lower = words.number(result["verdict"].get("lower"))
    if lower is not None:
        parts.append(f"one-sided 95 % bound {words.change(lower, metric)}")
    limit = words.limit(result["verdict"].get("margin"), metric)
    if limit is not None:
        parts.append(f"margin {words.signed(limit)}{words.unit(metric)}")
    return "; ".join(parts) + "."


def tiles(result: Result) -> list[dict[str, str]]:
    """The four big figures, each with a label and a line of detail."""
    parent, compressed = result["parent"], result["compressed"]
    smaller = words.ratio(parent.get("bytes"), compressed.get("bytes"))
    faster = words.ratio(parent.get("latency_ms"), compressed.get("latency_ms"))
    metric = main_metric(result)
    value = result["difference"].get(metric)
    return [
        {
            "value": words.times(smaller),
            "label": "smaller" if smaller is None or smaller >= 1 else "of the parent's size: it grew",
            "detail": f"{words.size(parent.get('bytes'))} → {words.size(compressed.get('bytes'))} on disk",
        },
        {
            "value": words.times(faster),
            "label": "faster than eager fp32" if faster is None or faster >= 1 else "the speed of eager fp32: slower",
            "detail": (
                f"{words.milliseconds(parent.get('latency_ms'))} → {words.milliseconds(compressed.get('latency_ms'))}"
            ),
        },
        {
            "value": words.change(words.interval(value).value, metric),
            "label": f"{words.metric_name(metric) if metric else 'metric'} difference",
            "detail": words.spread(value, metric, signed=True) or "no interval",
        },
        _cases_tile(result),
    ]


def _cases_tile(result: Result) -> dict[str, str]:
    counts, recorded = result["counts"], result["verdict"]
    cases = words.number(counts.get("evaluation"))
    if cases is None:
        cases = words.number(recorded.get("cases"))
    if cases is None and result["cases"]:
        cases = len(result["cases"])
    patients = words.number(counts.get("patients"))
    if patients is None:
        patients = words.number(recorded.get("patients"))
    return {
        "value": words.count(cases),
        "label": "case evaluated" if cases == 1 else "cases evaluated",
        "detail": f"of {words.plural(patients, 'patient')}" if patients is not None else "patients not recorded",
    }


def shortfall(result: Result) -> tuple[int, int] | None:
    """(executed, requested) when fewer layers ran in integers than were asked to, otherwise None."""
    executed = words.number(result["integer"].get("executed"))
    requested = words.number(result["integer"].get("requested"))
    if requested is None or requested <= (executed or 0):
        return None
    return int(executed or 0), int(requested)


def guess(result: Result) -> str:
    """The sentence that marks evidence which rests on a guess; empty where nothing was guessed."""
    if result["input"].get("guessed") is not True:
        return ""
    return (
        f"The pre-processing was guessed from the cohort ({words.text(result['input'].get('pipeline'), 1000)}). "
        "Where the network was trained with another, both networks are measured worse than they are."
    )


def notes(result: Result) -> list[str]:
    """What was guessed, dropped or passed over on the way."""
    return [words.text(line, 1000) for line in result["notes"] if line]


def alarms(result: Result) -> list[str]:
    """What the reader must see before anything else; empty when all is well."""
    found = []
    missing = shortfall(result)
    if missing is not None:
        executed, requested = missing
        amount = "None" if executed == 0 else f"Only {executed}"
        found.append(
            f"{amount} of the {words.plural(requested, 'layer')} that were asked to run in integers did. "
            "The others ran in floating point: this is not the integer network that was asked for. See Layers."
        )
    failed = words.number(result["counts"].get("failed"))
    if failed:
        verb = "is" if failed == 1 else "are"
        found.append(f"{words.plural(failed, 'case')} could not be evaluated and {verb} left out of every figure.")
    found += [words.text(line, 1000) for line in result["warnings"] if line]
    return found
