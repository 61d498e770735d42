"""The task of detection: windows brought together, what is drawn, rows, and boxes in millimetres."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from microtome.errors import DataError
from microtome.medical.detector import Detector
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.tasks.base import Judgement
from microtome.tasks.detection import Detection
from microtome.types import Boxes, Case, Image

DETECTOR = Detector("corners", ("s",), ("b",), overlap=0.3, axes="stored")
PICTURES = Pipeline("detection", ("spot",), activation="none", output="s", keep=("b",), detector=DETECTOR)


def finder(batches: Iterable[dict]) -> Iterator[dict]:
    """A network that finds the box around what is bright; with a score of the share of it that is bright."""
    for batch in batches:
        x = batch["input"][0, 0]
        places = np.argwhere(x > 0.5)
        box = np.zeros(2 * x.ndim)
        if len(places):
            box = np.concatenate([places.min(axis=0), places.max(axis=0) + 1])
        score = 0.9 * min(1.0, len(places) / 24) if len(places) else 0.0
        yield {"s": np.full((1, 1, 1), score, np.float32), "b": box[None, None].astype(np.float32)}


def spot(shape: tuple[int, ...], low: tuple[int, ...], high: tuple[int, ...]) -> Image:
    array = np.zeros((1, *shape), np.float32)
    array[(0, *map(slice, low, high))] = 1
    return Image(array, np.eye(4) if len(shape) == 3 else None)


WINDOWED = (
    ((40, 50), (20, 31), (24, 37), (16, 16)),
    ((10, 50), (3, 31), (7, 37), (16, 16)),
    ((24, 20, 18), (9, 8, 7), (12, 12, 9), (16, 16, 16)),
)


@pytest.mark.parametrize(("shape", "low", "high", "patch"), WINDOWED)
def test_a_box_is_found_once_in_windows_that_overlap(shape: tuple, low: tuple, high: tuple, patch: tuple) -> None:
    pipeline = replace(PICTURES, patch=patch, overlap=0.5, spatial_dims=len(shape))
    image = spot(shape, low, high)
    found = next(Detection().predict(finder, [prepare(image, pipeline)], pipeline))
    best = found[0]
    assert best.tolist() == pytest.approx([0, 0.9, *low, *high])
    assert not any(row[1] == best[1] for row in found[1:])


def test_images_follow_one_another_and_a_broken_one_is_said() -> None:
    def sick(batches: Iterable[dict]) -> Iterator[dict]:
        for k, result in enumerate(finder(batches)):
            yield {**result, "s": result["s"] * np.nan} if k == 1 else result

    pipeline = replace(PICTURES, size=(40, 50))
    images = [spot((40, 50), (2, 3 * k), (6, 3 * k + 6)) for k in range(1, 4)]
    found = list(Detection().predict(sick, [prepare(image, pipeline) for image in images], pipeline))
    assert [isinstance(one, DataError) for one in found] == [False, True, False]
    assert found[2][0, 2:].tolist() == [2, 9, 6, 15]
    assert len(next(Detection().predict(finder, [prepare(Image(np.zeros((1, 40, 50))), pipeline)], pipeline))) == 0


def test_what_is_drawn_and_written() -> None:
    kind, image = Detection(), Image(np.zeros((1, 10, 12)))
    found = np.array([[0, 0.9, 1.2, 2, 3, 5], [0, 0.3, 6, 6, 8, 8]])
    drawn = kind.drawn(found, image, PICTURES)
    assert np.argwhere(drawn).min(axis=0).tolist() == [1, 2]
    assert drawn.sum() == 2 * 3
    rows = kind.rows(found, PICTURES, {"thresholds": [0.25]})
    assert rows[1] == {
        "class": "spot", "score": "0.3", "decision": "1", "x_min": "6", "y_min": "6", "x_max": "8", "y_max": "8",
    }  # fmt: skip
    assert (rows[0]["x_min"], rows[0]["y_min"]) == ("2", "1.2")
    named = [{"name": "b", **row} for row in rows]
    content = kind.collected(named, ["a", "b"], PICTURES)["boxes.json"]
    assert content["annotations"][0]["bbox"] == [2.0, 1.2, 3.0, 1.8]
    assert {entry["image_id"] for entry in content["annotations"]} == {2}
    assert [entry["file_name"] for entry in content["images"]] == ["a", "b"]


def test_an_operating_point_needs_references_and_findings() -> None:
    kind = Detection()
    found = [[[0, 0.9, 1, 2, 3, 5], [0, 0.2, 6, 6, 8, 8]], [[0, 0.6, 1, 1, 4, 4]]]
    cases = [
        Case("a", "p", (), boxes=Boxes((0,), ((1, 2, 3, 5),))),
        Case("b", "q", (), boxes=Boxes((0,), ((1, 1, 4, 4),))),
    ]
    point = kind.operating_point(found, cases, "tuning")
    assert point["thresholds"] == [pytest.approx(0.4)]
    assert kind.operating_point([[], []], cases, "tuning") is None
    assert kind.operating_point(found, [case.without_reference() for case in cases], "tuning") is None


def test_records_survive_json_and_give_a_verdict() -> None:
    kind, image = Detection(), Image(np.zeros((1, 10, 12)))
    parent = np.array([[0, 0.9, 1, 2, 3, 5]])
    record = kind.compare(parent, parent[:0], np.array([[0, 1, 2, 3, 5]]), image, PICTURES)
    rows = [(Case(f"c{k}", f"p{k}", ()), record) for k in range(8)]
    result = kind.summarise(rows, Judgement("froc", classes=("spot",)), None)
    assert result["parent"]["metrics"]["froc"]["value"] == 1.0
    assert result["verdict"]["non_inferior"] is False
    drawn = kind.drawings({**result, "classes": ["spot"]}, [(0.9, 0.0)] * 8)
    assert "FROC" in drawn[0]["svg"]
