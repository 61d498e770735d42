from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from report_packages import classification, segmentation, write_package

from microtome.report import diagnosis, diagnosis_plots, files
from microtome.report.diagnosis_plots import Choice, GridView, LayerLoss
from microtome.report.html import write_report
from microtome.tasks import task

PARTS = {
    "sensitivity": "Layers that the output feels",
    "trials": "What was tried",
    "pareto": "Size against loss",
    "training": "<h3>Training",
}


def html(tmp_path: Path, result: dict[str, Any]) -> str:
    return write_report(write_package(tmp_path / "package", result, arrays=False), task).read_text(encoding="utf-8")


def shown(tmp_path: Path, **fields: Any) -> dict[str, Any]:
    folder = write_package(tmp_path / "package", {**segmentation(), **fields}, arrays=False)
    return diagnosis.diagnosis(files.read_result(folder))


def test_the_section_says_which_layer_stands_out_and_shows_all_parts(tmp_path: Path) -> None:
    page = html(tmp_path, segmentation())
    for part in (*PARTS.values(), "Grids with the most rounding error", 'href="#diagnosis"'):
        assert part in page, part
    for expected in (
        "Most is lost in model.bottom.conv1 (w4 a8)", "14.3 dB at the output", "All layers together leave 12.8 dB",
        "This layer stands out", "--skip model.bottom.conv1", "not shown", "lower bound −0.0100",
        "could not run: it is too small.", "9.5 dB",
    ):  # fmt: skip
        assert expected in page, expected
    chosen = re.findall(r'<tr class="strong"><th scope="row">([a-z]+) <span class="tag">chosen', page)
    assert chosen == ["reconstruct"]


def test_without_any_of_it_there_is_no_section(tmp_path: Path) -> None:
    page = html(tmp_path, classification())
    assert "diagnosis" not in page
    assert not any(part in page for part in PARTS.values())


@pytest.mark.parametrize("key", PARTS)
def test_each_part_stands_on_its_own(tmp_path: Path, key: str) -> None:
    alone = {**classification(), key: segmentation()[key]}
    page = html(tmp_path, alone)
    assert [name for name, title in PARTS.items() if title in page] == [key]
    assert "Grids with the most" not in page


def test_a_loss_that_is_spread_and_a_diagnosis_cut_short_are_said(tmp_path: Path) -> None:
    found = segmentation()["sensitivity"]
    for place, row in enumerate(found["layers"]):
        row["alone_db"] = 30.0 + place
    page = html(tmp_path, {**segmentation(), "sensitivity": {**found, "complete": False, "reference": "own"}})
    assert "No single layer stands out" in page
    assert "This layer stands out" not in page
    assert "The time for this was up" in page
    assert "compared with itself" in page


def test_many_layers_leave_out_those_that_lose_least(tmp_path: Path) -> None:
    row = segmentation()["sensitivity"]["layers"][0]
    rows = [{**row, "name": f"layer{place}", "alone_db": 60.0 - place / 2} for place in range(60)]
    found = shown(tmp_path, sensitivity={"layers": rows})
    assert found["layers_more"] == 60 - diagnosis_plots.MAX_LAYERS
    assert ">layer59<" in found["layers"]
    assert ">layer0<" not in found["layers"]


def test_grids_are_ranked_by_their_error_and_clipping_is_red(tmp_path: Path) -> None:
    grids = shown(tmp_path)["grids"]
    assert len(grids) == diagnosis.WORST_GRIDS
    assert grids[0]["detail"].startswith("8 bits, 9.5 dB, ")
    assert "0.70 % clipped" in grids[0]["detail"]
    worst = [float(re.findall(r"([\d.]+) dB", panel["detail"])[0]) for panel in grids]
    assert worst == sorted(worst)


def test_what_lies_beyond_the_grid_is_drawn_apart() -> None:
    def red(view: GridView) -> int:
        return diagnosis_plots.grid_view(view, name="g", label="g").count("var(--bad)")

    inside, outside = GridView([5, 9, 3], (-1, 2), (-1, 2)), GridView([5, 9, 3], (-1, 2), (-1, 1))
    assert path_length(outside) > path_length(inside)
    assert red(outside) >= 1
    for nothing in (GridView([], (0, 1), (0, 1)), GridView([0, 0], (0, 1), (0, 1)), GridView([1], (1, 1), (0, 1))):
        assert diagnosis_plots.grid_view(nothing, name="g", label="g") == ""


def path_length(view: GridView) -> int:
    """How many points the red outline has."""
    drawn = diagnosis_plots.grid_view(view, name="g", label="g")
    paths = re.findall(r'<path d="([^"]*)"[^>]*style="[^"]*var\(--bad\)', drawn)
    return max((len(set(re.findall(r"L [\d.]+ ([\d.]+)", path))) for path in paths), default=0)


def test_values_that_no_axis_holds_are_drawn_all_the_same() -> None:
    rows = [LayerLoss("a", 200.0, 200.0, "w8", False), LayerLoss("b", -7.0, None, "float", True)]
    assert "float · −7.0 dB" in diagnosis_plots.layer_losses(rows, name="l")
    assert diagnosis_plots.layer_losses(rows[:1], name="l")
    assert diagnosis_plots.layer_losses([], name="l") == ""
    assert diagnosis_plots.front([Choice("only", 3.0, 0.0, True)], name="f", what="estimated loss")
    assert diagnosis_plots.training([0, 1], [("training", [None, None], "#000000")], name="t") == ""


@pytest.mark.parametrize("key", ["quantizers", "sensitivity", "trials", "pareto", "training"])
def test_wrong_kinds_of_values_inside_do_not_break_the_page(tmp_path: Path, key: str) -> None:
    wrong: dict[str, Any] = {
        "quantizers": [{"sqnr_db": 3, "histogram": {"low": 0, "high": 1, "counts": ["a", None]}, "low": 0, "high": 1}],
        "sensitivity": {"layers": [3, {"alone_db": 5, "bits": "4", "accumulated_db": "x"}], "network_db": []},
        "trials": [{"metric": 0.9, "verdict": [], "difference": "much", "seconds": {}}],
        "pareto": [{"bytes": 3, "loss": None}, {"bytes": "x", "loss": 1}],
        "training": {"steps": [0, 1], "loss": [1], "monitor": 3},
    }
    assert "Accuracy" in html(tmp_path, {**segmentation(), key: wrong[key]})
