"""What methods may steer by: the metric of the verdict on the tuning patients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from microtome.batches.training import TrainingBatches
from microtome.graph.capture import capture
from microtome.progress import Silent
from microtome.verbs.context import context_of
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


@pytest.mark.parametrize(
    ("flips", "mirror", "expected"), [((), (), ()), ((0,), (), (0,)), ((), (1,), (1,)), ((0,), (0, 1), (0, 1))]
)
def test_what_is_predicted_mirrored_is_learned_mirrored(
    tmp_path: Path, flips: tuple[int, ...], mirror: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    cohort = segmentation_cohort(tmp_path / "cohort", cases=24, empty=0)
    pipeline = replace(PICTURES, mirror=mirror)
    options = CompressOptions(pipeline=pipeline, target="reference", recipe="qat", calibration_cases=2, flips=flips)
    training = context_of(read_request(Spots(), cohort, options), Silent()).training
    assert isinstance(training, TrainingBatches)
    assert training.flips == expected
