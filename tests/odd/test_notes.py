"""What was guessed, dropped or passed over reaches whoever reads the report, the model card or the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import microtome
from microtome.terminal import print_result
from microtome.verbs.options import CompressOptions
from microtome.verbs.report import report
from sharing import Once
from tiny import PICTURES, Spots, segmentation_cohort

pytestmark = pytest.mark.slow

GUESSED = "Pre-processing was guessed from the cohort"
DROPPED = "left out: features"


class Talkative(Spots):
    """Returns more than is kept."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"scores": super().forward(x), "features": self.smooth(x)}


@pytest.fixture(scope="module")
def folder(once: Once) -> Path:
    """Packages with a guess, without one, and evaluations of both a package and a model."""

    def make(to: Path) -> None:
        cohort = segmentation_cohort(to / "cohort")
        options = CompressOptions(target="reference", threads=1, calibration_cases=4)
        microtome.compress(Talkative(), cohort, to / "guessed", options=options)
        declared = CompressOptions(target="reference", threads=1, calibration_cases=4, pipeline=PICTURES)
        microtome.compress(Spots(), cohort, to / "declared", options=declared)
        microtome.evaluate(to / "guessed", cohort, to / "evaluated", parent=str(to / "guessed"))

    return once("notes", make)


def read(package: Path) -> dict[str, Any]:
    return json.loads((package / "result.json").read_text())


@pytest.mark.parametrize("name", ["guessed", "evaluated"])
def test_notes_stand_where_people_look(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    package = folder / name
    report([package])
    print_result(read(package), package)
    shown = {"report": (package / "report.html").read_text(), "terminal": capsys.readouterr().out}
    if name == "guessed":
        shown["card"] = (package / "MODEL_CARD.md").read_text()
    for place, text in shown.items():
        flat = " ".join(text.split())
        assert GUESSED in flat, place
        assert DROPPED in flat, place


def test_a_guess_is_marked_at_the_verdict(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (folder / "guessed" / "report.html").read_text()
    verdict = page[page.index('class="verdict') : page.index('class="tiles"')]
    assert "<strong>Guessed:</strong>" in verdict
    card = (folder / "guessed" / "MODEL_CARD.md").read_text()
    assert card.index("**Guessed:**") < card.index("## Intended use")
    print_result(read(folder / "guessed"), folder / "guessed")
    assert "guessed: the pre-processing" in capsys.readouterr().out


def test_where_nothing_was_guessed_nothing_is_marked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_result(read(folder / "declared"), folder / "declared")
    package = folder / "declared"
    for text in (
        capsys.readouterr().out,
        (package / "report.html").read_text(),
        (package / "MODEL_CARD.md").read_text(),
    ):
        assert "uessed:" not in text


def test_a_note_is_told_once(folder: Path) -> None:
    notes = read(folder / "guessed")["notes"]
    assert len(notes) == len(set(notes))


def test_brackets_are_no_markup(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = read(folder / "declared")
    result |= {"title": "net [v2]", "notes": ["[red]dropped[/red]"], "warnings": ["see [1]"]}
    print_result(result, folder)
    out = capsys.readouterr().out
    assert all(text in out for text in ("net [v2]", "[red]dropped[/red]", "see [1]"))
