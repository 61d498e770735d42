"""What methods may steer by: the metric of the verdict on the tuning patients."""

from __future__ import annotations

from pathlib import Path

import torch

from microtome.graph.capture import capture
from microtome.progress import Silent
from microtome.verbs.options import CompressOptions
from microtome.verbs.request import read_request
from microtome.verbs.score import score_of
from tiny import PICTURES, Spots, segmentation_cohort


def test_a_network_is_scored_on_the_tuning_patients(tmp_path: Path) -> None:
    cohort = segmentation_cohort(tmp_path / "cohort", cases=24, empty=0)
    options = CompressOptions(pipeline=PICTURES, target="reference", recipe="qat", tuning=0.3, calibration_cases=2)
    request = read_request(Spots(), cohort, options)
    score = score_of(request, Silent())
    assert score is not None
    blind = Spots()
    with torch.no_grad():
        blind.head.bias -= torch.tensor([0.0, 100.0])
    parent = score(request.loaded.network)
    assert parent > 0.9
    assert score(capture(blind.eval(), (1, 32, 32))) == 0


def test_without_labelled_tuning_patients_there_is_no_score(tmp_path: Path) -> None:
    cohort = segmentation_cohort(tmp_path / "cohort", cases=24)
    options = CompressOptions(pipeline=PICTURES, target="reference", tuning=0.0, calibration_cases=2)
    assert score_of(read_request(Spots(), cohort, options), Silent()) is None
