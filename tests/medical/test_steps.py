"""Steps of the pipeline beyond the usual: each judged by scipy, or worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from microtome.errors import OptionError
from microtome.medical.cleanup import Cleanup, cleaned
from microtome.medical.described import describe
from microtome.medical.foreground import prepare_labels, window_at
from microtome.medical.pipeline import Pipeline, with_fields
from microtome.medical.prepare import prepare, restore
from microtome.medical.resampling import resample
from microtome.medical.sliding import starts, tiles
from microtome.medical.stream import segment_streamed
from microtome.types import Image

FLOAT = 2e-6  # relative to values of about 1, after a sum of some dozens of products in float32


def pipeline(**fields: Any) -> Pipeline:
    return Pipeline(**{"task": "segmentation", "classes": ("background", "spot"), "spatial_dims": 3, **fields})


def volume(shape: tuple[int, ...], spacing: tuple[float, ...] = (1.0, 1.0, 1.0), channels: int = 1) -> Image:
    values = np.random.default_rng(0).normal(size=(channels, *shape)).astype(np.float32)
    return Image(values, np.diag([*spacing, 1.0]))


@pytest.mark.parametrize("target", [(9, 11, 33), (5, 17, 7), (1, 1, 1)])
def test_cubic_interpolation_is_scipys(target: tuple[int, ...]):
    x = np.random.default_rng(1).normal(size=(2, 5, 17, 20)).astype(np.float32)
    factors = [new / old for new, old in zip(target, x.shape[1:], strict=True)]
    wanted = [
        np.clip(ndimage.zoom(c.astype(float), factors, order=3, mode="nearest", grid_mode=True), c.min(), c.max())
        for c in x
    ]
    assert np.abs(resample(x, target, antialias=False, how="cubic") - np.stack(wanted)).max() < FLOAT


def test_the_coarse_axis_is_taken_apart():
    image = volume((12, 10, 6), (1.0, 1.0, 4.0))
    made = prepare(image, pipeline(spacing=(1.3, 0.8, 2.0), coarse=3.0, interpolation="cubic"))
    slices = [
        np.clip(
            ndimage.zoom(plane.astype(float), (9 / 12, 12 / 10), order=3, mode="nearest", grid_mode=True),
            plane.min(),
            plane.max(),
        )
        for plane in np.moveaxis(image.array[0], 2, 0)
    ]
    wanted = np.repeat(np.stack(slices, axis=2), 2, axis=2)  # nearest: each slice twice
    assert made.content == (9, 12, 12)
    assert np.abs(made.array[0] - wanted).max() < FLOAT
    assert made.apart == 2
    assert prepare(volume((12, 10, 6), (1, 1, 2)), pipeline(spacing=(1.3, 0.8, 2.0), coarse=3.0)).apart is None
    assert prepare(volume((12, 10, 6), (1, 4, 4)), pipeline(spacing=(1.0, 1.0, 1.0), coarse=3.0)).apart is None


@pytest.mark.parametrize("apart", [0, 1, 2])
@pytest.mark.parametrize("patch", [(8, 8, 8), None])
def test_scores_come_back_slice_by_slice(apart: int, patch: tuple[int, ...] | None):
    spacing = tuple(4.0 if axis == apart else 1.0 for axis in range(3))
    asked = pipeline(spacing=(1.3, 1.1, 1.2), coarse=3.0, patch=patch, classes=("b", "x", "y"))
    image = volume((9, 10, 11), spacing)
    prepared = prepare(image, asked)

    def stream(batches: Any) -> Any:
        for x in batches:
            yield np.concatenate([x, -x, np.full_like(x, 0.1)], axis=1)

    found = segment_streamed(stream, prepared, asked)
    x = prepared.array
    scores = np.concatenate([x, -x, np.full_like(x, 0.1)])
    places = ((np.arange(image.spatial[apart]) + 0.5) * x.shape[1 + apart] / image.spatial[apart]).astype(int)
    nearby = np.take(scores, places, axis=1 + apart)  # nearest along the coarse axis, linear in each slice
    factors = [1.0, *(new / old for new, old in zip(image.spatial, nearby.shape[1:], strict=True))]
    whole = ndimage.zoom(nearby.astype(float), factors, order=1, mode="nearest", grid_mode=True)
    assert prepared.apart == apart
    assert np.mean(found == whole.argmax(axis=0)) > 0.999  # float32 may turn a tie


def test_axes_as_stored_come_back():
    image = volume((4, 5, 6), (-1.0, 2.0, 3.0))
    made = prepare(image, pipeline(transpose=(2, 0, 1)))
    assert np.array_equal(made.array[0], image.array[0].transpose(2, 0, 1))
    assert np.array_equal(restore(made.array[0], made), image.array[0])
    labels = (image.array[0] > 0).astype(np.uint8)
    assert np.array_equal(restore(prepare_labels(labels, made), made), labels)


def test_normalization_before_resampling():
    image = volume((6, 6, 6))
    first = prepare(image, pipeline(spacing=(2.0, 2.0, 2.0), normalize="zscore", normalize_first=True)).array
    x = image.array - image.array.mean()
    wanted = resample(x / image.array.std(), (3, 3, 3), antialias=False)
    assert np.abs(first - wanted).max() < FLOAT
    after = prepare(image, pipeline(spacing=(2.0, 2.0, 2.0), normalize="zscore")).array
    assert abs(after.std() - 1) < 1e-5
    assert abs(first.std() - 1) > 0.1


def test_channels_are_normalized_each_in_its_way():
    image = volume((4, 4, 4), channels=3)
    asked = pipeline(
        channels=3,
        normalize=("fixed", "minmax", "none"),
        window=((-1.0, 1.0), None, None),
        mean=(0.5, 0.0, 0.0),
        std=(2.0, 1.0, 1.0),
    )
    made = prepare(image, asked).array
    assert np.abs(made[0] - (np.clip(image.array[0], -1, 1) - 0.5) / 2).max() < FLOAT
    assert (made[1].min(), made[1].max()) == (0.0, 1.0)
    assert np.array_equal(made[2], image.array[2])
    assert "normalize fixed / minmax / none" in describe(asked)
    assert Pipeline.from_json(asked.to_json()) == asked


def test_a_masked_z_score_fills_holes_of_all_channels_together():
    image = volume((7, 7, 7), channels=2)
    inside = np.zeros((7, 7, 7), bool)
    inside[1:6, 1:6, 1:6] = True
    array = np.where(inside, image.array + 3, 0).astype(np.float32)
    array[:, 3, 3, 3] = 0  # a hole
    array[1, 2, 2, 2] = 0  # 0 in one channel only
    made = prepare(Image(array, np.eye(4)), pipeline(channels=2, normalize="zscore_masked")).array
    for channel, before in zip(made, array, strict=True):
        values = before[inside]
        assert np.abs(channel[inside] - (values - values.mean()) / values.std()).max() < 1e-5
        assert not channel[~inside].any()


def test_crop_to_what_is_not_zero_with_a_margin():
    array = np.zeros((1, 8, 8, 8), np.float32)
    array[0, 3:5, 2:6, 4] = -1
    made = prepare(Image(array, np.eye(4)), pipeline(crop="nonzero", crop_margin=3))
    assert made.box == (slice(0, 8), slice(0, 8), slice(1, 8))
    exact = prepare(Image(array, np.eye(4)), pipeline(crop="nonzero"))
    assert exact.box == (slice(3, 5), slice(2, 6), slice(4, 5))


def test_zeros_on_both_sides():
    made = prepare(volume((5, 6, 7)), pipeline(divisible=8, padding="both"))
    assert made.start == (1, 1, 0)
    assert np.array_equal(made.array[(slice(None), *made.inner)], volume((5, 6, 7)).array)


def test_slices_with_their_neighbours_are_channels():
    image = volume((4, 6, 5), channels=2)
    asked = pipeline(channels=2, slices=3, patch=(6, 5))
    assert (asked.network_channels, asked.network_dims, asked.input_shape) == (6, 2, (6, 6, 5))
    seen = list(tiles(prepare(image, asked).array, patch=(1, 6, 5), overlap=0.0, slices=3))
    assert len(seen) == 4
    last = [image.array[:, z] for z in (2, 3, 3)]  # the border is repeated
    assert np.array_equal(seen[3], np.concatenate(last))
    assert np.array_equal(window_at(image.array, (3, 3, 2), (1, 6, 5), 3), np.concatenate(last))


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("patch", [(4, 4), None])
def test_a_network_of_slices_runs_on_volumes(slices: int, patch: tuple[int, int] | None):
    image = volume((5, 6, 7))
    asked = pipeline(slices=slices, patch=patch, mirror=(1, 2), transpose=(2, 1, 0))

    def stream(batches: Any) -> Any:
        for x in batches:
            assert x.shape[1] == slices
            middle = x[:, slices // 2]
            yield np.stack([-middle, middle], axis=1)

    found = segment_streamed(stream, prepare(image, asked), asked)
    assert np.array_equal(found, (image.array[0] > 0).astype(np.uint8))


def test_labels_may_be_chosen_before_they_are_brought_back():
    image = volume((6, 6, 6))
    asked = pipeline(spacing=(2.0, 2.0, 2.0), decide="network", patch=(3, 3, 3))

    def stream(batches: Any) -> Any:
        for x in batches:
            yield np.concatenate([-x, x], axis=1)

    prepared = prepare(image, asked)
    found = segment_streamed(stream, prepared, asked)
    wanted = (prepared.array[0] > 0).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert np.array_equal(found, wanted.astype(np.uint8))


def test_windows_a_fixed_step_apart():
    assert starts(20, 8, 0.25, even=False) == (0, 6, 12)
    assert starts(21, 8, 0.25, even=False) == (0, 6, 12, 13)
    assert starts(8, 8, 0.25, even=False) == (0,)
    assert starts(21, 8, 0.25) == (0, 4, 9, 13)


def test_cleanup_of_labels_and_of_masks():
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[0:3, 0:3, 0:3] = 1
    labels[1, 1, 1] = 0  # a hole
    labels[6, 6, 6] = 1
    labels[5:8, 0:2, 0:2] = 2
    filled = cleaned(labels, [Cleanup("fill_holes")])
    assert (filled[1, 1, 1], filled[6, 6, 6]) == (1, 1)
    assert cleaned(labels, [Cleanup("keep_largest", (1,))])[6, 6, 6] == 0
    together = cleaned(labels, [Cleanup("keep_largest", (1, 2), together=True)])
    assert set(np.unique(together)) == {0, 1}
    assert cleaned(labels, [Cleanup("remove_small", voxels=13)]).max() == 1
    masks = np.stack([labels == 1, labels == 2])
    only = cleaned(masks, [Cleanup("keep_largest", (1,))])
    assert not only[0, 6, 6, 6]
    assert np.array_equal(only[1], masks[1])
    assert labels[6, 6, 6] == 1  # the caller's is as it was


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"transpose": (0, 1)}, "must name each axis of 0 to 2"),
        ({"transpose": (0, 1, 2), "orientation": "RAS"}, "exclude one another"),
        ({"slices": 2}, "must be an odd number"),
        ({"slices": 1, "patch": (8, 8, 8)}, "'patch' must have 2 positive values"),
        ({"slices": 1, "mirror": (0,)}, "different axes of 1 to 2"),
        ({"slices": 1, "spatial_dims": 2}, "those of volumes"),
        ({"coarse": 3.0}, "goes with 'spacing'"),
        ({"antialias": True, "interpolation": "cubic"}, "goes with linear interpolation"),
        ({"normalize": ("zscore", "none")}, r"one entry per channel \(1\), not 2"),
        ({"range": (1.0, 0.0), "normalize": "minmax"}, "'range' must rise"),
        ({"range": (-1.0, 1.0)}, "goes only with 'normalize': 'minmax'"),
        ({"cleanup": (Cleanup("keep_largest", (4,)),)}, "must be numbers of 1 to 1"),
        ({"crop_margin": -1}, "must not be negative"),
        ({"sigma": 0.0}, "must be positive"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], message: str):
    with pytest.raises(OptionError, match=message):
        pipeline(**fields)


def test_fields_are_changed_as_their_file_would_have_them():
    changed = with_fields(pipeline(), {"mirror": [0, 2], "cleanup": [{"step": "fill_holes"}]})
    assert (changed.mirror, changed.cleanup) == ((0, 2), (Cleanup("fill_holes"),))
    with pytest.raises(OptionError, match="the nearest known one is 'mirror'"):
        with_fields(pipeline(), {"miror": []})
