"""What is asked for and cannot be is refused before any file is read."""

from pathlib import Path
from typing import Any

import pytest

from microtome.errors import OptionError
from microtome.medical.formats import cohort_format
from microtome.verbs.options import CompressOptions
from microtome.verbs.request import read_request
from tiny import Spots, segmentation_cohort


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"target": ("reference", "reference")}, "the targets are reference, reference"),
        ({"target": ()}, "the targets are none"),
        ({"target": "reference", "precision": "bf16"}, "nothing that reference offers"),
        ({"target": "reference", "placement": "guessed"}, "no placement 'guessed'"),
        ({"target": "nowhere.at.all"}, "cannot be imported"),
        ({"target": "json"}, "there is no target 'json'"),
    ],
)
def test_options_that_make_no_sense(asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        read_request(Spots(), Path("nowhere"), CompressOptions(**asked))


@pytest.mark.parametrize("more", [{"recipe": "auto"}, {"placement": "measured"}])
def test_targets_that_cannot_be_run_here(more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from their_pkg import boxed

    monkeypatch.setattr(boxed, "HERE", False)
    with pytest.raises(OptionError, match="this machine cannot run boxed"):
        read_request(Spots(), Path("nowhere"), CompressOptions(target="their_pkg.boxed"))
    with pytest.raises(OptionError, match="measures, and this machine cannot run boxed"):
        read_request(Spots(), Path("nowhere"), CompressOptions(target=("reference", "their_pkg.boxed"), **more))


def test_a_pipeline_that_is_not_there(tmp_path: Path) -> None:
    cohort = segmentation_cohort(tmp_path / "cohort", cases=8)
    options = CompressOptions(target="reference", pipeline=tmp_path / "none.json")
    with pytest.raises(OptionError, match="does not exist"):
        read_request(Spots(), cohort, options)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("zip", "there is no cohort format 'zip'"),
        ("nowhere.at.all", "cannot be imported"),
        ("their_pkg.zoo", "it has no NAME"),
    ],
)
def test_cohort_formats_that_are_none(name: str, reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        cohort_format(name)
