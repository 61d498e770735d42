"""Streamed segmentation against `segment`, whose order of operations is the reference."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.errors import DataError, GeometryError, OptionError
from microtome.medical import windows
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.medical.stream import segment_each, segment_streamed
from microtome.medical.windows import streamable
from microtome.types import Image
from plain import segment

Predict = Callable[[np.ndarray], np.ndarray]
# Of voxels: scores blended as a difference, or interpolated in another order of axes, round differently in the last
# bit; random scores are that near to one another in less than one of a million voxels.
SAME = 0.9999
NAMES = ("background", "a", "b", "c", "d")


def streamed(predict: Predict) -> Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]:
    """Results in one piece of memory that the next one overwrites, as a runtime's may."""

    def stream(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        ahead = 3
        batches, waiting = iter(batches), []
        for batch in batches:
            waiting.append(batch)
            if len(waiting) == ahead:
                yield from once(predict(waiting.pop(0)))
        for batch in waiting:
            yield from once(predict(batch))

    def once(output: np.ndarray) -> Iterator[np.ndarray]:
        result = np.array(output)
        yield result
        result[...] = np.nan

    return stream


def network(channels: int, seed: int = 0) -> Predict:
    """Scores that depend on the value, on the place within the window, and on chance."""
    rng = np.random.default_rng(seed)
    slopes, offsets = rng.normal(size=channels), rng.normal(size=channels) / 4

    def predict(x: np.ndarray) -> np.ndarray:
        place = np.sin(np.indices(x.shape[2:]).sum(0) * 0.7)
        shape = (1, channels, *(1,) * (x.ndim - 2))
        scores = x[:, :1] * slopes.reshape(shape) + offsets.reshape(shape) + 0.3 * place * slopes[::-1].reshape(shape)
        return scores.astype(np.float32)

    return predict


def pipeline(outputs: int, dims: int, **fields: object) -> tuple[Pipeline, int]:
    """A pipeline whose network has so many outputs: softmax, or sigmoid where that leaves a class less."""
    sigmoid = fields.get("activation") == "sigmoid"
    names = NAMES[: outputs + sigmoid]
    return Pipeline("segmentation", names, spatial_dims=dims, **fields), outputs  # type: ignore[arg-type]


def image(shape: tuple[int, ...], seed: int = 0, affine: np.ndarray | None = None) -> Image:
    return Image(np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32), affine)


def both(predict: Predict, x: Image, p: Pipeline, **options: object) -> tuple[np.ndarray, np.ndarray]:
    return segment(predict, x, p), segment_streamed(streamed(predict), prepare(x, p), p, **options)  # type: ignore[arg-type]


def assert_same(expected: np.ndarray, actual: np.ndarray) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert len(np.unique(expected)) > 1
    assert np.mean(actual == expected) >= SAME


@st.composite
def tasks(draw: st.DrawFn) -> tuple[Image, Pipeline, int, int]:
    dims = draw(st.sampled_from([2, 3]))
    size = tuple(draw(st.integers(1, 17)) for _ in range(dims))
    patch = draw(st.none() | st.tuples(*[st.integers(1, 9)] * dims))
    sigmoid = draw(st.booleans())
    outputs = draw(st.sampled_from([1, 2, 3] if sigmoid else [2, 3, 4]))
    p, _ = pipeline(
        outputs,
        dims,
        activation="sigmoid" if sigmoid else "softmax",
        threshold=draw(st.sampled_from([0.5, 0.3])),
        patch=patch,
        overlap=draw(st.sampled_from([0.0, 0.25, 0.5, 0.75])),
    )
    return image(size, draw(st.integers(0, 99))), p, outputs, draw(st.integers(1, 3))


@given(tasks())
@settings(max_examples=150, deadline=None)
def test_labels_are_those_of_segment(task):
    x, p, outputs, batch = task
    expected, actual = both(network(outputs), x, p, batch=batch if p.patch else 1)
    assert np.array_equal(actual, expected)


@pytest.mark.parametrize(
    ("outputs", "activation"),  # softmax of one channel says nothing
    [(2, "softmax"), (4, "softmax"), (1, "sigmoid"), (2, "sigmoid"), (4, "sigmoid")],
)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 2.1), (2.0, 0.6, 1.0), (0.25, 2.0, 3.0)])
def test_scores_come_back_from_another_spacing(outputs: int, activation: str, spacing: tuple[float, ...]):
    p, _ = pipeline(outputs, 3, activation=activation, spacing=spacing, patch=(8, 8, 8), orientation="LIA")
    affine = np.array([[0, -1.5, 0, 3], [0.9, 0, 0, 1], [0, 0, 1.1, 2], [0, 0, 0, 1.0]])
    assert_same(*both(network(outputs), image((23, 30, 17), affine=affine), p))


