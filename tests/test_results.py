"""The types of `result.json` say what is in it, no less and no more."""

from __future__ import annotations

import json
import types
import typing
from pathlib import Path
from typing import Any

import pytest

import microtome
from microtome.results import Result
from microtome.verbs.options import CompressOptions
from sharing import Once
from tiny import CLASSES, PICTURES, Brightness, Spots, class_cohort, segmentation_cohort

pytestmark = pytest.mark.slow

# written by none of the requests below
ELSEWHERE = {"measured", "trials", "placement", "pareto"}
NARROWER = """
[[method]]
method = "repeat"
rounds = 1
loss = 1.0
methods = [{ method = "prune", share = 0.3, importance = "l1", repair = false }]

[[method]]
method = "search"
widths = [0.5]
supernet_steps = 2
evaluations = 3
steps = 2
"""


def faults(value: Any, hint: Any, place: str = "result") -> list[str]:
    """Return where a JSON value is not what its type says."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return []
    if kind in (typing.Union, types.UnionType):
        tried = [faults(value, option, place) for option in inner]
        return [] if [] in tried else min(tried, key=len)
    if typing.is_typeddict(hint):
        if not isinstance(value, dict):
            return [f"{place} is {value!r}"]
        known = typing.get_type_hints(hint)
        unknown = [f"{place} has {name!r}" for name in value if name not in known]
        return unknown + [f for n, v in value.items() if n in known for f in faults(v, known[n], f"{place}.{n}")]
    if kind is list:
        parts = [(f"{place}[{i}]", v) for i, v in enumerate(value)] if isinstance(value, list) else None
        return [f"{place} is no list"] if parts is None else [f for p, v in parts for f in faults(v, inner[0], p)]
    if kind is not None:
        if not isinstance(value, dict):
            return [f"{place} is no mapping"]
        return [f for name, v in value.items() for f in faults(v, inner[1], f"{place}.{name}")]
    expected = {float: (int, float), type(None): type(None)}.get(hint, hint)
    fits = isinstance(value, expected) and not (isinstance(value, bool) and hint is not bool)
    return [] if fits else [f"{place} is {value!r}, not {hint}"]


@pytest.fixture(scope="module")
def results(once: Once) -> list[dict[str, Any]]:
    """Results of two tasks, one for two targets, and of an evaluation."""

    def make(folder: Path) -> None:
        options = CompressOptions(pipeline=PICTURES, threads=1, calibration_cases=4, target=("openvino", "reference"))
        cohort = segmentation_cohort(folder / "cohort")
        microtome.compress(Spots(), cohort, folder / "pictures", options=options)
        options = CompressOptions(pipeline=CLASSES, threads=1, calibration_cases=4, tuning=0.3)
        microtome.compress(Brightness(), class_cohort(folder / "classes"), folder / "classified", options=options)
        microtome.evaluate(folder / "pictures", cohort, folder / "evaluated")
        (folder / "recipe.toml").write_text(NARROWER)
        options = CompressOptions(pipeline=PICTURES, threads=1, tuning=0.3, margin=0.5, recipe=folder / "recipe.toml")
        microtome.compress(Spots(), cohort, folder / "narrower", options=options)

    folder = once("results", make)
    places = ("pictures", "pictures/targets/reference", "classified", "evaluated", "narrower")
    return [json.loads((folder / place / "result.json").read_text()) for place in places]


def test_every_part_is_of_its_type(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert faults(result, Result) == []


def test_every_part_is_written_by_some_verb(results: list[dict[str, Any]]) -> None:
    written = {name for result in results for name in result}
    assert typing.get_type_hints(Result).keys() - written == ELSEWHERE


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"colour": 1}, "result has 'colour'"),
        ({"schema": True}, r"result\.schema is True"),
        ({"verdict": {"margin": "wide"}}, r"result\.verdict\.margin is 'wide'"),
        ({"runs": [{"rounds": 1.5}]}, r"result\.runs\[0\]\.rounds is 1\.5"),
    ],
)
def test_the_test_finds_what_does_not_fit(value: dict[str, Any], fault: str) -> None:
    with pytest.raises(AssertionError, match=fault):
        assert faults(value, Result) == []
