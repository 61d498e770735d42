from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from microtome.report import pictures, plots, words


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (words.size(812), "812 B"),
        (words.size(7_410_000), "7.41 MB"),
        (words.milliseconds(1.749), "1.75 ms"),
        (words.milliseconds(12_345), "12.3 s"),
        (words.seconds(200), "3 min 20 s"),
        (words.change(-0.00041, "dice"), "−0.0004"),
        (words.change(-0.00001, "dice"), "0.0000"),
        (words.change(0.121, "hd95/anterior"), "+0.12 mm"),
        (words.score(float("nan"), "dice"), "–"),
        (words.score(True, "dice"), "–"),
        (words.times(3.871), "3.87×"),
        (words.times(words.ratio(10, 0)), "–"),
        (words.share(0.99913), "99.91 %"),
        (words.significant(0.002134), "0.00213"),
        (words.metric_name("nsd/left lung"), "NSD · left lung"),
        (words.spread({"low": -1, "high": 0.5}, "hd95", signed=True), "−1.00 to +0.50 mm"),
        (words.text("a\nb\x00 c"), "a b c"),
    ],
)
def test_numbers_read_well(shown: str, expected: str) -> None:
    assert shown == expected


def test_roc_points_by_hand() -> None:
    # ranked: + (0.9), then a tie of + and − (0.5), then − (0.1)
    false, true = plots.roc_points(np.array([0.5, 0.9, 0.1, 0.5]), np.array([True, True, False, False]))
    assert false.tolist() == [0.0, 0.0, 0.5, 1.0]
    assert true.tolist() == [0.0, 0.5, 1.0, 1.0]


def pixels(uri: str) -> np.ndarray:
    head, data = uri.split(",")
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_a_panel_keeps_the_shape_and_the_way_up() -> None:
    image = np.zeros((20, 40), dtype=np.float32)
    image[:5, :10] = 1.0  # upper left
    drawn = pixels(pictures.panel(image))
    assert drawn.shape[:2] == (210, 420)
    assert drawn[10, 10].min() > 240
    assert drawn[200, 410].max() < 15


def test_a_panel_marks_contours_and_changes() -> None:
    image, mask = np.zeros((30, 30), dtype=np.float32), np.zeros((30, 30), dtype=np.uint8)
    mask[10:20, 10:20] = 1
    red = mask.astype(bool) & (np.arange(30) == 14)
    drawn = pixels(pictures.panel(image, mask, changed=red))
    amber = (drawn[..., 0] > 200) & (drawn[..., 1] > 140) & (drawn[..., 2] < 60)
    assert amber.any()
    assert drawn[210, 203, 0] > 150
    assert drawn[210, 203, 1] < 60
    assert drawn[30, 30].max() == 0


def test_a_mask_that_fills_the_image_and_an_empty_one_are_drawn() -> None:
    image = np.full((3, 1), np.nan, dtype=np.float32)
    assert pixels(pictures.panel(image, np.ones((3, 1), dtype=np.uint8))).any()
    assert not pixels(pictures.panel(image, np.zeros((3, 1), dtype=np.uint8))).any()


def test_long_plots_and_wide_ranges_are_drawn() -> None:
    rows = [(f"layer{place}", -1.0, 10.0 ** (place % 6)) for place in range(80)]
    drawn = plots.ranges(rows, name="ranges")
    assert f"layer{plots.MAX_RANGES - 1}<" in drawn
    assert f"layer{plots.MAX_RANGES}<" not in drawn
    many = np.linspace(0, 1, plots.CROWDED + 1)
    assert "data:image/png" in plots.pairs(many, many, name="cases", what="Dice")