@pytest.mark.parametrize("size", [(40, 30, 9), (5, 70, 33), (9, 1, 2)])
def test_scores_come_back_from_another_size(size: tuple[int, ...]):
    p, outputs = pipeline(3, 3, size=size)
    assert_same(*both(network(outputs), image((23, 30, 17)), p))


def test_crop_flips_and_padding_are_undone():
    values = np.zeros((1, 40, 21, 30), np.float32)
    values[:, 5:31, 3:18, 6:23] = np.random.default_rng(0).uniform(1, 2, size=(26, 15, 17))
    affine = np.diag([-1.0, 1.0, -2.0, 1.0])
    for fields in ({"patch": (16, 16, 16)}, {"divisible": 8}, {"patch": (8, 8, 8), "spacing": (1.0, 0.8, 1.5)}):
        p, outputs = pipeline(2, 3, crop="foreground", orientation="PIR", normalize="zscore", **fields)
        expected, actual = both(network(outputs), Image(values, affine), p)
        assert_same(expected, actual)
        assert not actual[:5].any()


def test_pictures_of_another_size_take_the_other_way():
    p, outputs = pipeline(3, 2, size=(32, 24))
    x = image((70, 61))
    assert not streamable(prepare(x, p), p)
    assert np.array_equal(*both(network(outputs), x, p))


def averaged(predict: Predict, axes: tuple[int, ...]) -> Predict:
    def run(x: np.ndarray) -> np.ndarray:
        flips = [[2 + a for a in axes_] for n in range(len(axes) + 1) for axes_ in itertools.combinations(axes, n)]
        return np.mean([np.flip(predict(np.flip(x, axis)), axis) for axis in flips], axis=0, dtype=np.float64)

    return run


@pytest.mark.parametrize("axes", [(0,), (2, 1), (0, 1, 2)])
@pytest.mark.parametrize("patch", [(8, 12, 8), None])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_mirroring_averages_over_all_flips(axes: tuple[int, ...], patch: tuple[int, ...] | None, activation: str):
    p, outputs = pipeline(3, 3, patch=patch, activation=activation, threshold=0.6)  # not 0.5: a sum is no average
    x = image((20, 17, 11))
    predict = network(outputs)
    mirrored = segment_streamed(streamed(predict), prepare(x, p), replace(p, mirror=axes), batch=2 if patch else 1)
    assert_same(segment(averaged(predict, axes), x, p), mirrored)
    assert not np.array_equal(mirrored, segment(predict, x, p))


def test_windows_that_do_not_overlap():
    p, outputs = pipeline(2, 3, patch=(8, 8, 8), overlap=0.0)
    x = image((20, 17, 11))
    calls = []

    def predict(batch: np.ndarray) -> np.ndarray:
        calls.append(len(batch))
        return network(outputs)(batch)

    result = segment_streamed(streamed(predict), prepare(x, p), p)
    assert len(calls) == 3 * 3 * 2
    assert_same(segment(network(outputs), x, p), result)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("where", [slice(0, 9), slice(40, 49), slice(90, 100), slice(0, 0)])
def test_windows_without_content_are_skipped_when_asked(activation: str, where: slice):
    p, outputs = pipeline(3, 3, patch=(8, 8, 8), activation=activation, threshold=0.4)
    x = Image(np.zeros((1, 100, 17, 11), np.float32))
    x.array[:, where] = 1 + np.random.default_rng(0).random((1, *x.array[0, where].shape))
    seen = []

    def predict(batch: np.ndarray) -> np.ndarray:
        seen.append(batch)
        scores = np.full((1, outputs, *batch.shape[2:]), -1.0, np.float32)
        scores[:, :1] = 0.0 if activation == "softmax" else -1.0
        scores[:, 1:2] = np.where(batch > 0, batch, -1.0)
        return scores

    expected, actual = segment(predict, x, p), None
    calls, seen[:] = len(seen), []
    actual = segment_streamed(streamed(predict), prepare(x, p), replace(p, skip_empty=True))
    assert len(seen) < calls
    assert all(batch.any() for batch in seen)
    # the content's border may move by the windows that were skipped, its inside may not
    assert np.array_equal(actual[where.start : where.stop], expected[where.start : where.stop])
    assert not actual[x.array[0] == 0].any() or activation == "sigmoid"
    assert actual.any() == bool(where.stop)
    assert segment_streamed(streamed(predict), prepare(x, p), p).any() == bool(where.stop)


