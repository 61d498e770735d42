"""Values of a graph on disk, by node and sample, so that memory does not grow with the number of samples."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from microtome.errors import OutputError

Values = dict[Node, Any]


@dataclass(frozen=True)
class _File:
    """Where a value lies; if it is a tensor, as its bare bytes: reading these takes a tenth of torch's own format."""

    path: Path
    like: Tensor | None  # without memory: type and shape
    device: torch.device | None = None

    def content(self, value: Any) -> memoryview | bytes:
        if self.like is not None:
            return _bytes(value.cpu())
        stream = io.BytesIO()  # torch's own file writer aborts the process when the disk is full
        torch.save(value, stream)
        return stream.getvalue()

    def read(self) -> Any:
        if self.like is None:
            return torch.load(self.path)
        value = torch.empty(self.like.shape, dtype=self.like.dtype)
        with self.path.open("rb") as file:
            file.readinto(_bytes(value))
        return value.to(self.device)


class Store:
    """Values in a folder of their own, one file for each node and sample."""

    def __init__(self, folder: Path) -> None:
        """Make the folder; who made its parent deletes it."""
        folder.mkdir()
        self._folder = folder
        self._files: dict[Node, dict[int, _File]] = {}
        self._made = 0

    def put(self, sample: int, values: Mapping[Node, Any]) -> None:
        """Keep a sample's values, in place of those of the same nodes.

        Raises:
            OutputError: the disk is full.
        """
        for node, value in values.items():
            files = self._files.setdefault(node, {})
            if sample in files:
                path = files[sample].path
            else:
                path = self._folder / str(self._made)
                self._made += 1
            own = _alone(value)
            bare = isinstance(own, Tensor)
            file = _File(path, own.to("meta"), own.device) if bare else _File(path, None)
            try:
                file.path.write_bytes(file.content(own))
                files[sample] = file
            except OSError as error:
                raise OutputError(
                    f"values of the network cannot be kept in {self._folder.parent} ({error.strerror}).",
                    "Set TMPDIR to a folder on a disk with more room, or calibrate with fewer images.",
                ) from error

    def get(self, sample: int, nodes: Iterable[Node]) -> Values:
        """Return a sample's values of some nodes; they may be written into."""
        return {node: self._files[node][sample].read() for node in nodes}

    def keep(self, nodes: Collection[Node]) -> None:
        """Drop the values of all other nodes."""
        for node in set(self._files) - set(nodes):
            for file in self._files.pop(node).values():
                file.path.unlink()


def _alone(value: Any) -> Any:
    """Return a tensor in memory of its own, so that the file holds no more than it."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    return value.contiguous() if value.untyped_storage().nbytes() == value.nbytes else value.clone()


def _bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
