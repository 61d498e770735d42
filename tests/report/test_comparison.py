from __future__ import annotations

from pathlib import Path

import pytest
from report_packages import segmentation, write_package
from test_html import Page

from microtome.errors import OptionError, OutputError, ReadError
from microtome.report.comparison import write_comparison
from microtome.tasks import task


def test_packages_stand_side_by_side(segmented: Path, classified: Path, tmp_path: Path) -> None:
    html = write_comparison([segmented, classified], tmp_path / "comparison.html", task).read_text(encoding="utf-8")
    found = Page(html)
    assert "http:" not in html
    assert "https:" not in html
    assert found.loads == ["data:,"]
    for expected in (
        "Non-inferior",
        "Not enough cases",
        "38.4 ms",
        "−0.0029",
        "17 of 17",
        "43 of 48",
        "less than asked",
    ):
        assert expected in found.text, expected
    assert html.count('class="plot"') == 2  # Dice and AUROC do not share an axis
    assert "the packages have different tasks, metrics, numbers of evaluation cases" in found.text


def test_like_packages_share_a_plot_and_need_no_care(tmp_path: Path) -> None:
    folders = [write_package(tmp_path / name / "out", segmentation(), arrays=False) for name in ("a", "b")]
    html = write_comparison(folders, tmp_path / "comparison.html", task).read_text(encoding="utf-8")
    assert html.count('class="plot"') == 1
    assert "Compare with care" not in html
    assert "a/out" in html  # the same folder name twice is told apart


def test_no_or_broken_packages_are_refused(segmented: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no package"):
        write_comparison([], tmp_path / "comparison.html", task)
    with pytest.raises(ReadError, match="does not exist"):
        write_comparison([segmented, tmp_path / "nowhere"], tmp_path / "comparison.html", task)
    with pytest.raises(OutputError, match="cannot be written"):
        write_comparison([segmented], tmp_path / "nowhere" / "comparison.html", task)


def test_bare_results_can_be_compared(tmp_path: Path) -> None:
    bare = {"schema": 1, "task": "segmentation", "parent": {}, "compressed": {}}
    folder = write_package(tmp_path / "bare", bare, arrays=False)
    assert "No verdict" in write_comparison([folder], tmp_path / "out.html", task).read_text(encoding="utf-8")