@pytest.mark.parametrize("outputs", [2, 3])
@pytest.mark.parametrize("axes", [(), (0, 2)])
@pytest.mark.parametrize("batch", [1, 3])
def test_windows_in_a_row_that_hold_one_value_run_once(outputs: int, axes: tuple[int, ...], batch: int, monkeypatch):
    p, _ = pipeline(outputs, 3, patch=(8, 8, 8), channels=2)
    x = Image(np.zeros((2, 70, 17, 11), np.float32))
    x.array[0, 20:40] = -1.0
    x.array[:, 52:55, 4:9] = np.random.default_rng(0).normal(size=(2, 3, 5, 11))
    constant: list[bytes] = []

    def predict(tiles: np.ndarray) -> np.ndarray:
        constant.extend({tile.tobytes() for tile in tiles if all(np.ptp(channel) == 0 for channel in tile)})
        return network(outputs)(tiles)

    def run() -> np.ndarray:
        constant.clear()
        return segment_streamed(streamed(predict), prepare(x, p), replace(p, mirror=axes), batch=batch)

    once = run()
    assert len(constant) == 3  # zero, another value, and zero again
    monkeypatch.setattr(windows, "_constant", lambda _: None)
    assert np.array_equal(run(), once)
    assert len(constant) > 6
    assert len(np.unique(once)) > 1


def test_values_that_differ_in_any_bit_are_not_the_same():
    p, _ = pipeline(2, 2, patch=(4, 4), overlap=0.0)
    x = Image(np.zeros((1, 4, 16), np.float32))
    x.array[..., 4:8] = -0.0
    x.array[..., 9] = -0.0

    def predict(batch: np.ndarray) -> np.ndarray:
        return np.concatenate([np.full(batch.shape, 0.5, np.float32), np.signbit(batch).astype(np.float32)], axis=1)

    labels = segment_streamed(streamed(predict), prepare(x, p), p)
    assert np.array_equal(labels, np.signbit(x.array[0]))


@pytest.mark.parametrize("patch", [(4, 4), None])
def test_equal_scores_are_background(patch: tuple[int, ...] | None):
    p, _ = pipeline(2, 2, patch=patch)
    result = segment_streamed(streamed(lambda x: np.repeat(x, 2, axis=1)), prepare(image((9, 9)), p), p)
    assert not result.any()


@pytest.mark.parametrize("outputs", [2, 3])
@pytest.mark.parametrize("patch", [(4, 4), None])
def test_nan_is_refused_and_infinity_is_not(outputs: int, patch: tuple[int, ...] | None):
    p, _ = pipeline(outputs, 2, patch=patch)
    x = image((9, 10))

    def broken(value: float) -> Predict:
        def predict(batch: np.ndarray) -> np.ndarray:
            scores = network(outputs)(batch)
            scores[:, :, 2, 3] = value
            return scores

        return predict

    with pytest.raises(DataError, match="NaN"):
        segment_streamed(streamed(broken(np.nan)), prepare(x, p), p)
    assert np.array_equal(*both(broken(np.inf), x, p))


def test_nan_in_the_padding_does_not_matter():
    p, outputs = pipeline(2, 2, divisible=8)

    def predict(batch: np.ndarray) -> np.ndarray:
        scores = network(outputs)(batch)
        scores[:, :, 9:] = np.nan
        return scores

    assert np.array_equal(*both(predict, image((9, 10)), p))


@pytest.mark.parametrize("size", [(40, 30, 9), (5, 70, 33)])
def test_infinite_scores_can_be_resampled(size: tuple[int, ...]):
    p, _ = pipeline(3, 3, size=size)

    def predict(batch: np.ndarray) -> np.ndarray:
        scores = network(3)(batch)
        scores[:, 1, :2] = np.inf
        scores[:, 0, 2:] = -np.inf
        return scores

    assert_same(*both(predict, image((23, 30, 17)), p))


def test_outputs_that_do_not_fit_are_refused():
    p, _ = pipeline(2, 2, patch=(4, 4))
    x = prepare(image((9, 9)), p)
    with pytest.raises(GeometryError, match=r"windows of \(4, 4\)"):
        segment_streamed(streamed(lambda b: b[:, :, :2].repeat(2, 1)), x, p)
    with pytest.raises(DataError, match="3 output channels"):
        segment_streamed(streamed(network(3)), x, p)
    whole, _ = pipeline(2, 2)
    with pytest.raises(GeometryError, match="into an output of shape"):
        segment_streamed(streamed(lambda b: b[:, :, :2].repeat(2, 1)), prepare(image((9, 9)), whole), whole)


