from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture

from microtome.errors import DataError, GeometryError, OptionError, ReadError
from microtome.medical.described import describe
from microtome.medical.infer import finish_segmentation, probabilities
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare, resample
from microtome.tasks.guess import default_pipeline
from microtome.types import Case, Image
from plain import classify, segment

RESIZE = 3e-6  # float32 sums of a few products of size 1 to 4; torch computes in float64 here
ROUNDING = 1e-6  # float32, values around 1
CODES = ["".join(codes) for axes in permutations(["RL", "AP", "SI"]) for codes in product(*axes)]


def pipeline(**fields: object) -> Pipeline:
    return Pipeline(**{"task": "segmentation", "classes": ("background", "organ"), **fields})  # type: ignore[arg-type]


def volume(array: np.ndarray, codes: str = "RAS", spacing: tuple[float, ...] = (1, 1, 1)) -> Image:
    """An image (C, I, J, K) whose axes point where `codes` say, with millimetres per step."""
    start = nibabel.orientations.axcodes2ornt(tuple(codes))
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(start):
        affine[int(world), axis] = sign * spacing[axis]
    affine[:3, 3] = [-7, 3, 11]
    return Image(array, affine)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---- the declaration ----


FULL = pipeline(
    classes=("background", "liver", "tumour"),
    channels=2,
    spatial_dims=3,
    orientation="LIA",
    spacing=(1.0, 1.5, 2.0),
    crop="foreground",
    crop_threshold=-200.0,
    window=(-160.0, 240.0),
    percentiles=(0.5, 99.5),
    normalize="fixed",
    mean=(0.5, 0.4),
    std=(0.2, 0.1),
    scale=255.0,
    patch=(96, 96, 64),
    overlap=0.25,
    activation="sigmoid",
    threshold=0.4196,
)


def test_json_keeps_everything():
    assert Pipeline.from_json(FULL.to_json()) == FULL
    assert json.loads(FULL.to_json())["schema"] == 1


