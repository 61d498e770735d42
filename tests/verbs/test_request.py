"""What is asked for and cannot be is refused before any file is read."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Picture
from torch import nn

from microtome.errors import LabelError, OptionError
from microtome.medical.formats import cohort_format
from microtome.verbs.options import CompressOptions
from microtome.verbs.request import Request, identity, read_request
from tiny import PICTURES, Spots, manifest_cohort, segmentation_cohort


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


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return segmentation_cohort(tmp_path_factory.mktemp("request") / "cohort", cases=16)


def asked(cohort: Path, module: nn.Module | None = None, **options: Any) -> Request:
    return read_request(
        module or Spots(), cohort, CompressOptions(target="reference", **{"pipeline": PICTURES, **options})
    )


def test_calibration_images_that_are_evaluated_too_are_taken_out(cohort: Path, tmp_path: Path) -> None:
    found = asked(cohort, calibration=cohort)
    _, cases = found.calibration
    assert {case.role for case in cases} == {"train"}
    assert re.match(r"[1-9]\d* of the 16 images to calibrate on are evaluated or tuned on too", found.same.warnings[-1])
    used = {case.image for case in (*found.cohort.evaluation, *found.cohort.tuning)}
    assert len(cases) == 16 - len(used)
    assert used.isdisjoint(case.image for case in cases)
    found = asked(cohort, calibration=manifest_cohort(tmp_path / "other", cases=20))
    assert found.same.counts["taken_out_of_calibration"] > 0  # drawn with the same seed: the same pictures
    fresh = segmentation_cohort(tmp_path / "fresh", cases=4)
    for image in (fresh / "images").iterdir():
        Picture.open(image).transpose(Picture.Transpose.FLIP_LEFT_RIGHT).save(image)
    found = asked(cohort, calibration=fresh)
    assert len(found.calibration[1]) == 4
    assert found.same.counts["taken_out_of_calibration"] == 0


@pytest.mark.parametrize(
    ("fields", "error", "reason"),
    [
        ({"task": "classification", "classes": ("a", "b")}, OptionError, "the pipeline is for classification"),
        ({"channels": 3}, OptionError, "takes 1 channels in 2-D, the pipeline gives 3 in 2-D"),
        ({"classes": ("a", "b", "c", "d")}, LabelError, "the network has 2 outputs, but there are 4 classes"),
    ],
)
def test_what_does_not_belong_together(cohort: Path, fields: Any, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        asked(cohort, pipeline=replace(PICTURES, **fields), input_shape=(1, 32, 32))


@pytest.mark.parametrize("sub", ["images", "masks"])
def test_another_file_is_another_request(tmp_path: Path, sub: str) -> None:
    folder = segmentation_cohort(tmp_path / "cohort", cases=16)
    before = identity(asked(folder))
    assert identity(asked(folder)) == before
    file = next((folder / sub).iterdir())
    os.utime(file, ns=(1, 1))
    assert identity(asked(folder)) != before
