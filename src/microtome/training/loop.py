"""What any training needs around its steps: batches without end, several processes, a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

import torch
from torch import nn

from microtome.errors import DataError


def endless(batches: Iterable[Any], start: int) -> Iterator[Any]:
    """Yield batches from the one after `start` steps on, epoch after epoch.

    Where `batches` has a length and an attribute `epoch`, that is set and whole epochs are not read to be skipped.

    Raises:
        DataError: there are no batches.
    """
    position = 0
    if isinstance(batches, Sized) and hasattr(batches, "epoch"):  # does not have to read what is skipped
        batches.epoch = start // len(batches)
        position = batches.epoch * len(batches)
    while True:
        before = position
        for batch in batches:
            position += 1
            if position > start:
                yield batch
        if position == before:
            raise DataError("there are no training images.", "Give at least one training case.")


def distributed(module: nn.Module) -> nn.Module:
    """Average gradients over processes, where there are several."""
    if _several():
        return nn.parallel.DistributedDataParallel(module)
    return module


def is_first() -> bool:
    """Whether this process writes: the only one, or the first of several."""
    return not _several() or torch.distributed.get_rank() == 0


def store(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint, in place of the last, when it is whole."""
    scratch = path.with_suffix(".tmp")
    torch.save(dict(state), scratch)
    scratch.replace(path)


def stored(path: Path | None, device: torch.device) -> dict[str, Any] | None:
    """Return what the checkpoint holds, with its tensors on a device; None if there is none."""
    if path is None or not path.exists():
        return None
    found: dict[str, Any] = torch.load(path, map_location=device)
    return found


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
