"""How long work tells what it is doing: verbs get a Progress, and only the command line knows how it looks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Told of stages, and of each step within one."""

    def track(self, items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
        """Pass the items on, one step each."""

    def say(self, text: str) -> None:
        """Tell one line."""


class Silent:
    """Tells nothing: the default in Python."""

    def track(self, items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
        """Pass the items on."""
        return iter(items)

    def say(self, text: str) -> None:
        """Tell nothing."""


class TrainingBar:
    """Shows the steps of training as one stage."""

    def __init__(self, progress: Progress, title: str) -> None:
        """Show nothing before the first step."""
        self._progress, self._title = progress, title
        self._steps: Iterator[int] | None = None
        self._shown = 0

    def step(self, step: int, steps: int, loss: float) -> None:
        """Tell of step number `step` of `steps`; a training that goes on starts in the middle."""
        if self._steps is None:
            self._steps = iter(self._progress.track(range(steps), self._title, steps))
        while self._shown < step:
            next(self._steps, None)
            self._shown += 1
        if step == steps:
            next(self._steps, None)


class Stopwatch:
    """Seconds of each stage, in `laps`."""

    def __init__(self) -> None:
        """Start the first stage."""
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a stage under its name; the next one begins."""
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 6)
        self._last = now

    def split(self, name: str, seconds: float, rest: str) -> None:
        """Give a stage only so many of its seconds, and the rest of them to another."""
        self.laps[rest] = round(max(0.0, self.laps[name] - seconds), 6)
        self.laps[name] = round(seconds, 6)
