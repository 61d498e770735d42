"""What `--recipe auto` is asked for beside that nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from microtome.errors import OptionError
from microtome.verbs import recipe
from microtome.verbs.auto import Goals
from microtome.verbs.compress import compress
from microtome.verbs.options import CompressOptions
from microtome.verbs.recipe import CLIMB, LADDER, asked

FAST = {"faster": 12.0, "smaller": 3.5}


def test_goals_are_met_or_missed_one_by_one():
    assert Goals(10, 3).missed(FAST) == ""
    assert Goals(10, 3).met(FAST) == "12.0× faster and 3.5× smaller"
    assert Goals(20, 3).missed(FAST) == "12.0× faster, not 20×"
    assert Goals(20, 7).missed(FAST) == "12.0× faster, not 20× and 3.5× smaller, not 7×"
    assert Goals(20, None).share(FAST) == 12 / 20
    assert Goals(20, 7).share(FAST) == 3.5 / 7
    assert Goals(10, 3).share(FAST) == 1.0
    assert not Goals()


def test_auto_climbs_into_structure_only_where_more_is_asked_for():
    assert [one.name for one in asked(CompressOptions(recipe="auto"))] == list(LADDER)
    assert [one.name for one in asked(CompressOptions(recipe="auto", smaller_than=30))] == [*LADDER, *CLIMB]


@pytest.mark.parametrize("options", [{"recipe": "auto", "faster_than": 1.0}, {"recipe": "int8", "faster_than": 10.0}])
def test_goals_that_nothing_goes_on_for_are_refused(options):
    with pytest.raises(OptionError, match="--faster-than"):
        asked(CompressOptions(**options))


@pytest.mark.slow
def test_it_goes_on_until_the_file_is_small_enough(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(recipe, "LADDER", ("f32", "int8"))
    monkeypatch.setattr(recipe, "CLIMB", ("fallback",))
    cohort = tiny.segmentation_cohort(tmp_path / "cohort", cases=60)
    options = CompressOptions(
        recipe="auto", threads=1, tuning=0.3, evaluation=0.3, margin=0.2, smaller_than=1000.0, target="onnxruntime"
    )
    result = compress(tiny.Spots(), cohort, tmp_path / "package", options=options)
    names = [trial["name"] for trial in result["trials"]]
    assert names == ["f32", "int8", "fallback"]
    assert all("smaller, not 1000×: went on" in trial["reason"] for trial in result["trials"] if trial["verdict"])
    chosen = next(trial for trial in result["trials"] if trial["chosen"])
    assert chosen["smaller"] == max(trial["smaller"] for trial in result["trials"] if trial["verdict"])
    json.dumps(result)
