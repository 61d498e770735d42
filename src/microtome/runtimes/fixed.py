"""What sessions share whose files take one size, a batch of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from microtome.errors import DataError
from microtome.runtimes.base import answer, arrays, one_by_one
from microtome.types import Array, Batch, Port


class FixedSession(ABC):
    """Runs a batch image by image.

    Attributes:
        target: what the runtime is called.
        inputs: see `Session`.
        outputs: likewise.
    """

    target: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @overload
    def run(self, x: Array) -> Array: ...

    @overload
    def run(self, x: Mapping[str, Array]) -> dict[str, Array]: ...

    def run(self, x: Batch) -> Array | dict[str, Array]:
        """Run an array and return the first output, or all inputs by name and return all outputs by name.

        Raises:
            DataError: an input is missing, unknown, or of another shape than the file's.
        """
        given = arrays(x, self.inputs)
        for array, port in zip(given, self.inputs, strict=True):
            if array.shape[1:] != port.shape:
                raise DataError(
                    f"the file takes {port.name} of shape {port.shape}, not {array.shape[1:]}.",
                    f"Files for {self.target} have one size: export the network with the size that it shall run at.",
                )
        rows = [self._one([array[place : place + 1] for array in given]) for place in range(len(given[0]))]
        joined = [np.concatenate([row[place] for row in rows]) for place in range(len(self.outputs))]
        return answer(x, dict(zip((port.name for port in self.outputs), joined, strict=True)))

    def stream(self, batches: Iterable[Batch]) -> Iterator[Any]:
        """Run inputs of one shape, one after another."""
        return one_by_one(self.run, batches)

    @abstractmethod
    def _one(self, given: Sequence[Array]) -> list[Array]:
        """Run a batch of one: float32 (1, C, *S) of each input → each output, float32."""


def port_of(row: Mapping[str, Any]) -> Port:
    """Return a port as it was noted in a file: its name and its one shape."""
    return Port(row["name"], tuple(row["shape"]), (False,) * (len(row["shape"]) + 1))
