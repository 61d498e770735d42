import errno
from pathlib import Path

import pytest
import torch
from torch.fx import Graph

from microtome.errors import OutputError
from microtome.graph.watching.store import Store

GRAPH = Graph()
ONE, OTHER = GRAPH.placeholder("one"), GRAPH.placeholder("other")


def test_what_was_put_comes_back(tmp_path):
    store = Store(tmp_path / "values")
    values = {ONE: torch.randn(2, 3), OTHER: (torch.ones(2), 5)}
    store.put(0, values)
    store.put(1, {ONE: torch.zeros(1)})
    found = store.get(0, [ONE, OTHER])
    assert torch.equal(found[ONE], values[ONE])
    assert torch.equal(found[OTHER][0], torch.ones(2))
    assert found[OTHER][1] == 5
    assert store.get(1, [ONE])[ONE].tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 1, 3)])
def test_tensors_of_any_type_and_shape_come_back(dtype: torch.dtype, shape: tuple[int, ...], tmp_path):
    store, given = Store(tmp_path / "values"), (torch.randn(shape) * 3).to(dtype)
    store.put(0, {ONE: given})
    found = store.get(0, [ONE])[ONE]
    assert (found.dtype, found.shape) == (dtype, given.shape)
    assert torch.equal(found, given)


def test_a_transposed_tensor_comes_back(tmp_path):
    store, given = Store(tmp_path / "values"), torch.randn(3, 4).T
    store.put(0, {ONE: given})
    assert torch.equal(store.get(0, [ONE])[ONE], given)


def test_writing_into_what_came_back_changes_nothing(tmp_path):
    store = Store(tmp_path / "values")
    given = torch.ones(3)
    store.put(0, {ONE: given})
    given.zero_()
    store.get(0, [ONE])[ONE].zero_()
    assert store.get(0, [ONE])[ONE].tolist() == [1, 1, 1]


def test_values_are_replaced_and_dropped_with_their_files(tmp_path):
    store = Store(tmp_path / "values")
    for _ in range(3):
        store.put(0, {ONE: torch.ones(3), OTHER: torch.ones(3)})
    assert len(list((tmp_path / "values").iterdir())) == 2
    store.keep([OTHER])
    assert len(list((tmp_path / "values").iterdir())) == 1
    with pytest.raises(KeyError):
        store.get(0, [ONE])
    store.put(0, {ONE: torch.zeros(3)})
    assert store.get(0, [OTHER])[OTHER].tolist() == [1, 1, 1]


def test_a_view_takes_its_own_bytes_only(tmp_path):
    store = Store(tmp_path / "values")
    store.put(0, {ONE: torch.randn(1000, 1000)[0]})
    (file,) = (tmp_path / "values").iterdir()
    assert file.stat().st_size < 10_000


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(path: Path, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store(tmp_path / "values")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        store.put(0, {ONE: torch.ones(3)})
    assert "TMPDIR" in caught.value.hint
