"""Heads into boxes: against MONAI's coder, against loops, by hand; suppression; the way back to the image."""

import math

import numpy as np
import pytest
import torch
from monai.apps.detection.utils.box_coder import BoxCoder

from microtome.errors import DataError, OptionError
from microtome.medical.decoding import decoded, on_image, suppressed
from microtome.medical.detector import Detector
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.types import Image

FLOAT32 = 1e-4  # MONAI decodes in float32
SIZE = (32, 48)


def pipeline(detector: Detector, *, classes: int = 2, dims: int = 2, activation: str = "sigmoid") -> Pipeline:
    names = tuple("abcdef"[:classes])
    return Pipeline("detection", names, 1, dims, activation=activation, detector=detector)  # type: ignore[arg-type]


def logit(p: float) -> float:
    return math.log(p / (1 - p))


@pytest.mark.parametrize("d", [2, 3])
def test_offsets_from_anchors_are_those_of_monai(d: int) -> None:
    random = np.random.default_rng(0)
    size, stride, sides = (16, 24, 8)[:d], 8, [(6.0, 9.0, 5.0)[:d], (12.0, 10.0, 14.0)[:d]]
    detector = Detector(
        "anchors", ("s",), ("b",), strides=(stride,), anchors=(tuple(sides),), weights=(2.0,) * (2 * d),
        axes="stored", least=0.0, shift=0.5,
    )  # fmt: skip
    grid = tuple(n // stride for n in size)
    scores = random.normal(size=(1, 2 * 1, *grid)).astype(np.float32)
    offsets = random.normal(size=(1, 2 * 2 * d, *grid)).astype(np.float32)
    found = decoded({"s": scores, "b": offsets}, size, pipeline(detector, classes=1, dims=d))

    coder = BoxCoder((2.0,) * (2 * d))
    expected = []
    for place in np.ndindex(*grid):
        for a, side in enumerate(sides):
            centre = (np.array(place) + 0.5) * stride
            anchor = np.concatenate([centre - np.array(side) / 2, centre + np.array(side) / 2])
            own = offsets[(0, slice(a * 2 * d, (a + 1) * 2 * d), *place)]
            box = coder.decode_single(torch.from_numpy(own[None]), torch.from_numpy(anchor[None]).float())[0].numpy()
            expected.append((1 / (1 + np.exp(-scores[(0, a, *place)])), *box))
    expected.sort(key=lambda row: -row[0])
    assert found[:, 1:] == pytest.approx(np.array(expected), abs=FLOAT32)


def test_pictures_have_x_before_y_unless_told_otherwise() -> None:
    detector = Detector("corners", ("s",), ("b",), least=0.0)
    outputs = {"s": np.full((1, 1, 2), 3.0), "b": np.array([[[1.0, 2.0, 11.0, 5.0]]])}
    found = decoded(outputs, SIZE, pipeline(detector))
    assert found[0, 2:].tolist() == [2.0, 1.0, 5.0, 11.0]
    assert sorted(found[:, 0].tolist()) == [0.0, 1.0]


def test_points_give_distances_to_their_sides() -> None:
    detector = Detector("points", ("s",), ("b",), ("c",), strides=(16.0,), by_stride=True, shift=0.5, least=0.2)
    scores, sides, centres = np.full((1, 1, 2, 3), -9.0), np.zeros((1, 4, 2, 3)), np.zeros((1, 1, 2, 3))
    scores[0, 0, 1, 2] = logit(0.8)
    centres[0, 0, 1, 2] = logit(0.45)
    sides[0, :, 1, 2] = [0.5, 0.25, 0.25, 1.0]  # left, top, right, bottom, in strides
    found = decoded({"s": scores, "b": sides, "c": centres}, SIZE, pipeline(detector, classes=1))
    assert found == pytest.approx(np.array([[0, 0.6, 24 - 4, 40 - 8, 24 + 16, 40 + 4]]))


def test_queries_are_shares_of_the_image_and_the_last_class_is_nothing() -> None:
    detector = Detector("queries", ("s",), ("b",), least=0.4, overlap=None)
    scores = np.log(np.array([[[0.7, 0.1, 0.2], [0.1, 0.1, 0.8]]]))
    boxes = np.array([[[0.5, 0.25, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]])  # cx, cy, w, h
    found = decoded({"s": scores, "b": boxes}, SIZE, pipeline(detector, activation="softmax"))
    assert found == pytest.approx(np.array([[0, 0.7, 0, 12, 16, 36]]))


def test_levels_are_flat_or_maps_and_one_output_may_hold_all() -> None:
    random = np.random.default_rng(1)
    anchors = (((8.0, 8.0),), ((16.0, 16.0),))
    names = {"scores": ("s0", "s1"), "boxes": ("b0", "b1")}
    maps = Detector("anchors", **names, strides=(8, 16), anchors=anchors, least=0.0)
    outputs = {}
    for level, grid in enumerate(((4, 6), (2, 3))):
        outputs[f"s{level}"] = random.normal(size=(1, 2, *grid))
        outputs[f"b{level}"] = random.normal(size=(1, 4, *grid))
    found = decoded(outputs, SIZE, pipeline(maps))
    assert len(found) == 2 * (24 + 6)
    flat = {
        kind: np.concatenate([np.moveaxis(outputs[f"{kind}{k}"], 1, -1).reshape(1, -1, n) for k in (0, 1)], axis=1)
        for kind, n in (("s", 2), ("b", 4))
    }
    again = Detector("anchors", ("s",), ("b",), strides=(8, 16), anchors=anchors, least=0.0)
    assert decoded(flat, SIZE, pipeline(again)) == pytest.approx(found)
    whole = Detector("anchors", strides=(8, 16), anchors=anchors, least=0.0)
    joined = {"output": np.concatenate([flat["s"], flat["b"]], axis=2)}
    assert decoded(joined, SIZE, pipeline(whole)) == pytest.approx(found)


def test_of_each_level_the_best_are_kept_and_then_the_best_of_all() -> None:
    detector = Detector("corners", ("s",), ("b",), candidates=3, limit=2, overlap=0.5, least=0.1)
    scores = np.array([[[logit(p)] for p in (0.05, 0.9, 0.3, 0.6, 0.5)]])
    boxes = np.array([[[0, 0, 9, 9], [0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 9], [12, 12, 19, 19]]], float)
    found = decoded({"s": scores, "b": boxes}, SIZE, pipeline(detector, classes=1))
    assert found[:, 1] == pytest.approx([0.9, 0.6, 0.5])
    assert suppressed(found, detector)[:, 1] == pytest.approx([0.9, 0.5])


def test_boxes_come_back_through_padding_resizing_cropping_and_orientation() -> None:
    array = np.zeros((1, 20, 30, 16), np.float32)
    array[0, 4:10, 12:20, 3:9] = 1
    affine = np.array([[0, -2.0, 0, 0], [1.0, 0, 0, 0], [0, 0, -1.5, 0], [0, 0, 0, 1]])
    changes: tuple[dict, ...] = (
        {"orientation": "RAS"},
        {"orientation": "RAS", "spacing": (1.0, 1.0, 1.0), "divisible": 16, "padding": "both"},
        {"transpose": (2, 0, 1), "crop": "nonzero", "crop_margin": 2},
        {"size": (40, 60, 32)},
        {"orientation": "RAS", "spacing": (0.5, 1.0, 0.5), "align": "centres"},
    )
    for how in changes:
        detector = Detector("corners", ("s",), ("b",))
        told = Pipeline("detection", ("a",), 1, 3, activation="sigmoid", detector=detector, **how)
        prepared = prepare(Image(array, affine), told)
        inside = np.argwhere(prepared.array[0] > 0.5)
        box = np.concatenate([inside.min(axis=0), inside.max(axis=0) + 1]).astype(float)
        back = on_image(np.concatenate([[0.0, 0.9], box])[None], prepared)
        assert back[0, 2:] == pytest.approx([4, 12, 3, 10, 20, 9], abs=0.51), how
    outside = on_image(np.array([[0, 0.9, -50.0, -50, -50, -40, -40, -40]]), prepared)
    assert len(outside) == 0


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ({"s": np.zeros((1, 24, 2))}, "no output 'b'"),
        ({"s": np.zeros((1, 24, 3)), "b": np.zeros((1, 24, 4))}, "does not fit 2 numbers for each box"),
        ({"s": np.zeros((1, 25, 2)), "b": np.zeros((1, 25, 4))}, "gives 25 scores .* the declared grid has 24 places"),
        ({"s": np.full((1, 24, 2), np.nan), "b": np.zeros((1, 24, 4))}, "NaN or infinity"),
    ],
)
def test_heads_that_do_not_fit_are_refused(outputs: dict, reason: str) -> None:
    detector = Detector("anchors", ("s",), ("b",), strides=(8,), anchors=(((8.0, 8.0),),))
    with pytest.raises(DataError, match=reason):
        decoded(outputs, SIZE, pipeline(detector))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"head": "anchors", "strides": (8,)}, "'anchors' go with that head"),
        ({"head": "points"}, "'strides' go with anchors and points"),
        ({"head": "queries", "strides": (8,)}, "'strides' go with anchors and points"),
        ({"head": "corners", "scores": ("a",)}, "name outputs together"),
        ({"head": "corners", "least": 1.0}, "'least' must be"),
        ({"head": "corners", "overlap": 2.0}, "'overlap' must be"),
    ],
)
def test_a_detector_that_makes_no_sense_is_refused(fields: dict, reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        Detector(**fields)


def test_a_detector_survives_pipeline_json() -> None:
    told = pipeline(Detector("anchors", ("s",), ("b",), strides=(8.0,), anchors=(((8.0, 8.0),),), weights=(1.0,) * 4))
    assert Pipeline.from_json(told.to_json()) == told
