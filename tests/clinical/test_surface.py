"""NSD and HD95 by hand in millimetres, against MONAI, and against a distance transform."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from microtome.clinical.overlap import dice
from microtome.clinical.surface import border, hd95, nsd, surface_distances
from microtome.errors import GeometryError, OptionError

EXACT = 1e-9  # float64 sums in another order
MONAI = 1e-5  # MONAI computes in float32
MONAI_MM = 1e-3  # … and so the place of the 95th percentile too: an error of 1e-4 of the gap between two distances

MASKS = arrays(np.uint8, (5, 6), elements=st.integers(0, 1))


def blobs(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Two similar smooth random masks; some touch the edge of the image."""
    noise = np.random.default_rng(seed).normal(size=(2, *shape))
    smooth = [ndimage.gaussian_filter(field, 2.0) for field in noise]
    first = smooth[0]
    second = first + 0.4 * smooth[1]
    return (first > 0.02).astype(np.uint8), (second > 0.02).astype(np.uint8)


def test_two_points_apart_along_each_axis() -> None:
    for axis, expected in enumerate((3.0, 1.5, 0.8)):
        reference, prediction = np.zeros((2, 4, 4, 4), np.uint8)
        reference[1, 1, 1] = 1
        prediction[tuple(2 if a == axis else 1 for a in range(3))] = 1
        spacing = (3.0, 1.5, 0.8)
        assert hd95(prediction, reference, spacing=spacing) == pytest.approx(expected, abs=EXACT)
        assert nsd(prediction, reference, spacing=spacing, tolerance=expected) == 1.0
        assert nsd(prediction, reference, spacing=spacing, tolerance=expected - 0.01) == 0.0


def test_a_longer_bar_by_hand() -> None:
    # Bars one voxel thick, so that every voxel is border: 4 voxels against 6, two of them 2 mm and 4 mm beyond.
    reference, prediction = np.zeros((2, 3, 10), np.uint8)
    reference[1, 2:6] = 1
    prediction[1, 2:8] = 1
    spacing = (5.0, 2.0)
    # Prediction to reference: 0 0 0 0 2 4 mm; 95th percentile at place 4.75 of 0…5: 2 + 0.75·2.
    assert hd95(prediction, reference, spacing=spacing) == pytest.approx(3.5, abs=EXACT)
    assert nsd(prediction, reference, spacing=spacing, tolerance=1.0) == pytest.approx((4 + 4) / 10, abs=EXACT)
    assert nsd(prediction, reference, spacing=spacing, tolerance=2.0) == pytest.approx((5 + 4) / 10, abs=EXACT)


def test_border_of_a_cube_is_all_but_its_core() -> None:
    mask = np.zeros((7, 7, 7), bool)
    mask[1:6, 1:6, 1:6] = True
    assert border(mask).sum() == 5**3 - 3**3


def test_outside_of_the_image_counts_as_outside_of_the_mask() -> None:
    mask = border(np.ones((4, 5), bool))
    assert mask.sum() == 20 - 2 * 3
    assert not mask[1:3, 1:4].any()


def test_absent_structures() -> None:
    empty, some = np.zeros((2, 3, 4, 5), np.uint8)
    some[1, 1, 1] = 1
    spacing = (1.0, 2.0, 0.5)
    diagonal = np.sqrt(3.0**2 + 8.0**2 + 2.5**2)
    assert np.isnan(nsd(empty, empty, spacing=spacing))
    assert np.isnan(hd95(empty, empty, spacing=spacing))
    for prediction, reference in ((some, empty), (empty, some)):
        assert nsd(prediction, reference, spacing=spacing) == 0.0
        assert hd95(prediction, reference, spacing=spacing) == pytest.approx(diagonal, abs=EXACT)


def test_spacing_read_from_a_float32_header_does_not_change_nsd() -> None:
    reference, prediction = np.zeros((2, 3, 10), np.uint8)
    reference[1, 2], prediction[1, 3] = 1, 1
    spacing = (1.0, float(np.float32(0.1)))  # 0.10000000149
    assert nsd(prediction, reference, spacing=spacing, tolerance=0.1) == 1.0


@pytest.mark.parametrize("shape", [(40, 48), (20, 24, 16)])
@pytest.mark.parametrize("seed", range(4))
def test_against_a_distance_transform(seed: int, shape: tuple[int, ...]) -> None:
    prediction, reference = (mask.astype(bool) for mask in blobs(seed, shape))
    spacing = (2.5, 0.7, 1.3)[: len(shape)]
    found = surface_distances(prediction, reference, spacing=spacing)
    ours, theirs = border(prediction), border(reference)
    for distances, points, target in ((found.to_reference, ours, theirs), (found.to_prediction, theirs, ours)):
        expected = ndimage.distance_transform_edt(~target, sampling=spacing)[points]
        np.testing.assert_allclose(distances, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("shape", [(40, 48), (20, 24, 16)])
@pytest.mark.parametrize("seed", range(4))
def test_against_monai(seed: int, shape: tuple[int, ...]) -> None:
    prediction, reference = blobs(seed, shape)
    spacing = (2.5, 0.7, 1.3)[: len(shape)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

        ours, theirs = (torch.from_numpy(np.stack([mask == 0, mask == 1]))[None] for mask in (prediction, reference))
        expected_dice = compute_dice(ours, theirs, include_background=False).item()
        expected_hd95 = compute_hausdorff_distance(ours, theirs, percentile=95, spacing=list(spacing)).item()
        expected_nsd = compute_surface_dice(ours, theirs, class_thresholds=[1.4], spacing=list(spacing)).item()
    assert dice(prediction, reference) == pytest.approx(expected_dice, abs=MONAI)
    assert hd95(prediction, reference, spacing=spacing) == pytest.approx(expected_hd95, abs=MONAI_MM)
    assert nsd(prediction, reference, spacing=spacing, tolerance=1.4) == pytest.approx(expected_nsd, abs=MONAI)


@settings(max_examples=60, deadline=None)
@given(MASKS, MASKS, st.floats(0, 5), st.floats(0, 5))
def test_nsd_is_symmetric_and_grows_with_the_tolerance(
    first: np.ndarray, second: np.ndarray, one: float, other: float
) -> None:
    spacing = (1.7, 0.6)
    low, high = (nsd(first, second, spacing=spacing, tolerance=t) for t in sorted((one, other)))
    np.testing.assert_equal(low, nsd(second, first, spacing=spacing, tolerance=min(one, other)))
    assert np.isnan(low) or 0.0 <= low <= high <= 1.0


def test_a_spacing_that_does_not_fit_is_refused() -> None:
    mask = np.ones((3, 3), np.uint8)
    for spacing in ((1.0,), (1.0, 0.0), (1.0, np.nan)):
        with pytest.raises(GeometryError, match="does not fit an image of shape"):
            hd95(mask, mask, spacing=spacing)


def test_a_negative_tolerance_is_refused() -> None:
    mask = np.ones((3, 3), np.uint8)
    with pytest.raises(OptionError, match="tolerance is -1"):
        nsd(mask, mask, spacing=(1.0, 1.0), tolerance=-1)