def test_json_needs_only_what_has_no_default():
    text = '{"task": "classification", "classes": ["NORMAL", "PNEUMONIA"], "size": [28, 28]}'
    assert Pipeline.from_json(text) == Pipeline("classification", ("NORMAL", "PNEUMONIA"), size=(28, 28))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalise": "unit"}, "'normalise' is not a field of a pipeline; the nearest known one is 'normalize'"),
        ({"xyz": 1}, "'xyz' is not a field of a pipeline."),
        ({"schema": 2}, "schema 2 is not known"),
        ({"channels": "1"}, "'channels' must be whole number, not '1'"),
        ({"channels": True}, "'channels' must be whole number, not True"),
        ({"grayscale": 1}, "'grayscale' must be true or false, not 1"),
        ({"size": [256, 256.5]}, "'size' must be a list of whole numbers or null"),
        ({"size": 256}, "'size' must be a list of whole numbers or null, not 256"),
        ({"window": [0, 1, 2]}, "'window' must be a list of numbers or "),
        ({"overlap": float("nan")}, "'overlap' must be number, not nan"),
        ({"normalize": "zscores"}, "'normalize' must be 'none', 'unit', "),
        ({"normalize": ["units"]}, "'normalize' must be 'none', 'unit', "),
        ({"task": 3}, "'task' must be text, not 3"),
        ({"mirror": [2]}, "'mirror' must name different axes of 0 to 1"),
        ({"mirror": [0, 0]}, "'mirror' must name different axes"),
        ({"skip_empty": 1}, "'skip_empty' must be true or false"),
    ],
)
def test_json_that_does_not_fit_is_refused_with_the_field(change, message):
    values = {**json.loads(pipeline().to_json()), **change}
    with pytest.raises(OptionError) as caught:
        Pipeline.from_json(json.dumps(values))
    assert message in caught.value.problem


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[]", "must be a JSON object"), ('{"task": "segmentation"}', "'classes' is missing")],
)
def test_text_that_is_no_pipeline_is_refused(text, message):
    with pytest.raises(OptionError, match=message):
        Pipeline.from_json(text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"spatial_dims": 1}, "'spatial_dims' must be 2 or 3"),
        ({"patch": (64, 64, 64)}, "'patch' must have 2 positive values"),
        ({"size": (256,)}, "'size' must have 2 positive values"),
        ({"size": (256, 0)}, "'size' must have 2 positive values"),
        ({"spacing": (1.0, 1.0)}, "for volumes only"),
        ({"orientation": "RAS"}, "for volumes only"),
        ({"spatial_dims": 3, "orientation": "RLS"}, "'orientation' must name three axes"),
        ({"spatial_dims": 3, "orientation": "RAX"}, "'orientation' must name three axes"),
        ({"spatial_dims": 3, "orientation": "RA"}, "'orientation' must name three axes"),
        ({"spatial_dims": 3, "size": (8, 8, 8), "spacing": (1.0, 1.0, 1.0)}, "exclude one another"),
        ({"overlap": 1.0}, "'overlap' must be"),
        ({"overlap": -0.1}, "'overlap' must be"),
        ({"divisible": 0}, "'divisible' must be"),
        ({"channels": 0}, "'channels' must be"),
        ({"classes": ()}, "'classes' must hold different names"),
        ({"classes": ("one", "one")}, "'classes' must hold different names"),
        ({"window": (1.0, 1.0)}, "'window' must rise"),
        ({"percentiles": (1.0, 101.0)}, "'percentiles' must rise"),
        ({"threshold": 1.0}, "'threshold' must lie"),
        ({"scale": 0.0, "normalize": "fixed"}, "'scale' must be positive"),
        ({"mean": (0.5,)}, "only with 'normalize': 'fixed'"),
        ({"scale": 255.0, "normalize": "unit"}, "only with 'normalize': 'fixed'"),
        ({"normalize": "fixed", "mean": (0.5,)}, "'std' must have one value per channel"),
        ({"normalize": "fixed", "mean": (0.5, 0.5), "std": (1.0, 1.0)}, "'mean' must have one value per channel"),
        ({"normalize": "fixed", "mean": (0.5,), "std": (0.0,)}, "'std' must be positive"),
    ],
)
def test_a_contradiction_is_refused(fields, message):
    with pytest.raises(OptionError, match=message):
        pipeline(**fields)


@pytest.mark.parametrize("code", CODES)
def test_all_48_orientations_are_known(code):
    assert pipeline(spatial_dims=3, orientation=code).orientation == code


def test_input_shape():
    assert pipeline(channels=3, size=(512, 512)).input_shape == (3, 512, 512)
    assert pipeline(patch=(64, 48)).input_shape == (1, 64, 48)
    assert pipeline().input_shape is None


def test_description():
    assert describe(FULL) == (
        "3-D, 2 channels, orientation LIA, crop to values > -200, resample to 1×1.5×2 mm, clip to -160 … 240, "
        "clip to percentiles 0.5 … 99.5, normalize fixed, windows of 96×96×64, overlap 0.25, sigmoid"
    )
    assert describe(pipeline(divisible=16)) == "2-D, 1 channel, pad to multiples of 16, softmax"


# ---- resampling ----


SIZES = st.lists(st.integers(1, 40), min_size=6, max_size=6)


@given(st.sampled_from([2, 3]), SIZES, st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_resampling_is_that_of_torch(dims, sizes, seed):
    array, target = random(2, *sizes[:dims], seed=seed), tuple(sizes[3 : 3 + dims])
    mode = "bilinear" if dims == 2 else "trilinear"
    expected = torch.nn.functional.interpolate(torch.from_numpy(array).double()[None], size=target, mode=mode)
    result = resample(array, target, antialias=False)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected[0].numpy(), rtol=0, atol=RESIZE)


