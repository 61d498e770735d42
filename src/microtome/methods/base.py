"""What every method is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Protocol

from microtome.graph.network import Batch, Network

Batches = Iterable[Batch]
"""Calibration input: tensors (N, C, *S), float32, or several inputs by name; can be iterated more than once and streams
from disk.
"""


class Method(Protocol):
    """Maps a network to a new one. Its fields are its settings.

    `needs` and `leaves` are states of the graph: the recipe checks that each method finds what it needs; `refuses`
    are states in which the method makes no sense.
    """

    needs: ClassVar[frozenset[str]]
    refuses: ClassVar[frozenset[str]]
    leaves: ClassVar[frozenset[str]]

    def __call__(self, network: Network, batches: Batches) -> Network:
        """Return the changed network; the one passed stays as it was."""
