"""Every network of the capture list, small: 30% of all its groups go, and it runs in ONNX Runtime and OpenVINO."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from microtome.graph.structure.groups import channel_groups
from pruning import ROUNDING, difference

pytest.importorskip("monai")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
AT_EACH_EDIT = ("UNet 2-D", "ViT")
CHECKED = 5  # groups of a network that are removed one by one
FAINT = ("EfficientNet-B0", "FlexibleUNet")  # with random weights their outputs do not feel some channels at all
NAMES = [
    *(
        "UNet 2-D",
        "UNet 3-D",
        "BasicUNet",
        "DynUNet",
        "SegResNet",
        "SegResNetDS",
        "SwinUNETR",
        "UNETR",
        "AttentionUnet",
    ),
    *("VNet", "HighResNet", "DenseNet121", "ResNet50", "EfficientNet-B0", "ViT", "FlexibleUNet", "PlainConvUNet"),
    "ResidualEncoderUNet",
]
each = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in AT_EACH_EDIT else pytest.mark.slow) for name in NAMES]
)


@pytest.fixture
def coverage(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("structure_coverage")
    for name in ("structure_coverage", "structure_networks"):
        sys.modules.pop(name, None)


def test_the_list_is_whole(coverage: Any) -> None:
    assert [subject.name for subject in coverage.subjects()] == NAMES


@each
def test_all_but_the_output_can_be_pruned_exactly(name: str, coverage: Any) -> None:
    torch.manual_seed(0)
    subject = next(subject for subject in coverage.subjects(small=True) if subject.name == name)
    network = coverage.captured(subject)
    groups = channel_groups(network)
    free = [group for group in groups if group.reason is None]
    reasons = [group.reason for group in groups if group.reason not in (None, "it has only one unit")]
    assert reasons == ["it is an output of the network"]
    x = torch.randn((2, *subject.shape))
    for group in free[:: max(len(free) // CHECKED, 1)]:
        assert difference(network, group, x, heard=name not in FAINT) < ROUNDING, group.name


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_thirty_percent_less_runs_in_both_runtimes(name: str, coverage: Any) -> None:
    torch.manual_seed(0)
    row = coverage.ours(next(subject for subject in coverage.subjects(small=True) if subject.name == name))
    assert (row["onnxruntime"], row["openvino"]) == ("same", "same")
    assert row["left"] < 0.8 * row["parameters"]
