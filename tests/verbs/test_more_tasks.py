"""Tasks beside segmentation and classification, whole: one command, int8 in OpenVINO, the report, predict."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from sklearn import metrics
from torch import nn

import microtome
from microtome.errors import LabelError, ModelError, OptionError
from microtome.medical.detector import Detector
from microtome.medical.pipeline import Pipeline
from microtome.medical.read import read_image
from microtome.verbs.options import CompressOptions

pytestmark = pytest.mark.slow

SIZE, CASES = 32, 24
NAMES = ("left", "right")


class Strips(nn.Module):
    """Two numbers: how bright the left and the right half of a picture are, from -2 to 2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(8, 2)
        with torch.no_grad():
            self.conv.weight.fill_(1 / 9)
            self.conv.bias.zero_()
            weight = torch.zeros(2, 4, 2)
            weight[0, :, 0] = weight[1, :, 1] = 1.0
            self.head.weight.copy_(weight.reshape(2, -1))
            self.head.bias.fill_(-2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.adaptive_avg_pool2d(torch.relu(self.conv(x)), (1, 2)).flatten(1))


class Smooth(nn.Module):
    """Means of 3×3 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 1)
        with torch.no_grad():
            self.first.weight.fill_(1 / 9)
            self.second.weight.fill_(1 / 8)
            for layer in (self.first, self.second):
                layer.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


class Blocks(nn.Module):
    """Scores of 8×8 blocks by their mean, and offsets of 0 from an anchor of that size."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.score, self.box = nn.Conv2d(1, 4, 8, 8), nn.Conv2d(4, 1, 1), nn.Conv2d(4, 4, 1)
        with torch.no_grad():
            self.mean.weight.fill_(1 / 64)
            self.score.weight.fill_(5.0)
            self.box.weight.fill_(0.002)
            self.score.bias.fill_(-10.0)
            for layer in (self.mean, self.box):
                layer.bias.zero_()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.relu(self.mean(x))
        return {"cls": self.score(x), "reg": self.box(x), "aux": x}


def table(folder: Path, columns: list[str], row: object) -> Path:
    """Write pictures, and a manifest: `row` makes (picture, further cells) from a generator and a file to write to."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    with (folder / "cohort.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["image", "patient", "split", *columns])
        for k in range(CASES):
            image, cells = row(rng, folder / f"t{k}.png")
            Picture.fromarray(image).save(folder / f"{k}.png")
            lines.writerow([f"{k}.png", k // 2, ("train", "val", "test", "test")[k // 2 % 4], *cells])
    return folder


def strips(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    bright = rng.choice([0.1, 0.3, 0.5, 0.7, 0.9], 2)  # so few that the calibration images have all of them
    image = np.repeat(bright, SIZE // 2)[None] * 255 + rng.normal(0, 15, (SIZE, SIZE))
    return np.clip(image, 0, 255).astype(np.uint8), bright


def findings(folder: Path) -> Path:
    def row(rng: np.random.Generator, _: Path) -> tuple[np.ndarray, list]:
        image, bright = strips(rng)
        return image, [int(b + rng.normal(0, 0.15) > 0.5) if rng.random() > 0.1 else "" for b in bright]

    return table(folder, [f"findings:{name}" for name in NAMES], row)


def values(folder: Path) -> Path:
    def row(rng: np.random.Generator, _: Path) -> tuple[np.ndarray, list]:
        image, bright = strips(rng)
        return image, [round(float(b * 40 + rng.normal(0, 2)), 2) for b in bright]

    return table(folder, list(NAMES), row)


def noisy(folder: Path) -> Path:
    def row(rng: np.random.Generator, target: Path) -> tuple[np.ndarray, list]:
        y, x = np.mgrid[:SIZE, :SIZE]
        clean = 120 + 70 * np.sin(x / rng.uniform(8, 14)) * np.cos(y / rng.uniform(8, 14))
        Picture.fromarray(clean.astype(np.uint8)).save(target)
        return np.clip(clean + rng.normal(0, 25, clean.shape), 0, 255).astype(np.uint8), [target.name]

    return table(folder, ["target"], row)


def blocks(folder: Path) -> Path:
    """COCO: bright blocks on the grid, of which faint ones are missed and dark ones may be found."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for part, count in (("train", 6), ("val", 8), ("test", 10)):
        data: dict = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "block"}]}
        for k in range(count):
            image = rng.normal(60, 12, (SIZE, SIZE))
            for _ in range(rng.integers(0, 3)):
                y, x = 8 * rng.integers(0, 4, 2)
                image[y : y + 8, x : x + 8] += rng.uniform(10, 120)
                entry = {"id": len(data["annotations"]), "image_id": k, "category_id": 1}
                data["annotations"].append({**entry, "bbox": [int(x), int(y), 8, 8]})
            Picture.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / f"{part}{k}.png")
            data["images"].append({"id": k, "file_name": f"{part}{k}.png", "width": SIZE, "height": SIZE})
        (folder / f"{part}.json").write_text(json.dumps(data))
    return folder


