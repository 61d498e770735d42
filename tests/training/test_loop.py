import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from microtome.errors import DataError
from microtome.training import loop

CPU = torch.device("cpu")


class Epochs:
    """Three batches in each epoch, named (epoch, position); notes what is read."""

    def __init__(self) -> None:
        self.epoch = 0
        self.read: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        for position in range(3):
            self.read.append((epoch, position))
            yield epoch, position


@pytest.mark.parametrize("start", [0, 1, 2, 3, 7])
def test_batches_go_on_after_the_steps_that_were_made(start: int):
    assert list(itertools.islice(loop.endless("abc", start), 5)) == [("abc" * 4)[k] for k in range(start, start + 5)]


def test_epochs_that_are_skipped_are_not_read():
    batches = Epochs()
    assert list(itertools.islice(loop.endless(batches, 7), 3)) == [(2, 1), (2, 2), (3, 0)]
    assert batches.read == [(2, 0), (2, 1), (2, 2), (3, 0)]


@pytest.mark.parametrize("start", [0, 5])
def test_no_batches_are_an_error_and_no_endless_loop(start: int):
    with pytest.raises(DataError, match="there are no training images"):
        next(loop.endless([], start))


def test_a_checkpoint_comes_back_and_replaces_the_last(tmp_path):
    path = tmp_path / "half.training"
    assert loop.stored(None, CPU) is None
    assert loop.stored(path, CPU) is None
    loop.store(path, {"step": 1, "module": {"w": torch.zeros(2)}})
    loop.store(path, {"step": 3, "module": {"w": torch.ones(2)}})
    found = loop.stored(path, CPU)
    assert found is not None
    assert (found["step"], found["module"]["w"].tolist()) == (3, [1, 1])
    assert [file.name for file in tmp_path.iterdir()] == ["half.training"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_last(tmp_path, monkeypatch):
    def broken(state: object, file: object) -> None:
        file.write_bytes(b"half")
        raise OSError("the disk is full")

    path = tmp_path / "half.training"
    loop.store(path, {"step": 1})
    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="the disk is full"):
        loop.store(path, {"step": 2})
    assert loop.stored(path, CPU) == {"step": 1}


@pytest.mark.parametrize(("rank", "first"), [(None, True), (0, True), (1, False)])
def test_the_first_process_writes(monkeypatch, rank: int | None, first: bool):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: rank is not None)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    assert loop.is_first() is first


def test_one_process_trains_the_module_itself():  # two: tests/methods/test_finetune.py
    module = nn.Linear(2, 2)
    assert loop.distributed(module) is module
