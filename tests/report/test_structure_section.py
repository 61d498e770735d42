from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_packages import classification, write_package

from microtome.report.html import write_report
from microtome.tasks import task


def side(outputs: int, weights: int, **more: Any) -> dict[str, Any]:
    return {
        "outputs": outputs,
        "narrowest": outputs,
        "inputs": 1,
        "weights": weights,
        "nonzero": weights,
        "macs": weights,
        **more,
    }


STRUCTURE = {
    "parameters": [1000, 250],
    "nonzero": [1000, 250],
    "macs": [64000, 64000],
    "alike": True,
    "layers": [
        {"name": "enter", "op": "conv", "parent": side(32, 400), "compressed": side(8, 100)},
        {"name": "middle", "op": "conv", "parent": side(64, 500), "compressed": side(64, 150, narrowest=5, links=3)},
        {"name": "gone", "op": "conv", "parent": side(16, 100), "compressed": None},
    ],
}
TRAJECTORY = [
    {"round": 0, "nonzero": 1000, "score": 0.9, "accepted": True, "parent": 0.9, "floor": 0.89},
    {"round": 1, "nonzero": 500, "score": 0.899, "accepted": True},
    {"round": 2, "nonzero": 250, "score": 0.8, "accepted": False},
]
SEARCH = [
    {"name": "a", "group": "search", "latency_ms": 2.0, "score": 0.8, "chosen": True},
    {"name": "b", "group": "search", "latency_ms": 4.0, "score": 0.9, "chosen": False},
    {"name": "c", "group": "uniform widths", "latency_ms": 3.0, "score": 0.7, "chosen": False},
]
PARTS = {"structure": "narrowest link", "trajectory": "How far it went", "search": "What the search found"}
FIELDS = {"structure": STRUCTURE, "trajectory": TRAJECTORY, "search": SEARCH}


def html(tmp_path: Path, **fields: Any) -> str:
    folder = write_package(tmp_path / "package", {**classification(), **fields}, arrays=False)
    return write_report(folder, task).read_text(encoding="utf-8")


def test_the_section_says_how_much_was_removed_and_where(tmp_path: Path) -> None:
    page = html(tmp_path, **FIELDS)
    for expected in (
        "1,000 → 250 weights: 75", "32 → 8", "64 → 5 (3 layers)", "16 → none", 'href="#structure"',
        "uniform widths", "latency, ms", *PARTS.values(),
    ):  # fmt: skip
        assert expected in page, expected
    assert "multiply-accumulates:" not in page  # they did not fall


@pytest.mark.parametrize("key", PARTS)
def test_each_part_stands_on_its_own_in_the_section(tmp_path: Path, key: str) -> None:
    page = html(tmp_path, **{key: FIELDS[key]})
    assert [name for name, title in PARTS.items() if title in page] == [key]


def test_without_changes_of_structure_there_is_no_section(tmp_path: Path) -> None:
    assert "What was removed where" not in html(tmp_path)


@pytest.mark.parametrize(
    "broken", [{"layers": [None, {}]}, {"layers": "x"}, {"parameters": [None, 1]}, {"macs": [0, 0]}]
)
def test_a_broken_part_does_not_break_the_page(tmp_path: Path, broken: dict[str, Any]) -> None:
    assert "Provenance" in html(tmp_path, structure=broken, trajectory=[{}], search=[{"score": 1.0}])
