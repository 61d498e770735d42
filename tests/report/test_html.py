from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_packages import classification, interval, segmentation, write_package

from microtome.errors import OptionError, OutputError, ReadError
from microtome.report.html import write_report
from microtome.tasks import task

VOID = {"meta", "link", "img", "br", "input", "hr"}
HOSTILE = "<script>alert('x')</script>\"&$x$ | {{ 7*7 }}\n\x07"


class Page(HTMLParser):
    """Collects what matters of a page, and fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.anchors: list[str] = []
        self.ids: Counter[str] = Counter()
        self.tags: Counter[str] = Counter()
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._note(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            assert not name.startswith("on"), f"script in {tag}"
            if name in {"src", "href", "srcset", "data", "action"}:
                (self.anchors if (value or "").startswith("#") else self.loads).append(value or "")
            if name == "id":
                self.ids[value or ""] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> was never opened"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def page(folder: Path) -> Page:
    return Page(write_report(folder, task).read_text(encoding="utf-8"))


def changed(tmp_path: Path, result: dict[str, Any], *, arrays: bool = False, **fields: Any) -> Page:
    return page(write_package(tmp_path / "package", {**result, **fields}, arrays=arrays))


@pytest.mark.parametrize("folder", ["segmented", "classified"])
def test_page_is_self_contained_and_well_formed(folder: str, request: pytest.FixtureRequest) -> None:
    path = write_report(request.getfixturevalue(folder), task)
    html = path.read_text(encoding="utf-8")
    found = Page(html)
    assert path.name == "report.html"
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert all(load.startswith("data:") for load in found.loads)
    assert found.tags["script"] == 0
    assert max(found.ids.values()) == 1
    assert all(anchor[1:] in found.ids for anchor in found.anchors)
    assert set(re.findall(r"url\(#([^)]*)\)", html)) <= set(found.ids)
    assert not re.search(r"#01020[3-9a]", html)  # every stand-in colour became a variable of the page
    assert "prefers-color-scheme: dark" in html
    assert [entry.name for entry in path.parent.iterdir() if "tmp" in entry.name] == []


def test_segmentation_shows_its_key_numbers(segmented: Path) -> None:
    found = page(segmented)
    for expected in (
        "Residual 3-D U-Net, hippocampus", "The compressed network is non-inferior to its parent.",
        "3.85×", "7.90×", "−0.0003", "−0.0007 to +0.0001", "margin −0.005", "60 patients", "not clearance",
        "0.8912", "1.31 mm", "99.91 %", "posterior 2", "Empty masks", "case-0007", "Dice 0.812 → 0.803 · slice 17",
        "303 ms", "90.1 ms", "1.24 MB", "int8 is 2.35× as fast", "17 of 17 layers", "brgconv_avx512_amx_I8",
        "Montgomery", "Shenzhen", "0.8900", "2026.4.1", "1,234 MiB", "3 min 10 s", "a1a1a1",
        "Tuning cases",
    ):  # fmt: skip
        assert expected in found.text, expected
    assert "Read this first" not in found.text
    assert found.tags["img"] == 12
    order = [found.text.index(case) for case in ("case-0007 Dice", "case-0011 Dice", "case-0020 Dice")]
    assert order == sorted(order)


def test_classification_shows_its_key_numbers_and_alarms(classified: Path) -> None:
    found = page(classified)
    for expected in (
        "There are not enough cases to tell", "about 310 are needed", "Read this first",
        "Only 43 of the 48 layers", "5 convolutions ran in f32", "1 case could not be evaluated and is left out",
        "AUROC", "0.8831", "0.8802", "−0.0127 to +0.0069", "Operating point: score ≥ 0.43", "98.30 %",
        "int8 does not beat bf16", "✗ not integer", "decision changed", "sensitivity",
    ):  # fmt: skip
        assert expected in found.text, expected
    assert "Empty masks" not in found.text
    html = (classified / "report.html").read_text(encoding="utf-8")
    assert 'id="roc-' in html
    assert re.search(r'<p class="caution">.*int8 does not beat bf16', html)


@pytest.mark.parametrize(
    ("decision", "word"), [(True, "Non-inferior"), (False, "Inferior"), (None, "Not enough cases")]
)
def test_the_verdict_is_said_in_words_and_by_a_mark(tmp_path: Path, decision: bool | None, word: str) -> None:
    result = segmentation()
    result["verdict"]["non_inferior"] = decision
    folder = write_package(tmp_path / "package", result, arrays=False)
    html = write_report(folder, task).read_text(encoding="utf-8")
    assert f'aria-label="{word}"' in html
    assert f'<p class="word">{word}</p>' in html


def test_nothing_in_integers_is_an_alarm(tmp_path: Path) -> None:
    found = changed(tmp_path, segmentation(), integer={"requested": 17, "executed": 0})
    assert "None of the 17 layers" in found.text


def test_a_network_that_grew_and_slowed_down_is_not_praised(tmp_path: Path) -> None:
    result = segmentation()
    result["compressed"].update(bytes=9_580_224, latency_ms=606.4)
    found = changed(tmp_path, result)
    assert "0.50× of the parent's size: it grew" in found.text
    assert "0.50× the speed of eager fp32: slower" in found.text


def test_everything_foreign_is_escaped(tmp_path: Path) -> None:
    result = segmentation()
    result.update(title=HOSTILE, target=HOSTILE, recipe=HOSTILE, warnings=[HOSTILE], classes=["background", HOSTILE])
    result["verdict"]["reason"] = HOSTILE
    result["subgroups"] = {HOSTILE: {HOSTILE: {"cases": 1, "difference": {"dice": interval(0, 1)}}}}
    result["layers"][0].update(name=HOSTILE, kernel=HOSTILE)
    result["quantizers"][0]["name"] = HOSTILE
    result["cases"][0]["case"] = HOSTILE
    result["examples"][0].update(text=HOSTILE, kind=HOSTILE)
    result["environment"][HOSTILE] = HOSTILE
    for side in ("parent", "compressed"):
        result[side]["metrics"][f"dice/{HOSTILE}"] = interval(0.5, 0.1)
    result["difference"][f"dice/{HOSTILE}"] = interval(0.0, 0.1)
    folder = write_package(tmp_path / "package", result)
    html = write_report(folder, task).read_text(encoding="utf-8")
    assert Page(html).tags["script"] == 0
    assert "<script" not in html
    assert "\x07" not in html
    assert "49" not in re.findall(r"<h1>(.*?)</h1>", html)[0]


def test_letters_that_matplotlib_lacks_do_not_warn(tmp_path: Path) -> None:
    result = segmentation()
    result["difference"]["dice/海马"] = interval(0.0, 0.001)
    assert "海马" in changed(tmp_path, result).text


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_a_bare_result_is_enough(tmp_path: Path, task: str) -> None:
    bare = {"schema": 1, "task": task, "parent": {}, "compressed": {}}
    found = changed(tmp_path, bare)
    assert "No verdict was recorded" in found.text
    assert "No metrics were recorded" in found.text
    assert found.tags["img"] == 0


@pytest.mark.parametrize("make", [segmentation, classification])
def test_every_field_may_be_null(tmp_path: Path, make: Any) -> None:
    kept = {"schema", "task", "parent", "compressed"}
    result = {name: value if name in kept else None for name, value in make().items()}
    result["parent"] = dict.fromkeys(result["parent"])
    result["compressed"] = dict.fromkeys(result["compressed"])
    assert "No verdict was recorded" in changed(tmp_path, result).text


def _nulled(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _nulled(entry) for name, entry in value.items()}
    return [_nulled(entry) for entry in value] if isinstance(value, list) else None


@pytest.mark.parametrize("make", [segmentation, classification])
def test_every_number_and_name_inside_may_be_null(tmp_path: Path, make: Any) -> None:
    result = make()
    nulled = {**_nulled(result), "schema": 1, "task": result["task"]}
    found = changed(tmp_path, nulled)
    assert "Not enough cases" in found.text
    assert not re.search(r"\b(None|nan)\b", found.text)


@pytest.mark.parametrize("make", [segmentation, classification])
def test_wrong_kinds_of_values_inside_do_not_break_the_page(tmp_path: Path, make: Any) -> None:
    result = make()
    result["difference"] = {"dice": "much", "auroc": [1]}
    result["parent"]["metrics"] = ["dice"]
    result["cases"][0] = {"case": 3, "parent": 7, "compressed": [1], "label": 99}
    result["subgroups"] = {"site": [1]}
    result["layers"][0]["latency_ms"] = float("nan")
    assert "Accuracy" in changed(tmp_path, result).text


def test_many_classes_draw_the_score_of_the_true_class(tmp_path: Path) -> None:
    result = classification()
    for case in result["cases"]:
        case["parent"], case["compressed"] = {"score": [0.2, 0.5, 0.3]}, {"score": [0.2, 0.4, 0.4]}
    assert "score of the true class" in changed(tmp_path, result).text


def test_missing_examples_file_leaves_the_texts(tmp_path: Path) -> None:
    found = changed(tmp_path, segmentation(), arrays=False)
    assert "Dice 0.812 → 0.803" in found.text
    assert found.tags["img"] == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist"),
        ("{", "not valid JSON"),
        ("\udcff", "not valid JSON"),
        ("[]", "no JSON object"),
        ('{"schema": 2}', "schema 2; this version reads schema 1"),
        ("{}", "schema null"),
        ('{"schema": 1, "task": 3}', "`task` must be the name of a task"),
        ('{"schema": 1, "task": "segmentation"}', "`parent` must be a JSON object"),
        ('{"schema": 1, "task": "segmentation", "parent": {}, "compressed": {}, "layers": 3}', "`layers` must be"),
        ('{"schema": 1, "task": "segmentation", "parent": {}, "compressed": {}, "runs": [3]}', "every entry of `runs`"),
    ],
)
def test_bad_results_are_refused_with_a_reason_and_a_hint(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "result.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ReadError, match=re.escape(reason)) as caught:
        write_report(tmp_path, task)
    assert caught.value.hint
    assert not (tmp_path / "report.html").exists()


def test_a_result_of_a_task_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"schema": 1, "task": "tracking", "parent": {}, "compressed": {}}')
    with pytest.raises(OptionError, match="no task 'tracking'"):
        write_report(tmp_path, task)


def test_a_truncated_examples_file_is_refused(segmented: Path) -> None:
    path = segmented / "examples.npz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ReadError, match=r"examples\.npz cannot be read"):
        write_report(segmented, task)


def test_an_examples_file_that_is_no_archive_is_refused(segmented: Path) -> None:
    with (segmented / "examples.npz").open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(ReadError, match="not an npz archive"):
        write_report(segmented, task)


def test_a_mask_that_does_not_fit_its_image_is_refused(segmented: Path) -> None:
    np.savez(segmented / "examples.npz", **{"case-0007/image": np.zeros((4, 4)), "case-0007/parent": np.zeros((3, 4))})
    with pytest.raises(ReadError, match="case-0007/parent has shape"):
        write_report(segmented, task)


def test_an_output_that_cannot_be_written_is_said_and_nothing_is_left(segmented: Path) -> None:
    (segmented / "report.html").mkdir()
    before = sorted(entry.name for entry in segmented.iterdir())
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(segmented, task)
    assert sorted(entry.name for entry in segmented.iterdir()) == before


def test_the_page_is_the_same_every_time(segmented: Path) -> None:
    first = write_report(segmented, task).read_bytes()
    assert write_report(segmented, task).read_bytes() == first


def test_only_pseudonyms_of_cases_appear(segmented: Path) -> None:
    result = json.loads((segmented / "result.json").read_text(encoding="utf-8"))
    assert result["cases"][0]["patient"] == "patient-0001"
    assert "patient-0" not in page(segmented).text


def test_importing_the_room_loads_neither_torch_nor_pyplot() -> None:
    code = (
        "import sys, microtome.report.html, microtome.report.card, microtome.report.comparison;"
        "print([m for m in ('torch', 'matplotlib.pyplot', 'pydicom') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_where_lower_is_better_the_margin_lies_above(tmp_path: Path) -> None:
    result = segmentation()
    result["verdict"] |= {"metric": "hd95", "margin": 0.5, "reason": None}
    text = Page(write_report(write_package(tmp_path / "package", result), task).read_text(encoding="utf-8")).text
    assert "margin +0.5 mm" in text
    assert "margin −0.5" not in text
    result["verdict"] |= {"metric": "dice", "margin": 0.005, "reason": None}
    text = Page(write_report(write_package(tmp_path / "other", result), task).read_text(encoding="utf-8")).text
    assert "margin −0.005" in text


def test_the_verdict_is_said_once(tmp_path: Path) -> None:
    result = segmentation()
    text = Page(write_report(write_package(tmp_path / "package", result), task).read_text(encoding="utf-8")).text
    assert result["verdict"]["reason"] in text
    assert "one-sided 95 % bound" not in text  # the same numbers in other words
