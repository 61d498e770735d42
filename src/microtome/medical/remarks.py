"""What reading the files of cases brought to light: sentences, and the number of cases that each is true of."""

from __future__ import annotations

from collections.abc import Iterable


class Remarks:
    """Grows while a cohort is read. It holds pseudonyms only; what it tells are numbers."""

    def __init__(self) -> None:
        """Begin without any."""
        self._cases: dict[str, set[str]] = {}

    def add(self, case: str, sentences: Iterable[str]) -> None:
        """Note what is true of a case; the same again changes nothing."""
        for sentence in sentences:
            self._cases.setdefault(sentence, set()).add(case)

    def of(self, case: str) -> list[str]:
        """What is true of a case."""
        return [sentence for sentence, cases in list(self._cases.items()) if case in cases]

    @property
    def sentences(self) -> tuple[str, ...]:
        """Such as `3 cases: the mask …`."""
        return tuple(f"{len(of):,} case{'s' * (len(of) != 1)}: {text}" for text, of in list(self._cases.items()))
