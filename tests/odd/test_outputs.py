"""What networks return beside scores (N, K, *S) and (N, K): taken where it can be, else said before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typer.testing import CliRunner

import microtome
from microtome.cli import app
from microtome.errors import CaptureError, LabelError, ModelError
from microtome.graph import pt2
from microtome.graph.capture import capture
from microtome.graph.program import network_from_export
from microtome.graph.quiet import quiet
from microtome.verbs.options import CompressOptions
from microtome.verbs.request import read_request
from tiny import CLASSES, PICTURES, Brightness, Spots, class_cohort, segmentation_cohort, volume_cohort


class Both(NamedTuple):
    labels: Tensor
    scores: Tensor


class Ending(nn.Module):
    """A layer of three channels, and what becomes of them."""

    def __init__(self, end: Callable[[Tensor], Any], dims: int = 2) -> None:
        super().__init__()
        self.conv = (nn.Conv2d if dims == 2 else nn.Conv3d)(1, 3, 3, padding=1)
        self.end = end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.conv(x))


def pooled(y: Tensor) -> Tensor:
    return y.mean((2, 3))


ONE_CHANNEL = {
    "x[:, 0]": (lambda y: pooled(y)[:, 0], (1,)),
    "squeeze(1)": (lambda y: pooled(y)[:, :1].squeeze(1), (1,)),
    "squeeze(-1)": (lambda y: pooled(y)[:, :1].squeeze(-1), (1,)),
    "squeeze()": (lambda y: pooled(y)[:, :1].squeeze(), (1,)),
    "mean over all but the batch": (lambda y: y.mean((1, 2, 3)), (1,)),
    "a map without channels": (lambda y: y[:, 0], (1, 8, 8)),
    "a map that squeeze() took the channel from": (lambda y: y[:, :1].squeeze(), (1, 8, 8)),
}


@pytest.mark.parametrize("end", ONE_CHANNEL)
@pytest.mark.parametrize("batch", [1, 3])
def test_an_output_without_channels_is_one_channel_with_a_note(end: str, batch: int) -> None:
    module = Ending(ONE_CHANNEL[end][0]).eval()
    network = capture(module, (1, 8, 8))
    assert network.outputs[0].shape == ONE_CHANNEL[end][1]
    assert "has no axis of channels: it is taken for one channel" in network.notes[-1]
    x = torch.randn(batch, 1, 8, 8)
    with torch.no_grad():
        got, expected = network(x), module(x)
    assert got.shape == (batch, *network.outputs[0].shape)
    torch.testing.assert_close(got.reshape(expected.shape), expected)


def test_squeeze_leaves_classes_alone_for_a_batch_of_one() -> None:
    network = capture(Ending(lambda y: pooled(y)[:, :, None].squeeze()), (1, 8, 8))
    assert network(torch.randn(1, 1, 8, 8)).shape == (1, 3)
    assert network.notes == ()


def test_a_file_of_somebody_elses_is_treated_alike(tmp_path: Path) -> None:
    free = {0: torch.export.Dim.AUTO}
    for name, end in {"flat": lambda y: pooled(y)[:, 0], "labels": lambda y: y.argmax(1)}.items():
        with quiet():
            program = torch.export.export(Ending(end), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=(free,))
            torch.export.save(program, tmp_path / f"{name}.pt2")
    assert pt2.load(tmp_path / "flat.pt2").outputs[0].shape == (1,)
    again = tmp_path / "again.pt2"
    pt2.save(pt2.load(tmp_path / "flat.pt2"), again)
    assert len(pt2.load(again).notes) == 1
    with pytest.raises(CaptureError, match="labels that the network has chosen by itself"):
        pt2.load(tmp_path / "labels.pt2")


LABELS = {
    "argmax": lambda y: y.argmax(1),
    "argmax that keeps the axis, as float": lambda y: y.argmax(1, keepdim=True).float(),
    "places of max": lambda y: y.max(1).indices,
    "places of max as float": lambda y: y.max(1)[1].float(),
    "topk": lambda y: y.topk(1, 1).indices,
    "one-hot": lambda y: functional.one_hot(y.argmax(1), 3).movedim(-1, 1).float(),
    "a threshold": lambda y: y.sigmoid() > 0.5,
    "a threshold as float": lambda y: (y.sigmoid() > 0.5).float(),
    "where": lambda y: torch.where(y > 0, 1.0, 0.0),
    "where of tensors": lambda y: torch.where(y > 0, torch.ones_like(y), torch.zeros_like(y)),
    "both thresholds": lambda y: ((y > 0) & (y < 1)).to(torch.uint8),
    "labels of a classifier": lambda y: pooled(y).argmax(1),
    "numbers of labels": lambda y: 2 * y.argmax(1, keepdim=True).float() + 1,
}
REFUSED = {
    "whole numbers": (lambda y: (10 * y).to(torch.int32), r"holds whole numbers \(int32\)"),
    "complex numbers": (torch.fft.fft2, r"complex numbers \(complex64\)"),
    "None": (lambda y: None, "returns no tensor but NoneType"),
    "text": (lambda y: "a lesion", "returns no tensor but str"),
    "a number": (lambda y: 0.5, "returns no tensor but float"),
    "nothing in a list": (lambda y: [], "returns no tensor but list"),
    "a dict without tensors": (lambda y: {"class": 1, "name": "a"}, "returns no tensor but dict of int, str"),
    "boxes of each image": (lambda y: [{"boxes": y[0, 0, :, :4], "labels": y[0, 0, :, 0].long()}], "returns boxes"),
    "boxes beside losses": (lambda y: ({}, [{"boxes": y[0, 0, :, :4]}]), "returns boxes"),
    "DETR": (lambda y: {"pred_logits": y.flatten(2), "pred_boxes": y.flatten(2)[..., :4]}, "returns boxes"),
    "a loss": (lambda y: y.mean(), "one number for a whole batch"),
    "the batch in the channels": (lambda y: y.movedim(1, -1).reshape(-1, 3), "first axis is not the batch"),
    "the first image only": (lambda y: y[0], "first axis is not the batch"),
    "the mean of a batch": (lambda y: y.mean(0, keepdim=True), "first axis is not the batch"),
    "nothing in the tensor": (lambda y: y[:, :0], "there is nothing in it"),
    "a sparse tensor": (lambda y: y.to_sparse(), "a sparse tensor"),
    "what was found": (lambda y: y[y > 0], r"returns \(\?,\) for an input"),
}


@pytest.mark.parametrize("end", LABELS)
def test_a_network_that_decides_by_itself_is_told_so(end: str) -> None:
    with pytest.raises(CaptureError, match="holds labels that the network has chosen by itself") as caught:
        capture(Ending(LABELS[end]), (1, 8, 8))
    assert "Return the scores from before that" in caught.value.hint


@pytest.mark.parametrize("end", REFUSED)
def test_what_is_no_scores_is_said(end: str) -> None:
    end_of, reason = REFUSED[end]
    with pytest.raises(CaptureError, match=reason):
        capture(Ending(end_of), (1, 8, 8))


KEPT = {
    "labels before scores": (lambda y: (y.argmax(1), y), "output_1"),
    "a named tuple": (lambda y: Both(y.argmax(1), y), "scores"),
    "a dict with a text": (lambda y: {"name": "a", "logits": y}, "logits"),
    "None before scores": (lambda y: (None, y), "output_1"),
    "masked scores": (lambda y: torch.where(y > 0, y, -1e9), "output"),
    "scores times a mask": (lambda y: y * (y > 0).float(), "output"),
    "half precision": (lambda y: y.half(), "output"),
    "double precision": (lambda y: y.double(), "output"),
    "minus infinity": (lambda y: torch.where(y > 0, y, float("-inf")), "output"),
    "NaN outside of something": (lambda y: y.log(), "output"),
}


@pytest.mark.parametrize("end", KEPT)
def test_scores_among_other_things_are_kept_as_they_are(end: str) -> None:
    end_of, name = KEPT[end]
    module = Ending(end_of).eval()
    network = capture(module, (1, 8, 8))
    assert network.outputs[0].name == name
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        got, output = network(x), module(x)
    leaves = torch.utils._pytree.tree_leaves(output)
    expected = next(leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected.float(), equal_nan=True, rtol=1e-3, atol=1e-5)


def test_an_output_that_is_asked_for_must_be_scores() -> None:
    module = Ending(lambda y: {"labels": y.argmax(1), "boxes": y, "scores": y})
    assert capture(module, (1, 8, 8), keep=["scores"]).outputs[0].name == "scores"
    with pytest.raises(CaptureError, match="labels that the network has chosen"):
        capture(module, (1, 8, 8), keep=["labels"])


# Rank and size, against what the task needs.


class Maps(nn.Module):
    """A segmentation network, and what becomes of its scores."""

    def __init__(self, end: Callable[[Tensor], Tensor], dims: int = 2) -> None:
        super().__init__()
        self.inner, self.end = Spots(dims), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.inner(x))


MAPS = {
    "half size": (lambda y: y[..., ::2, ::2], "smaller than the image, by 2", "interpolate"),
    "max-pooled by 4": (lambda y: functional.max_pool2d(y, 4), "smaller than the image, by 4", "interpolate"),
    "half of one axis": (lambda y: y[..., ::2], "smaller than the image, by 2", "interpolate"),
    "double size": (lambda y: functional.interpolate(y, scale_factor=2.0), "larger than the image", "interpolate"),
    "unpadded": (lambda y: y[..., 2:-2, 2:-2], "has not the image's size", "padding"),
    "stacked heads": (lambda y: torch.stack([y, y], 1), r"2 heads that are stacked", r"x\[:, 0\]"),
    "channels last": (lambda y: y.movedim(1, -1), "channels come last", "movedim"),
    "a regressor": (lambda y: y.mean((2, 3))[:, :1], "1 numbers for the whole image", "segments"),
    "a regressor without channels": (lambda y: y.mean((1, 2, 3)), "1 numbers for the whole image", "segments"),
    "a classifier": (lambda y: y.mean((2, 3)), "2 numbers for the whole image", "segments"),
    "a flat map": (lambda y: y.flatten(2), "needs scores of every voxel", "one axis of channels"),
}
NUMBERS = {
    "a map": (lambda y: y, "scores of every place", "pool"),
    "axes of one": (lambda y: y.mean((2, 3), keepdim=True), "needs numbers for the whole image", "flatten"),
    "stacked heads": (lambda y: torch.stack([y.mean((2, 3))] * 3, 1), "3 heads or tokens", r"x\[:, 0\]"),
    "a map without channels": (lambda y: y[:, 1], "scores of every place", "pool"),
    "heads of maps": (lambda y: torch.stack([y, y], 1), "needs numbers for the whole image", "one number per class"),
}


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return segmentation_cohort(tmp_path_factory.mktemp("masks") / "cohort", cases=16)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_cohort(tmp_path_factory.mktemp("classes") / "cohort", per_class=10)


def read(module: nn.Module, cohort: Path, pipeline: Any) -> Any:
    shape = (1, 32, 32) if pipeline is None else None
    return read_request(module, cohort, CompressOptions(target="reference", pipeline=pipeline, input_shape=shape))


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("end", MAPS)
def test_a_map_that_does_not_fit_is_said_before_any_work(end: str, declared: bool, masks: Path) -> None:
    end_of, reason, advice = MAPS[end]
    with pytest.raises(ModelError, match=reason) as caught:
        read(Maps(end_of), masks, PICTURES if declared else None)
    assert "divisible" not in caught.value.hint or end == "unpadded"
    with pytest.raises(ModelError, match=advice):
        raise caught.value


@pytest.mark.parametrize("end", NUMBERS)
def test_numbers_that_do_not_fit_are_said_before_any_work(end: str, classes: Path) -> None:
    end_of, reason, advice = NUMBERS[end]
    with pytest.raises(ModelError, match=rf"(?s){reason}.*{advice}"):
        read(Maps(end_of), classes, CLASSES)


def test_a_volume_whose_output_is_half_or_flat(tmp_path: Path) -> None:
    cohort = volume_cohort(tmp_path / "cohort", cases=8)
    for end, reason in ((lambda y: y[..., ::2, ::2, ::2], "smaller than"), (lambda y: y.mean(2), "every voxel")):
        with pytest.raises(ModelError, match=reason):
            read_request(Maps(end, 3), cohort, CompressOptions(target="reference", input_shape=(1, 16, 16, 16)))


def test_one_channel_of_structures_is_told_of_sigmoid(masks: Path) -> None:
    with pytest.raises(LabelError, match=r"1 outputs, but there are 2 classes.*'sigmoid'"):
        read(Maps(lambda y: y[:, 1:]), masks, PICTURES)


# Whole.


class OneNumber(nn.Module):
    """A binary classifier that returns (N,)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Brightness()

    def forward(self, x: Tensor) -> Tensor:
        both = self.inner(x)
        return both[:, 1] - both[:, 0]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_a_classifier_of_one_number_runs_whole(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microtome.deployment.timing.MOST_ROUNDS", 1)
    cohort = class_cohort(tmp_path / "cohort")
    options = CompressOptions(target=target, input_shape=(1, 32, 32), threads=1, calibration_cases=4, tuning=0.3)
    result = microtome.compress(OneNumber(), cohort, tmp_path / "out", options=options)
    two = microtome.evaluate(f"{Path(__file__).parents[1] / 'tiny.py'}:Brightness", cohort, tmp_path / "two")
    assert any("taken for one channel" in note for note in result["notes"])
    assert abs(result["parent"]["metrics"]["auroc"]["value"] - two["compressed"]["metrics"]["auroc"]["value"]) < 0.1
    assert abs(result["difference"]["auroc"]["value"]) < 0.02


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_detector_is_a_sentence_at_the_command_line(as_json: list[str], masks: Path, tmp_path: Path) -> None:
    code = tmp_path / "detector.py"
    code.write_text(
        "import torch\nfrom torch import nn\n\n\nclass Detector(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.conv = nn.Conv2d(1, 4, 3)\n\n    def forward(self, x):\n"
        "        y = self.conv(x).flatten(2).transpose(1, 2)\n"
        "        return [{'boxes': b, 'scores': b[:, 0], 'labels': b[:, 0].long()} for b in y]\n"
    )
    arguments = ["compress", f"{code}:Detector", str(masks), "-o", str(tmp_path / "out"), "--input-shape", "1,32,32"]
    result = CliRunner().invoke(app, [*arguments, *as_json])
    assert result.exit_code == 2, result.output
    assert "Detector returns boxes" in " ".join(result.stderr.split())
    assert not result.stdout
    assert not (tmp_path / "out").exists()


TWO_HEADS = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, image, age: torch.Tensor):
        scores = self.conv(image) + age[:, :, None, None]
        return {"mask": scores, "label": scores.mean((2, 3))}