SHAPE = {"size": (SIZE, SIZE), "normalize": "unit"}
FINDINGS = Pipeline("multi-label", NAMES, **SHAPE, activation="sigmoid")
VALUES = Pipeline("regression", NAMES, **SHAPE, activation="none", output_scale=(10.0,), output_offset=(20.0,))
IMAGES = Pipeline("image-to-image", ("clean",), **SHAPE, activation="none", output_scale=(255.0,))
HEADS = Detector("anchors", ("cls",), ("reg",), strides=(8.0,), anchors=(((8.0, 8.0),),), shift=0.5, least=0.01)
BOXES = Pipeline("detection", ("block",), **SHAPE, activation="sigmoid", output="cls", keep=("reg",), detector=HEADS)


def compressed(module: nn.Module, cohort: Path, pipeline: Pipeline, out: Path, **more: object) -> dict:
    options = CompressOptions(pipeline=pipeline, threads=1, calibration_cases=4, **more)  # type: ignore[arg-type]
    result = microtome.compress(module, cohort, out, options=options)
    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert result["integer"]["executed"] == result["integer"]["requested"] > 0
    return dict(result) | {"page": page}


@pytest.mark.slow
def test_findings(tmp_path: Path) -> None:
    result = compressed(Strips(), findings(tmp_path / "in"), FINDINGS, tmp_path / "out")
    assert result["verdict"]["metric"] == "auroc"
    assert "ROC curves of left" in result["page"]
    assert "Operating points: left ≥" in result["page"]
    for side in ("parent", "compressed"):
        cases = [case for case in result["cases"] if case["label"] and case["label"][0] is not None]
        labels, scores = [c["label"][0] for c in cases], [c[side]["score"][0] for c in cases]
        found = result[side]["metrics"]["auroc/left"]["value"]
        assert found == pytest.approx(metrics.roc_auc_score(labels, scores))
    done = microtome.predict(tmp_path / "out", [tmp_path / "in"], tmp_path / "predicted")
    assert (done["cases"], done["failed"]) == (CASES, [])
    with (tmp_path / "predicted" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    limit = result["operating_point"]["thresholds"][1]
    assert {row["decision right"] for row in rows} == {"0", "1"}
    assert all((row["decision right"] == "1") == (float(row["probability right"]) >= limit) for row in rows)


def test_numbers(tmp_path: Path) -> None:
    result = compressed(Strips(), values(tmp_path / "in"), VALUES, tmp_path / "out")
    assert result["verdict"]["metric"] == "nmae"
    assert "Bland and Altman" in result["page"]
    truth = np.array([case["label"] for case in result["cases"]])
    given = np.array([case["compressed"]["value"] for case in result["cases"]])
    expected = metrics.mean_absolute_error(truth, given, multioutput="raw_values")
    found = [result["compressed"]["metrics"][f"mae/{name}"]["value"] for name in NAMES]
    assert found == pytest.approx(expected.tolist())
    assert max(found) < 4
    again = microtome.evaluate(tmp_path / "out", tmp_path / "in", tmp_path / "again")  # columns are told by the package
    assert again["compressed"]["metrics"]["nmae"]["value"] < 0.5


@pytest.mark.slow
def test_images(tmp_path: Path) -> None:
    result = compressed(Smooth(), noisy(tmp_path / "in"), IMAGES, tmp_path / "out")
    assert result["verdict"]["metric"] == "psnr"
    assert "Difference of both" in result["page"]
    microtome.predict(tmp_path / "out", [tmp_path / "in" / "0.png"], tmp_path / "predicted")
    made = read_image([tmp_path / "predicted" / "0.tif"]).array
    target = read_image([tmp_path / "in" / "t0.png"]).array
    given = read_image([tmp_path / "in" / "0.png"]).array
    assert made.dtype == np.float32
    assert np.abs(made - target).mean() < 0.6 * np.abs(given.astype(float) - target).mean()


def test_boxes(tmp_path: Path) -> None:
    result = compressed(Blocks(), blocks(tmp_path / "in"), BOXES, tmp_path / "out")
    assert result["verdict"]["metric"] == "froc"
    assert "(FROC)" in result["page"]
    assert result["parent"]["metrics"]["froc"]["value"] > 0.3
    assert [port["name"] for port in result["outputs"]] == ["cls", "reg"]
    microtome.predict(tmp_path / "out", [tmp_path / "in"], tmp_path / "predicted")
    with (tmp_path / "predicted" / "boxes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    content = json.loads((tmp_path / "predicted" / "boxes.json").read_text())
    assert len(content["annotations"]) == len(rows) > 0
    assert len(content["images"]) == 24
    assert all(float(row["x_max"]) - float(row["x_min"]) == pytest.approx(8, abs=0.2) for row in rows)
    assert microtome.predict(tmp_path / "out", [tmp_path / "in"], tmp_path / "predicted")["skipped"] == 24


def test_bad_input_is_said_before_any_work(tmp_path: Path) -> None:
    options = CompressOptions(pipeline=VALUES)
    text = table(tmp_path / "text", list(NAMES), lambda rng, _: (strips(rng)[0], ["old", 3]))
    with pytest.raises(LabelError, match="has 'old' in the column left, which is no number"):
        microtome.compress(Strips(), text, tmp_path / "out", options=options)
    answers = table(tmp_path / "answers", ["findings:left"], lambda rng, _: (strips(rng)[0], [2]))
    with pytest.raises(LabelError, match="has '2' in the column findings:left, which is neither 0 nor 1"):
        microtome.compress(Strips(), answers, tmp_path / "out", options=CompressOptions(pipeline=FINDINGS))
    outside = blocks(tmp_path / "outside")
    content = json.loads((outside / "test.json").read_text())
    for image in content["images"]:
        image.pop("width")
    content["annotations"][0]["bbox"] = [30, 0, 8, 8]
    (outside / "test.json").write_text(json.dumps(content))
    with pytest.raises(LabelError, match=r"has a box outside of the image: it goes from \(0, 30\) to \(8, 38\)"):
        microtome.compress(Blocks(), outside, tmp_path / "out", options=CompressOptions(pipeline=BOXES))
    with pytest.raises(OptionError, match="A detector needs a pipeline that says how its heads become boxes"):
        microtome.compress(Blocks(), blocks(tmp_path / "boxes"), tmp_path / "out")
    coarse = Detector("anchors", ("cls",), ("reg",), strides=(16.0,), anchors=(((8.0, 8.0),),))
    wrong = dataclasses.replace(BOXES, detector=coarse)
    with pytest.raises(ModelError, match=r"gives 16 scores and 16 boxes .* the declared grid has 4 places"):
        microtome.compress(Blocks(), tmp_path / "boxes", tmp_path / "out", options=CompressOptions(pipeline=wrong))
    assert not (tmp_path / "out").exists()
