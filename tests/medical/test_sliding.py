from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.errors import GeometryError
from microtome.medical.sliding import starts, tiles
from plain import sliding_window

# Blending weights add up to one up to float32 rounding: three products and up to 8 sums, each 6e-8 relative.
BLEND = 1e-6


def identity(batch: np.ndarray) -> np.ndarray:
    return batch


@st.composite
def windows(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...], float]:
    dims = draw(st.sampled_from([2, 3]))
    size = tuple(draw(st.integers(1, 13)) for _ in range(dims))
    patch = tuple(draw(st.integers(1, 8)) for _ in range(dims))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    array = rng.uniform(-1, 1, size=(2, *size)).astype(np.float32)
    return array, patch, draw(st.sampled_from([0.0, 0.25, 0.5, 0.75]))


@given(windows(), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_an_identity_network_returns_the_image(window, batch):
    array, patch, overlap = window
    result = sliding_window(identity, array, patch=patch, overlap=overlap, batch=batch)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, array, rtol=0, atol=BLEND)


@given(st.integers(1, 500), st.integers(1, 96), st.floats(0, 0.95))
@settings(deadline=None)
def test_windows_cover_the_axis_evenly_and_overlap_as_asked(size, patch, overlap):
    size = max(size, patch)
    begins = starts(size, patch, overlap)
    steps = np.diff(begins)
    assert begins[0] == 0
    assert begins[-1] + patch == size
    assert all(steps >= 1)
    assert steps.size == 0 or steps.max() - steps.min() <= 1
    assert steps.size == 0 or steps.max() <= max(1, patch * (1 - overlap)) + 1


def test_no_window_more_than_needed():
    assert starts(8, 8, 0.5) == (0,)
    assert starts(16, 8, 0.0) == (0, 8)
    assert starts(16, 8, 0.5) == (0, 4, 8)
    assert starts(9, 8, 0.5) == (0, 1)
    assert len(starts(330, 30, 0.9)) == 101  # 1 - 0.9 is a little less than 0.1


def test_blending_is_that_of_nnunet():
    """The same Gaussian, accumulated and divided by the summed weights at the end, in float64."""
    rng = np.random.default_rng(0)
    array, patch = rng.normal(size=(1, 17, 20)).astype(np.float32), (8, 6)
    outputs = {}

    def predict(batch: np.ndarray) -> np.ndarray:
        outputs[len(outputs)] = rng.normal(size=(1, 3, *patch)).astype(np.float32)
        return outputs[len(outputs) - 1]

    result = sliding_window(predict, array, patch=patch, overlap=0.5)
    axes = [np.exp(-0.5 * ((np.arange(p) - (p - 1) / 2) / (p / 8)) ** 2) for p in patch]
    importance = np.multiply.outer(*axes)
    total, weights = np.zeros((3, 17, 20)), np.zeros((17, 20))
    corners = itertools.product(starts(17, 8, 0.5), starts(20, 6, 0.5))
    for number, (i, j) in enumerate(corners):
        total[:, i : i + 8, j : j + 6] += outputs[number][0] * importance
        weights[i : i + 8, j : j + 6] += importance
    np.testing.assert_allclose(result, total / weights, rtol=0, atol=5 * BLEND)  # scores reach 4 to 5


def test_the_network_sees_one_shape_only_and_float32():
    shapes = []

    def predict(batch: np.ndarray) -> np.ndarray:
        shapes.append((batch.shape, batch.dtype, batch.flags.c_contiguous))
        return batch[:, :1]

    result = sliding_window(predict, np.ones((2, 20, 9), np.float32), patch=(8, 8), overlap=0.5, batch=3)
    assert result.shape == (1, 20, 9)
    assert shapes == [((3, 2, 8, 8), np.float32, True)] * 3  # 4 × 2 windows, in threes


def test_a_small_image_stands_in_the_middle_of_zeros():
    seen = []

    def predict(batch: np.ndarray) -> np.ndarray:
        seen.append(batch[0, 0])
        return batch

    result = sliding_window(predict, np.ones((1, 2, 4), np.float32), patch=(4, 4), overlap=0.5)
    assert np.array_equal(seen[0], [[0] * 4, [1] * 4, [1] * 4, [0] * 4])
    assert np.array_equal(result, np.ones((1, 2, 4)))


def test_one_window_is_returned_unchanged():
    array = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    assert np.array_equal(sliding_window(identity, array, patch=(8, 8), overlap=0.5), array)


@pytest.mark.parametrize("output", [(1, 2, 4, 4), (1, 2), (2, 2, 8, 8), (1, 2, 8, 8, 1)])
def test_an_output_of_another_size_is_refused(output):
    with pytest.raises(GeometryError, match=r"windows of \(8, 8\) into an output of shape"):
        sliding_window(lambda batch: np.zeros(output), np.ones((1, 9, 9), np.float32), patch=(8, 8), overlap=0.5)


def test_tiles_are_what_the_network_gets():
    array = np.random.default_rng(0).normal(size=(1, 20, 5)).astype(np.float32)
    seen = []

    def predict(batch: np.ndarray) -> np.ndarray:
        seen.append(batch[0])
        return batch

    sliding_window(predict, array, patch=(8, 8), overlap=0.5)
    assert np.array_equal(seen, list(tiles(array, patch=(8, 8), overlap=0.5)))


def test_the_image_is_not_changed():
    array = np.ones((1, 9, 9), np.float32)
    array.setflags(write=False)
    result = sliding_window(identity, array, patch=(4, 4), overlap=0.5)
    assert np.array_equal(array, np.ones((1, 9, 9)))
    assert np.allclose(result, array, rtol=0, atol=BLEND)
