"""What the report asks of a task: the words and plots that are the task's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from microtome.metrics import Metric


class View(Protocol):
    """How a task's results are shown. Numbers are read from the result, never computed."""

    @property
    def OWN(self) -> Mapping[str, Metric]:
        """Descriptions of metrics that are not in `microtome.metrics`."""

    @property
    def RULE(self) -> str:
        """How absent structures count; empty where that cannot be."""

    @property
    def AGREEMENT(self) -> tuple[str, str]:
        """The two halves of "99 % … the … that the parent gives them"."""

    def case_value(self, result: Mapping[str, Any], case: Mapping[str, Any], side: str) -> float | None:
        """Return the number that stands for a case in plots and tables."""

    def case_title(self, result: Mapping[str, Any]) -> str:
        """Return the metric or the word for that number."""

    def worst_first(self, moved: float) -> float:
        """Return the key by which cases are listed, from how far their number moved."""

    def drawings(
        self, result: Mapping[str, Any], pairs: Sequence[tuple[float | None, float | None]]
    ) -> list[dict[str, str]]:
        """Draw the cases: SVG and caption of each plot."""


ViewOf = Callable[[str], View]
"""From a task's name to how it is shown."""
