from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_packages import segmentation, write_package

from microtome.errors import ReadError
from microtome.report.card import markdown, write_model_card
from microtome.tasks import task


def test_the_card_says_what_the_result_says(segmented: Path) -> None:
    (segmented / "pipeline.json").write_text(json.dumps({"schema": 1, "spacing": [1.0, 1.0, 1.0], "patch": None}))
    card = write_model_card(segmented, task).read_text(encoding="utf-8")
    for expected in (
        "# Model card: Residual 3-D U-Net, hippocampus", "TO BE FILLED IN BY THE MANUFACTURER", "not clearance",
        "**Non-inferior**", "| Dice | 0.8912 (0.8824 to 0.9000) | 0.8909", "| – posterior | 0.8850", "3.85×",
        "| spacing | 1.0, 1.0, 1.0 |", "| Montgomery | 30 |", "17 of 17 layers", "torch: 2.13.0", "pipeline.json",
    ):  # fmt: skip
        assert expected in card, expected
    assert "| patch |" not in card
    assert "provenance.json" not in card  # it is not in the folder


def test_the_card_warns_and_admits_gaps(classified: Path) -> None:
    card = write_model_card(classified, task).read_text(encoding="utf-8")
    assert "Only 43 of the 48 layers" in card
    assert "No subgroups were recorded" in card
    assert "Not recorded in this package." in card


def test_a_bare_result_is_enough(tmp_path: Path) -> None:
    folder = write_package(
        tmp_path, {"schema": 1, "task": "segmentation", "parent": {}, "compressed": {}}, arrays=False
    )
    assert "No metrics were recorded." in write_model_card(folder, task).read_text(encoding="utf-8")


def test_foreign_text_stays_text(tmp_path: Path) -> None:
    result = segmentation()
    result["title"] = "<b>x</b> [a](http://x) | *y*\n# z"
    card = write_model_card(write_package(tmp_path, result, arrays=False), task).read_text(encoding="utf-8")
    assert r"# Model card: &lt;b&gt;x&lt;/b&gt; \[a\](http://x) \| \*y\* # z" in card
    assert markdown("a|b\\") == r"a\|b\\"


def test_a_broken_pipeline_is_refused(segmented: Path) -> None:
    (segmented / "pipeline.json").write_text("[")
    with pytest.raises(ReadError, match=r"pipeline\.json is not valid JSON"):
        write_model_card(segmented, task)
    (segmented / "pipeline.json").write_text("[]")
    with pytest.raises(ReadError, match="no JSON object"):
        write_model_card(segmented, task)