"""


def test_inputs_and_outputs_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO_HEADS)
    pipeline = tmp_path / "pipeline.json"
    pipeline.write_text(replace(PICTURES, inputs={"age": {"columns": ["age"]}}).to_json())  # type: ignore[dict-item]
    arguments = [
        "inspect",
        f"{tmp_path / 'two.py'}:Two",
        "--target",
        "reference",
        "--json",
        "--pipeline",
        str(pipeline),
    ]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert [port["name"] for port in found["inputs"]] == ["image", "age"]
    assert [port["name"] for port in found["outputs"]] == ["mask"]  # the task says which
    assert {"name": "inputs", "value": {"age": {"columns": ["age"]}}, "guessed": False} in found["pipeline"]
    assert any("left out: label (no scores of every voxel)" in note for note in found["notes"])
    other = json.loads(CliRunner().invoke(app, [*arguments, "--output", "label"]).stdout)
    assert [port["name"] for port in other["outputs"]] == ["label"]
    typo = CliRunner().invoke(app, [*arguments, "--output", "lable"])
    assert typo.exit_code == 2
    assert "no output 'lable'" in typo.stderr
    wrong = CliRunner().invoke(
        app, ["predict", str(tmp_path), str(tmp_path), "-o", str(tmp_path / "o"), "--input", "age"]
    )
    assert wrong.exit_code == 2
    assert "'age' is not NAME=PATH" in " ".join(wrong.stderr.split())


def test_a_program_with_one_image_at_a_time_may_return_one_number() -> None:
    with quiet():
        program = torch.export.export(Ending(lambda y: y.mean()), (torch.zeros(1, 1, 8, 8),))
    network = network_from_export(program)
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 1)
