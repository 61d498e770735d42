"""Numbers and names as people read them. Everything that is missing or not finite becomes an en dash."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from microtome import metrics
from microtome.metrics import Metric
from microtome.types import Interval

NONE = "–"
MINUS = "\N{MINUS SIGN}"
COARSE = ("length", "dB")  # units of metrics that are large numbers
# What lengths are measured in while one page is written: millimetres, or pixels where images have no physical grid.
LENGTH: ContextVar[str] = ContextVar("LENGTH", default="mm")
# Metrics that a task has beside those of `microtome.metrics`, while a page of its result is written.
OWN: ContextVar[Mapping[str, Metric]] = ContextVar("OWN", default=MappingProxyType({}))


def number(value: Any) -> float | None:
    """A finite float, or None for everything else (null, NaN, text, true)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None


def mapping(value: Any) -> Mapping[str, Any]:
    """The value when it is a JSON object, otherwise an empty one."""
    return value if isinstance(value, Mapping) else {}


def interval(value: Any) -> Interval:
    """An Interval from `{"value", "low", "high"}` or a bare number."""
    if isinstance(value, Mapping):
        return Interval(number(value.get("value")), number(value.get("low")), number(value.get("high")))
    return Interval(number(value), None, None)


def text(value: Any, limit: int = 400) -> str:
    """One clean line of text: no control characters, no line breaks, cut at `limit`; a dash when there is none."""
    if value is None or value == "":
        return NONE
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def about(metric: str) -> Metric:
    """What is known of a metric, or of a structure's."""
    return metrics.about(metric, OWN.get())


def structure(metric: str) -> str:
    """`anterior` of `dice/anterior`; empty for `dice`."""
    return text(metrics.part(metric)) if metrics.part(metric) else ""


def metric_name(metric: str) -> str:
    """`Dice · anterior` for `dice/anterior`."""
    name = text(about(metric).title)
    return f"{name} · {structure(metric)}" if structure(metric) else name


def unit(metric: str) -> str:
    """` mm` (or ` px`) for distances, a unit of its own where a metric has one, empty for shares."""
    found = about(metric).unit
    return "" if not found else f" {LENGTH.get() if found == 'length' else found}"


@contextmanager
def reading(result: Mapping[str, Any], own: Mapping[str, Metric] | None = None) -> Iterator[None]:
    """Write lengths in the unit that a result was measured in, and call a task's own metrics by their names."""
    length, known = LENGTH.set(str(result.get("length_unit") or "mm")), OWN.set(own or {})
    try:
        yield
    finally:
        LENGTH.reset(length)
        OWN.reset(known)


def plain(value: float | None, decimals: int) -> str:
    """A number with a true minus sign and grouped thousands."""
    return NONE if value is None else f"{value:,.{decimals}f}".replace("-", MINUS)


def score(value: Any, metric: str) -> str:
    """A metric's value: `0.8973`, or `1.85 mm`."""
    converted = number(value)
    if converted is None:
        return NONE
    return plain(converted, _decimals(metric)) + unit(metric)


def _decimals(metric: str) -> int:
    """Two for what is measured in millimetres or decibels, four for all else."""
    return 2 if about(metric).unit in COARSE else 4


def change(value: Any, metric: str) -> str:
    """A difference with its sign: `+0.0004`, or U+2212 and `0.12 mm`."""
    converted = number(value)
    if converted is None:
        return NONE
    shown = plain(converted, _decimals(metric))
    zero = not re.search("[1-9]", shown)
    if zero:
        shown = shown.lstrip(MINUS)
    return ("" if zero or shown.startswith(MINUS) else "+") + shown + unit(metric)


def limit(margin: Any, metric: str) -> float | None:
    """The difference from which on a metric is inferior: minus the margin, or plus it where lower values are better."""
    converted = number(margin)
    if converted is None:
        return None
    return converted if about(metric).lower_is_better else -converted


def signed(value: float) -> str:
    """A number as short as it was given, with its sign: `+1`, or U+2212 and `0.005`."""
    return f"{MINUS if value < 0 else '+'}{abs(value):g}"


def spread(value: Any, metric: str, *, signed: bool = False) -> str:
    """The interval of a metric as `0.8912 to 0.9031`; empty when there is none."""
    bounds = interval(value)
    if bounds.low is None or bounds.high is None:
        return ""
    show = change if signed else score
    return f"{show(bounds.low, metric).removesuffix(unit(metric))} to {show(bounds.high, metric)}"


def significant(value: Any, digits: int = 3) -> str:
    """A number with so many significant digits: `303`, `39.5`, `1.75`, `0.00213`."""
    converted = number(value)
    if converted is None:
        return NONE
    if converted == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(converted)))
    if magnitude < -6 or magnitude > 12:
        return f"{converted:.{digits - 1}e}".replace("-", MINUS)
    return plain(converted, max(0, digits - 1 - magnitude))


def milliseconds(value: Any) -> str:
    """A duration that was measured in milliseconds."""
    converted = number(value)
    if converted is None:
        return NONE
    return f"{significant(converted / 1000)} s" if converted >= 10_000 else f"{significant(converted)} ms"


def seconds(value: Any) -> str:
    """A duration that was measured in seconds: `0.84 s`, `12.0 s`, `3 min 20 s`."""
    converted = number(value)
    if converted is None:
        return NONE
    if converted >= 120:
        return f"{int(converted // 60)} min {round(converted % 60):02d} s".replace("60 s", "59 s")
    return f"{significant(converted)} s"


def size(value: Any) -> str:
    """Bytes in decimal units: `812 B`, `7.41 MB`."""
    converted = number(value)
    if converted is None:
        return NONE
    for name, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(converted) >= factor:
            return f"{significant(converted / factor)} {name}"
    return f"{plain(converted, 0)} B"


def count(value: Any) -> str:
    """A whole number with grouped thousands."""
    return plain(number(value), 0)


def share(value: Any) -> str:
    """A fraction as per cent: `99.91 %`."""
    converted = number(value)
    return NONE if converted is None else f"{plain(100 * converted, 2)} %"


def ratio(before: Any, after: Any) -> float | None:
    """before ÷ after, or None when either is missing or not positive."""
    first, second = number(before), number(after)
    return first / second if first and second and first > 0 and second > 0 else None


def times(value: float | None) -> str:
    """A factor: `3.87×`, `12×`."""
    if value is None:
        return NONE
    return f"{plain(value, 0 if value >= 100 else 1 if value >= 10 else 2)}×"


def shorten(name: str, limit: int = 40) -> str:
    """Keep the end of a long layer name, which says more than its beginning."""
    return name if len(name) <= limit else "…" + name[-(limit - 1) :]


def plural(amount: Any, one: str, many: str = "") -> str:
    """`1 case`, `52 cases`, `– cases`."""
    return f"{count(amount)} {one if number(amount) == 1 else many or one + 's'}"
