"""`Session.stream` of each runtime: what `run` returns, in order, also when nobody waits for the end."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from microtome.methods.base import Context
from microtome.recipes import read, run
from microtome.runtimes import TARGETS, runtime
from microtome.runtimes.base import Session
from networks import captured, images
from targets import param

# One thread per input sums in another order than all threads for one input do.
ROUNDING = 1e-4
target_and_threads = pytest.mark.parametrize(
    ("target", "threads"), [param(target, threads) for target in TARGETS for threads in (1, 2, 0)]
)


@functools.cache
def exported(target: str) -> Path:
    module, parent = runtime(target), captured("unet2d")
    network = run(read("int8"), parent, Context(images(parent.shape), capabilities=module.capabilities()))
    return module.export(network, Path(tempfile.mkdtemp()))


@functools.cache
def session(target: str, threads: int) -> Session:
    return runtime(target).open_session(exported(target), threads=threads, precision="f32")


def inputs(count: int) -> list[np.ndarray]:
    shape = captured("unet2d").shape
    return [images(shape, seed=seed)[0].numpy()[:1] for seed in range(count)]


@target_and_threads
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 9])
def test_results_are_those_of_run_in_order(target: str, threads: int, count: int):
    opened, batches = session(target, threads), inputs(count)
    results = [np.array(result) for result in opened.stream(iter(batches))]
    assert len(results) == count
    for result, batch in zip(results, batches, strict=True):
        expected = opened.run(batch)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, rtol=0, atol=ROUNDING * np.abs(expected).max())
    if count > 1:
        assert not np.allclose(results[0], results[1], rtol=0, atol=10 * ROUNDING)


@target_and_threads
def test_inputs_are_taken_a_few_at_a_time(target: str, threads: int):
    taken = []

    def batches() -> Iterator[np.ndarray]:
        for batch in inputs(30):
            taken.append(None)
            yield batch

    ahead = []
    for done, _ in enumerate(session(target, threads).stream(batches())):
        ahead.append(len(taken) - done)
    assert max(ahead) <= 9  # 8 streams at most, and one that is being looked at


@target_and_threads
def test_a_consumer_may_stop_early_and_begin_again(target: str, threads: int):
    opened, batches = session(target, threads), inputs(6)
    for stop in (1, 3):
        results = opened.stream(batches)
        for _ in range(stop):
            next(results)
        results.close()
    first, second = opened.stream(batches), opened.stream(reversed(batches))
    for _, (one, other) in enumerate(zip(first, second, strict=True)):
        assert one.shape == other.shape
    assert len(list(opened.stream(batches))) == 6


@target_and_threads
def test_what_goes_wrong_with_an_input_comes_through(target: str, threads: int):
    def batches() -> Iterator[np.ndarray]:
        yield from inputs(4)
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(session(target, threads).stream(batches()))
    assert len(list(session(target, threads).stream(inputs(2)))) == 2


@target_and_threads
def test_a_result_is_valid_until_the_next_one(target: str, threads: int):
    opened, batches = session(target, threads), inputs(8)
    for result, batch in zip(opened.stream(batches), batches, strict=True):
        copy = np.array(result)
        opened.run(batch + 1)
        assert np.array_equal(result, copy)


def test_arrays_are_taken_as_they_come():
    opened, batches = session("openvino", 2), inputs(4)
    turned = [np.asfortranarray(batch).astype(np.float64) for batch in batches]
    for one, other in zip(list(map(np.array, opened.stream(turned))), opened.stream(batches), strict=True):
        assert np.array_equal(one, other)
