"""The grids that MONAI resamples to, and the way back, judged by MONAI itself."""

import dataclasses

import numpy as np
import pytest
import torch

from microtome.errors import OptionError
from microtome.medical.foreground import prepare_labels
from microtome.medical.infer import finish_segmentation
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.medical.stream import segment_streamed
from microtome.types import Image

data = pytest.importorskip("monai.data", reason="MONAI is not installed")
transforms = pytest.importorskip("monai.transforms", reason="MONAI is not installed")
ROUNDING = 1e-5  # float32 sums in another order, of values up to 4
VOLUME = Pipeline("segmentation", ("a", "b"), spatial_dims=3, orientation="RAS", align="centres", spacing=(1.5, 1.5, 2))
CASES = [((1, 1, 1), (1.5, 1.5, 2.0)), ((0.8, 0.9, 3.0), (1.5, 1.5, 2.0)), ((1.4995, 1.5, 5.0), (1.5, None, 2.0))]


def volume(spacing, seed=0):
    array = np.random.default_rng(seed).normal(size=(1, 13, 16, 9)).astype(np.float32)
    affine = np.diag([*spacing, 1.0])
    affine[0, 0] *= -1
    affine[:3, 3] = (10, -5, 7)
    return Image(array, affine)


def in_monai(image, *steps):
    given = data.MetaTensor(torch.tensor(image.array), affine=torch.tensor(image.affine))
    return transforms.Compose([transforms.Orientation("RAS", labels=None), *steps])(given)


@pytest.mark.parametrize(("old", "new"), CASES)
def test_spacings_give_the_grid_of_monai(old, new):
    image = volume(old)
    theirs = in_monai(image, transforms.Spacing([n or -1 for n in new]))
    pipeline = Pipeline("segmentation", ("a", "b"), spatial_dims=3, orientation="RAS", spacing=new, align="centres")
    ours = prepare(image, pipeline)
    assert ours.array.shape == tuple(theirs.shape)
    np.testing.assert_allclose(ours.array, theirs.numpy(), atol=ROUNDING)


@pytest.mark.parametrize(("old", "new"), CASES[:2])
@pytest.mark.parametrize("nearest", [False, True])
def test_scores_and_labels_come_back_as_in_monai(old, new, nearest):
    image = volume(old)
    spacing = transforms.Spacing(new)
    there = in_monai(image, spacing)
    prepared = prepare(image, VOLUME)
    scores = there.clone()
    scores.array = there.array.copy()
    theirs = spacing.inverse(scores).numpy()[0][::-1]  # the first axis was turned
    pipeline = dataclasses.replace(VOLUME, activation="none", decide="network" if nearest else "image")
    two = np.concatenate([prepared.array, np.full_like(prepared.array, 0.1)])
    ours = finish_segmentation(two, prepared, pipeline)
    streamed = segment_streamed(lambda batches: (two[None] for _ in batches), prepared, pipeline)
    np.testing.assert_array_equal(ours, streamed)
    if nearest:
        spacing = transforms.Spacing(new, mode="nearest")
        labels = (in_monai(image, transforms.Spacing(new)) < 0.1).float()
        again = in_monai(image, spacing)
        again.array = labels.array
        np.testing.assert_array_equal(ours, spacing.inverse(again).numpy()[0][::-1])
    else:
        certain = np.abs(theirs - 0.1) > ROUNDING
        np.testing.assert_array_equal(ours[certain], (theirs < 0.1)[certain])


def test_references_go_where_the_image_goes():
    image = volume((0.8, 0.9, 3.0))
    whole = Image(np.round(image.array * 4), image.affine)
    theirs = in_monai(whole, transforms.Spacing((1.5, 1.5, 2.0), mode="nearest"))
    labels = prepare_labels(whole.array[0].astype(int), prepare(whole, VOLUME))
    np.testing.assert_array_equal(labels, theirs.numpy()[0])


@pytest.mark.parametrize("size", [(20, 30), (70, 13), (50, 41)])
@pytest.mark.parametrize(("mode", "ours"), [("area", "area"), ("bilinear", "linear"), ("nearest-exact", "nearest")])
def test_sizes_are_those_of_monai(size, mode, ours):
    picture = np.random.default_rng(1).uniform(size=(3, 50, 41)).astype(np.float32)
    pipeline = Pipeline("classification", ("a", "b"), channels=3, size=size, antialias=False, interpolation=ours)
    theirs = transforms.Resize(size, mode=mode)(picture)
    np.testing.assert_allclose(prepare(Image(picture), pipeline).array, theirs.numpy(), atol=ROUNDING)


@pytest.mark.parametrize(
    "fields",
    [
        {"spacing": None},
        {"spacing": (1.0, 1.0, 1.0), "coarse": 3.0},
        {"spacing": (1.0, 1.0, 1.0), "interpolation": "area"},
    ],
)
def test_centres_go_with_a_spacing_alone(fields):
    with pytest.raises(OptionError, match="'align'"):
        Pipeline("segmentation", ("a", "b"), spatial_dims=3, align="centres", **fields)
