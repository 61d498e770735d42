"""How long work tells what it is doing: verbs get a Progress, and only the command line knows how it looks."""

from __future__ import annotations

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
