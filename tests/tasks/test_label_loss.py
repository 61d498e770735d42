import math

import pytest
import torch

from microtome.medical.pipeline import Pipeline
from microtome.tasks import TASKS, task

SEGMENTATION = Pipeline("segmentation", ("background", "a", "b"), size=(4, 4))


def lost(pipeline: Pipeline, output: torch.Tensor, target: torch.Tensor) -> float:
    loss = task(pipeline.task).label_loss(pipeline)
    assert loss is not None
    return float(loss(output, target))


def test_maps_of_classes_that_exclude_one_another():
    target = torch.tensor([[[0, 1], [2, 2]]])
    right = 60 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    assert lost(SEGMENTATION, right, target) == pytest.approx(0, abs=1e-3)
    assert lost(SEGMENTATION, right.flip(1), target) > 1


@pytest.mark.parametrize("channels", [2, 3])
def test_maps_whose_channels_are_structures(channels: int):
    pipeline = Pipeline("segmentation", ("background", "a", "b"), size=(4, 4), activation="sigmoid")
    target = torch.tensor([[[0, 1], [2, 2]]])
    right = 60 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float()[:, 3 - channels :] - 30
    assert lost(pipeline, right, target) == pytest.approx(0, abs=1e-3)
    assert lost(pipeline, -right, target) > 1


def test_maps_of_regions_that_overlap():
    regions = {"whole": (1, 2), "core": (2,)}
    pipeline = Pipeline("segmentation", ("background", "a", "b"), size=(4, 4), activation="sigmoid", regions=regions)
    target = torch.tensor([[[0, 1], [2, 2]]])
    right = 60 * torch.stack([target > 0, target == 2], 1).float() - 30
    assert lost(pipeline, right, target) == pytest.approx(0, abs=1e-3)
    assert lost(pipeline, right.flip(1), target) > 1


def test_one_channel_is_the_foreground():
    pipeline = Pipeline("segmentation", ("background", "a"), size=(4, 4), activation="sigmoid")
    target = torch.tensor([[[0, 1], [1, 1]]])
    assert lost(pipeline, 60 * target[:, None].float() - 30, target) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("activation", "output"), [("softmax", [[0.0, math.log(3)]]), ("none", [[0.25, 0.75]])])
def test_classes(activation: str, output: list[list[float]]):
    pipeline = Pipeline("classification", ("well", "ill"), size=(4, 4), activation=activation)
    assert lost(pipeline, torch.tensor(output), torch.tensor([1])) == pytest.approx(-math.log(0.75), rel=1e-4)


def test_one_logit_for_two_classes():
    pipeline = Pipeline("classification", ("well", "ill"), size=(4, 4))
    found = lost(pipeline, torch.tensor([[math.log(3)], [7.0]]), torch.tensor([1, -1]))
    assert found == pytest.approx(-math.log(0.75), rel=1e-4)


def test_findings_that_are_not_known_do_not_count():
    pipeline = Pipeline("multi-label", ("a", "b"), size=(4, 4), activation="sigmoid")
    found = lost(pipeline, torch.tensor([[math.log(3), 5.0]]), torch.tensor([[1.0, float("nan")]]))
    assert found == pytest.approx(-math.log(0.75), rel=1e-4)


def test_numbers_are_compared_in_the_networks_own_unit():
    pipeline = Pipeline("regression", ("age",), size=(4, 4), output_scale=(10.0,), output_offset=(50.0,))
    assert lost(pipeline, torch.tensor([[2.0]]), torch.tensor([[80.0]])) == pytest.approx(1.0)


def test_tasks_that_only_imitate_have_none():
    without = {name for name in TASKS if task(name).label_loss(SEGMENTATION) is None}
    assert without == {"detection", "image-to-image"}


@pytest.mark.parametrize("name", ["segmentation", "classification", "multi-label", "regression"])
def test_what_stands_for_no_reference_loses_nothing(name: str):
    sigmoid = "sigmoid" if name == "multi-label" else "softmax"
    pipeline = Pipeline(name, ("a", "b", "c"), size=(4, 4), activation=sigmoid)
    unknown = torch.from_numpy(task(name).unknown_target((4, 4), pipeline))[None]
    output = torch.ones(1, 3, 4, 4) if name == "segmentation" else torch.ones(1, 3)
    assert lost(pipeline, output, unknown) == 0