def test_a_batch_that_makes_no_sense_is_refused():
    p, _ = pipeline(2, 2, patch=(4, 4))
    with pytest.raises(OptionError, match="batch must be"):
        segment_streamed(streamed(network(2)), prepare(image((9, 9)), p), p, batch=0)


def test_the_network_is_let_go_when_its_output_is_refused():
    p, _ = pipeline(2, 2, patch=(4, 4))
    closed = []

    def stream(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        try:
            for batch in batches:
                yield np.full((1, 2, *batch.shape[2:]), np.nan, np.float32)
        finally:
            closed.append(True)

    with pytest.raises(DataError, match="NaN") as caught:
        segment_streamed(stream, prepare(image((9, 9)), p), p)
    assert caught.value is not None
    assert closed  # although the traceback still holds the frames


@pytest.mark.parametrize("outputs", [2, 3])
@pytest.mark.parametrize("spacing", [None, (2.0, 1.0, 1.0)])
def test_the_scores_of_the_whole_image_are_never_held(outputs: int, spacing: tuple[float, ...] | None):
    p, _ = pipeline(outputs, 3, patch=(16, 32, 32), spacing=spacing)
    x = prepare(image((160, 96, 96), affine=np.eye(4)), p)
    tracemalloc.start()
    try:
        segment_streamed(streamed(network(outputs)), x, p)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    whole = 4 * outputs * 160 * 96 * 96
    assert peak < whole / 2


def test_the_image_is_not_changed():
    p, outputs = pipeline(2, 2, patch=(4, 4))
    x = prepare(image((9, 9)), p)
    x.array.setflags(write=False)
    before = x.array.copy()
    segment_streamed(streamed(network(outputs)), x, replace(p, mirror=(0,)))
    assert np.array_equal(x.array, before)


def counted(predict: Predict, calls: list[int]) -> Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]:
    """As `streamed`; notes how many inputs each stream got."""

    def stream(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        calls.append(0)

        def counting() -> Iterator[np.ndarray]:
            for batch in batches:
                calls[-1] += 1
                yield batch

        yield from streamed(predict)(counting())

    return stream


@pytest.mark.parametrize("patch", [(8, 8, 8), (32, 32, 32), None])
def test_many_images_go_through_one_stream_where_their_shape_is_one(patch: tuple[int, ...] | None):
    p, outputs = pipeline(3, 3, patch=patch)
    images = [image(shape, seed) for seed, shape in enumerate([(9, 9, 9), (20, 8, 11), (3, 4, 5), (20, 8, 11)])]
    calls: list[int] = []
    results = segment_each(counted(network(outputs), calls), (prepare(x, p) for x in images), p)
    for x, labels in zip(images, results, strict=True):
        assert np.array_equal(labels, segment(network(outputs), x, p))
    assert len(calls) == (4 if patch is None else 1)
    if patch == (32, 32, 32):
        assert calls == [4]


@pytest.mark.parametrize("outputs", [2, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_image_that_fails_does_not_stop_the_others(outputs: int, value: float):
    p, _ = pipeline(outputs, 2, patch=(8, 8))
    images = [image((30, 20), seed) for seed in range(5)]
    images[2].array[0, 3, 3] = 1000.0  # in the first of many windows: the others are on their way

    def predict(batch: np.ndarray) -> np.ndarray:
        scores = network(outputs)(batch)
        scores[np.broadcast_to(batch == 1000.0, scores.shape)] = value
        return scores

    results = list(segment_each(streamed(predict), [prepare(x, p) for x in images], p))
    assert len(results) == 5
    for number, (x, labels) in enumerate(zip(images, results, strict=True)):
        if number == 2 and np.isnan(value):
            assert isinstance(labels, DataError)
        else:
            assert np.array_equal(labels, segment(predict, x, p))


def test_images_without_any_window_keep_their_place():
    p, outputs = pipeline(2, 2, patch=(8, 8), skip_empty=True)
    blank = Image(np.zeros((1, 12, 9), np.float32))
    images = [blank, image((20, 9), 1), blank, blank, image((9, 20), 2), blank]
    calls: list[int] = []
    results = list(segment_each(counted(network(outputs), calls), [prepare(x, p) for x in images], p))
    assert [labels.shape for labels in results] == [x.spatial for x in images]
    assert [bool(labels.any()) for labels in results] == [False, True, False, False, True, False]
    assert len(calls) == 1