@given(SIZES, st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_antialiased_resampling_is_that_of_pil(sizes, seed):
    """PIL, not torch: torch 2.13 returns other values for pictures that are one pixel wide."""
    height, width, *target = sizes[:4]
    array = random(2, height, width, seed=seed)
    expected = [Picture.fromarray(x).resize(target[::-1], Picture.Resampling.BILINEAR) for x in array]
    np.testing.assert_allclose(resample(array, target, antialias=True), np.stack(expected), rtol=0, atol=RESIZE)


def test_a_constant_stays_constant_and_the_same_size_is_free():
    array = np.full((1, 30, 41, 20), 3, np.float32)
    np.testing.assert_allclose(resample(array, (77, 13, 20), antialias=False), 3, rtol=ROUNDING)
    assert resample(array, (30, 41, 20), antialias=False) is array


# ---- before the network ----


@given(st.sampled_from(CODES), st.floats(0, 0.3))
@settings(deadline=None)
def test_orientation_is_that_of_nibabel(codes, angle):
    image = volume(random(1, 3, 4, 5), codes, (1, 2, 3))
    turn = np.eye(4)  # an oblique scan: its closest axes count
    turn[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    image = replace(image, affine=turn @ image.affine)
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(image.array[0], image.affine)).get_fdata(dtype="f4")
    result = prepare(image, pipeline(spatial_dims=3, orientation="RAS"))
    assert np.array_equal(result.array[0], expected)


def test_spacing_follows_the_turned_axes():
    image = volume(random(1, 10, 20, 30), "SRA", (3, 1, 2))  # to RAS: 20, 30, 10 voxels of 1, 2, 3 mm
    result = prepare(image, pipeline(spatial_dims=3, orientation="RAS", spacing=(2.0, 2.0, 2.0)))
    assert result.array.shape == (1, 10, 30, 15)
    unturned = prepare(image, pipeline(spatial_dims=3, spacing=(3.0, 2.0, 2.0)))
    assert unturned.array.shape == (1, 10, 10, 30)


def test_crop_is_the_box_of_any_channel_above_the_threshold():
    array = np.full((2, 8, 9), -5.0, np.float32)
    array[0, 2, 3], array[1, 5, 6], array[0, 7, 8] = 4, 7, 3  # 3 is not above 3
    declared = pipeline(channels=2, crop="foreground", crop_threshold=3.0)
    assert prepare(Image(array), declared).box == (slice(2, 6), slice(3, 7))
    empty = replace(declared, crop_threshold=100.0)
    assert prepare(Image(array), empty).array.shape == (2, 8, 9)


@pytest.mark.parametrize(
    ("fields", "values", "expected"),
    [
        ({"normalize": "none"}, np.array([0, 51, 255], np.uint8), [0, 51, 255]),
        ({"normalize": "unit"}, np.array([0, 51, 255], np.uint8), [0, 0.2, 1]),
        ({"normalize": "unit"}, np.array([0, 13107, 65535], np.uint16), [0, 0.2, 1]),
        ({"normalize": "unit"}, np.array([0, 0.2, 1], np.float32), [0, 0.2, 1]),
        ({"normalize": "minmax"}, np.array([-100, 0, 300], np.int16), [0, 0.25, 1]),
        ({"normalize": "minmax", "window": (0.0, 200.0)}, np.array([-100, 100, 150], np.int16), [0, 0.5, 0.75]),
        ({"window": (0.0, 200.0)}, np.array([-100, 100, 300], np.int16), [0, 100, 200]),
        ({"percentiles": (25.0, 75.0)}, np.array([0, 1, 2, 3, 4], np.int16), [1, 1, 2, 3, 3]),
        ({"normalize": "zscore"}, np.array([1, 3], np.int16), [-1, 1]),
        ({"normalize": "zscore_nonzero"}, np.array([0, 1, 3, 0], np.int16), [0, -1, 1, 0]),
        (
            {"normalize": "fixed", "scale": 127.5, "mean": (1.0,), "std": (1.0,)},
            np.array([0, 255], np.uint8),
            [-1, 1],
        ),
        ({"normalize": "fixed", "mean": (2.0,), "std": (4.0,)}, np.array([2, 10], np.uint8), [0, 2]),
    ],
)
def test_intensities(fields, values, expected):
    result = prepare(Image(values[None, None]), pipeline(**fields)).array
    assert result.dtype == np.float32
    np.testing.assert_allclose(result[0, 0], expected, rtol=0, atol=ROUNDING)


def test_channels_are_standardized_each_by_itself():
    array = np.stack([random(20, 30), 1e6 + 1e5 * random(20, 30, seed=1)])
    result = prepare(Image(array), pipeline(channels=2, normalize="zscore")).array
    np.testing.assert_allclose(result.mean(axis=(1, 2)), 0, atol=ROUNDING)
    np.testing.assert_allclose(result.std(axis=(1, 2)), 1, atol=ROUNDING)


@pytest.mark.parametrize("normalize", ["minmax", "zscore", "zscore_nonzero"])
@pytest.mark.parametrize("value", [0, 0.1, 1e6])
def test_a_constant_image_gives_zeros(normalize, value):
    result = prepare(Image(np.full((1, 37, 41), value, np.float32)), pipeline(normalize=normalize))
    assert not result.array.any()


def test_colour_and_gray():
    colour = np.array([200, 100, 50], np.uint8).reshape(3, 1, 1)
    gray = prepare(Image(colour), pipeline(grayscale=True, normalize="unit")).array
    np.testing.assert_allclose(gray, (0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255, rtol=ROUNDING)
    three = {"channels": 3, "normalize": "fixed", "mean": (0.0, 1.0, 2.0), "std": (1.0, 1.0, 1.0)}
    repeated = prepare(Image(colour[:1]), pipeline(**three)).array
    assert np.array_equal(repeated[:, 0, 0], [200, 199, 198])
    both = prepare(Image(colour), pipeline(channels=3, grayscale=True)).array
    assert both.shape == (3, 1, 1)
    assert np.ptp(both) == 0


def test_zeros_are_appended_to_a_multiple_but_not_with_size_or_patch():
    image = Image(np.ones((1, 17, 32), np.uint8))
    padded = prepare(image, pipeline(divisible=16)).array
    assert padded.shape == (1, 32, 32)
    assert padded[:, :17].all()
    assert not padded[:, 17:].any()
    assert prepare(image, pipeline(divisible=16, patch=(8, 8))).array.shape == (1, 17, 32)
    assert prepare(image, pipeline(divisible=16, size=(20, 20))).array.shape == (1, 20, 20)


def test_the_image_is_not_changed():
    array = random(3, 10, 12)
    array.setflags(write=False)
    prepared = prepare(Image(array), pipeline(channels=3, normalize="zscore", window=(-1.0, 1.0))).array
    assert np.array_equal(array, random(3, 10, 12))
    assert not np.array_equal(prepared, array)


@pytest.mark.parametrize(
    ("image", "fields", "error", "message"),
    [
        (Image(np.zeros((1, 4, 4, 4))), {}, GeometryError, "3 spatial axes but the pipeline is 2-D"),
        (Image(np.zeros((1, 4, 4))), {"spatial_dims": 3}, GeometryError, "2 spatial axes but the pipeline is 3-D"),
        (Image(np.zeros((1, 4, 0))), {}, GeometryError, "empty"),
        (Image(np.zeros((3, 4, 4))), {}, DataError, "3 channels but the pipeline expects 1"),
        (Image(np.zeros((4, 4, 4))), {"grayscale": True}, DataError, "4 channels but"),
        (Image(np.zeros((1, 4, 4, 4))), {"spatial_dims": 3, "channels": 4}, DataError, "1 channels but"),
        (Image(np.full((1, 4, 4), np.nan)), {}, DataError, "NaN or infinite"),
        (Image(np.array([[[np.inf, np.inf]]])), {}, DataError, "NaN or infinite"),
        (Image(np.array([[[-np.inf, np.inf]]])), {"normalize": "minmax"}, DataError, "NaN or infinite"),
        (Image(np.array([[[0, 1e300]]])), {}, DataError, "NaN or infinite"),
        (Image(np.zeros((1, 4, 4, 4))), {"spatial_dims": 3, "orientation": "RAS"}, GeometryError, "no affine"),
        (Image(np.zeros((1, 4, 4, 4))), {"spatial_dims": 3, "spacing": (1.0, 1.0, 1.0)}, GeometryError, "no affine"),
        (
            Image(np.zeros((1, 4, 4, 4)), np.diag([1.0, 0, 1, 1])),
            {"spatial_dims": 3, "orientation": "RAS"},
            GeometryError,
            "singular",
        ),
        (
            Image(np.zeros((1, 4, 4, 4)), np.full((4, 4), np.nan)),
            {"spatial_dims": 3, "orientation": "RAS"},
            GeometryError,
            "not finite",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused(image, fields, error, message):
    with pytest.raises(error, match=message):
        prepare(image, pipeline(**fields))


# ---- the way back ----


@st.composite
def labelled(draw: st.DrawFn) -> np.ndarray:
    size = tuple(draw(st.integers(1, 9)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    labels = rng.integers(0, 4, size=size)
    keep = rng.random(size) < draw(st.sampled_from([0.02, 0.3, 1.0]))  # sparse ones leave something to crop
    return labels * keep


@given(
    labelled(),
    st.sampled_from(CODES),
    st.sampled_from([None, *CODES]),
    st.sampled_from([None, "foreground"]),
    st.sampled_from([{"divisible": 1}, {"divisible": 4}, {"patch": (4, 4, 4)}, {"spacing": (1 / 3, 1.0, 1 / 3)}]),
)
@settings(max_examples=150, deadline=None)
def test_a_label_map_comes_back_exactly(labels, codes, orientation, crop, grid):
    """Scores that say what the image says, on the network's grid, give the labels of the image's grid.

    Upsampling by 3 puts every third voxel's centre on a voxel of the image, so that even a change of spacing
    and back is exact.
    """
    scores = np.stack([np.zeros(labels.shape)] + [np.where(labels == k, 1.0, -1.0) for k in (1, 2, 3)])
    declared = pipeline(
        classes=("background", "a", "b", "c"), channels=4, spatial_dims=3, orientation=orientation, crop=crop, **grid
    )
    result = segment(lambda batch: batch, volume(scores, codes), declared)
    assert result.dtype == np.uint8
    assert np.array_equal(result, labels)


def test_a_picture_comes_back_from_another_size():
    disc = np.hypot(*np.mgrid[-30:30, -40:40]) < 20
    image = Image((disc[None] * 200).astype(np.uint8))
    declared = pipeline(size=(64, 64), normalize="unit", activation="sigmoid", crop="foreground")
    result = segment(lambda batch: batch * 20 - 8, image, declared)
    dice = 2 * np.sum(disc & (result == 1)) / (disc.sum() + result.sum())
    assert result.shape == disc.shape
    assert dice > 0.99  # linear interpolation moves the border by less than a tenth of a pixel


@given(st.integers(2, 6), st.integers(0, 100))
@settings(deadline=None, max_examples=20)
def test_argmax_is_that_of_numpy_in_slabs_too(classes, seed):
    scores = np.round(random(classes, 90, 40, 30, seed=seed), 1)  # rounded, so that there are ties
    declared = pipeline(classes=tuple(map(str, range(classes))), spatial_dims=3)
    prepared = prepare(Image(scores[:1]), declared)
    assert np.array_equal(finish_segmentation(scores, prepared, declared), scores.argmax(axis=0))
    sigmoid = replace(declared, classes=("0", *(f"{k}+" for k in range(classes))), activation="sigmoid", threshold=0.7)
    chance = 1 / (1 + np.exp(-scores))
    expected = np.where(chance.max(axis=0) > 0.7, 1 + scores.argmax(axis=0), 0)
    assert np.array_equal(finish_segmentation(scores, prepared, sigmoid), expected)


def test_resampled_scores_decide_not_resampled_labels():
    declared = pipeline(classes=("a", "b", "c"), spatial_dims=3, spacing=(2.0, 2.0, 2.0))
    prepared = prepare(volume(random(1, 12, 10, 8)), declared)
    scores = random(3, *prepared.array.shape[1:], seed=1)
    expected = torch.nn.functional.interpolate(torch.from_numpy(scores)[None], size=(12, 10, 8), mode="trilinear")
    assert np.array_equal(finish_segmentation(scores, prepared, declared), expected[0].argmax(dim=0).numpy())


def test_many_classes_need_two_bytes():
    declared = pipeline(classes=tuple(map(str, range(300))))
    scores = np.eye(300, dtype=np.float32).reshape(300, 300, 1)
    result = finish_segmentation(scores, prepare(Image(np.zeros((1, 300, 1))), declared), declared)
    assert result.dtype == np.uint16
    assert np.array_equal(result[:, 0], np.arange(300))


def test_one_channel_of_probabilities():
    declared = pipeline(activation="none", threshold=0.6)
    image = Image(np.array([[[0.5, 0.6, 0.7]]], np.float32))
    assert np.array_equal(segment(lambda batch: batch, image, declared), [[0, 0, 1]])


def test_infinite_scores_survive_resampling():
    image = Image(np.zeros((1, 8, 8), np.float32))

    def predict(batch: np.ndarray) -> np.ndarray:
        scores = np.zeros((1, 2, 4, 4), np.float32)
        scores[0, 1] = -np.inf
        return scores

    assert not segment(predict, image, pipeline(size=(4, 4))).any()


@pytest.mark.parametrize(
    ("output", "fields", "error", "message"),
    [
        (np.zeros((1, 2, 4, 4)), {}, GeometryError, "input of shape"),
        (np.zeros((1, 3, 8, 8)), {}, DataError, "3 output channels, which does not fit 2 classes and 'softmax'"),
        (np.zeros((1, 1, 8, 8)), {}, DataError, "1 output channels"),
        (np.zeros((1, 2, 8, 8)), {"activation": "sigmoid"}, DataError, "2 output channels"),
        (np.full((1, 2, 8, 8), np.nan), {}, DataError, "The network returned NaN"),
        (np.full((1, 2, 8, 8), np.nan), {"patch": (8, 8)}, DataError, "The network returned NaN"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(output, fields, error, message):
    with pytest.raises(error, match=message):
        segment(lambda batch: output, Image(np.zeros((1, 8, 8))), pipeline(**fields))


# ---- classification ----


def test_probabilities():
    two = pipeline(task="classification")
    sigmoid = replace(two, activation="sigmoid")
    many = replace(two, classes=("a", "b", "c"))
    np.testing.assert_allclose(probabilities([[0, math.log(3)]], two), [[0.25, 0.75]])
    for single in (two, sigmoid):
        np.testing.assert_allclose(probabilities([[math.log(3)]], single), [[0.25, 0.75]])
    np.testing.assert_allclose(probabilities([[1000, 0, 0]], many), [[1, 0, 0]])
    np.testing.assert_allclose(probabilities([[-1000], [1000]], sigmoid), [[1, 0], [0, 1]])
    np.testing.assert_allclose(
        probabilities([[0, 0, math.log(3)]], replace(many, activation="sigmoid")), [[0.5, 0.5, 0.75]]
    )
    np.testing.assert_allclose(probabilities([[0.3]], replace(two, activation="none")), [[0.7, 0.3]])


def test_confident_cases_keep_their_order():
    result = probabilities([[20.0], [25.0]], pipeline(task="classification", activation="sigmoid"))
    assert result[0, 1] < result[1, 1]


def test_classify():
    declared = pipeline(task="classification", size=(4, 4), normalize="unit")
    result = classify(lambda batch: batch.mean(axis=(2, 3)), Image(np.full((1, 9, 9), 255, np.uint8)), declared)
    np.testing.assert_allclose(result, [1 / (1 + math.e), math.e / (1 + math.e)])


@pytest.mark.parametrize("output", [np.zeros((1, 3)), np.zeros((1, 2, 4)), np.zeros(2)])
def test_a_classifier_with_another_shape_is_refused(output):
    with pytest.raises(DataError, match="does not fit 2 classes"):
        classify(lambda batch: output, Image(np.zeros((1, 4, 4))), pipeline(task="classification"))


def test_a_classifier_that_returns_nan_is_refused():
    with pytest.raises(DataError, match="NaN"):
        probabilities([[np.nan, 0]], pipeline(task="classification"))


# ---- the guess ----


@dataclass(frozen=True)
class FakeCohort:
    images: tuple[Image | None, ...]
    task: str = "segmentation"
    classes: tuple[str, ...] = ("background", "organ")
    unnamed: frozenset[int] = frozenset()
    regions: None = None
    regions_order: None = None

    @property
    def cases(self) -> tuple[Case, ...]:
        return tuple(Case(str(i), "p", (Path("x"),), index=i, role="train") for i in range(len(self.images)))

    def image(self, case: Case) -> Image:
        found = self.images[int(case.id)]
        if found is None:
            raise ReadError("truncated")
        return found


def picture(*shape: int, dtype: type = np.uint8) -> Image:
    return Image(np.zeros(shape, dtype))


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([picture(3, 224, 224)] * 3, {"channels": 3, "size": (224, 224), "normalize": "unit"}),
        ([picture(1, 28, 28)], {"size": (28, 28), "normalize": "unit"}),
        ([picture(1, 250, 250)], {"size": (256, 256), "normalize": "unit"}),
        ([picture(1, 64, 64), picture(3, 96, 96)], {"channels": 3, "size": (256, 256), "normalize": "unit"}),
        ([picture(1, 64, 64, dtype=np.uint16)], {"size": (64, 64), "normalize": "minmax"}),
    ],
)
def test_default_for_pictures(images, expected):
    assert default_pipeline(FakeCohort(tuple(images))) == pipeline(**expected)


def test_default_for_volumes():
    def fields(**extra: object) -> Pipeline:
        return pipeline(spatial_dims=3, normalize="zscore", **extra)

    alike = FakeCohort((volume(random(1, 35, 50, 36)), volume(random(1, 33, 60, 36)), None))
    assert default_pipeline(alike) == fields(orientation="RAS", patch=(48, 64, 48))
    turned = FakeCohort(
        (volume(random(1, 100, 20, 40), "SRA", (1, 2, 3)), volume(random(1, 20, 40, 40), "RAS", (4, 3, 2)))
    )
    assert default_pipeline(turned) == fields(orientation="RAS", spacing=(3.0, 3.0, 1.5), patch=(32, 48, 64))
    without_affine = FakeCohort((Image(random(1, 28, 28, 28)),), task="classification")
    assert default_pipeline(without_affine) == fields(task="classification", size=(28, 28, 28))


@pytest.mark.parametrize(
    ("outputs", "activation"), [(None, "softmax"), (4, "softmax"), (3, "sigmoid"), (1, "sigmoid"), (7, "softmax")]
)
def test_default_activation_follows_the_outputs(outputs, activation):
    cohort = FakeCohort((picture(1, 64, 64),), classes=("background", "a", "b", "c"))
    assert default_pipeline(cohort, outputs=outputs).activation == activation


def test_default_refuses_a_mixture_and_says_why_nothing_can_be_read():
    with pytest.raises(GeometryError, match="mixes pictures and volumes"):
        default_pipeline(FakeCohort((picture(1, 64, 64), volume(random(1, 8, 8, 8)))))
    with pytest.raises(ReadError, match="truncated"):
        default_pipeline(FakeCohort((None,)))


def test_importing_needs_no_torch():
    code = "import sys, microtome.medical.infer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
