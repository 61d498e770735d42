"""`compress` whole, on tiny cohorts: the package, its evidence, and going on after an interrupt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microtome
from microtome import recipes
from microtome.deployment.placement import Placement
from microtome.files import sha256
from microtome.recipes import files
from microtome.types import Image
from microtome.verbs.options import CompressOptions
from tiny import PICTURES, Spots, manifest_cohort, segmentation_cohort

pytestmark = pytest.mark.slow

FILES = {
    "weights.safetensors",
    "result.json", "report.html", "MODEL_CARD.md", "network.pt2", "pipeline.json",
    "targets/openvino/model.xml", "targets/openvino/model.bin",
    "provenance.json", "examples.npz",
}  # fmt: skip


@pytest.fixture
def package(pictures: tuple[Path, Path]) -> Path:
    """A package from pictures with subgroups."""
    return pictures[0]


def result_of(package: Path) -> dict[str, Any]:
    """What was measured when a package was made."""
    return json.loads((package / "result.json").read_text())


def test_package_is_whole_and_non_inferior(package: Path) -> None:
    result = result_of(package)
    assert {file.relative_to(package).as_posix() for file in package.rglob("*") if file.is_file()} == FILES
    assert result["session"]["file"] == result["compressed"]["file"] == "targets/openvino/model.xml"
    assert result["schema"] == 1
    assert result["integer"] == {"requested": 3, "executed": 3}
    assert result["compressed"]["metrics"]["dice"]["value"] > 0.9
    assert abs(result["difference"]["dice"]["value"]) < 0.02
    assert result["verdict"]["metric"] == "dice"
    assert result["counts"]["evaluation"] == len(result["cases"]) == 20
    assert result["counts"]["calibration"] == 8
    assert set(result["subgroups"]["site"]) <= {"A", "B"}
    assert result["compressed"]["bytes"] == sum(file.stat().st_size for file in (package / "targets").rglob("*.*"))
    assert not package.with_name("package.partial").exists()


def test_floats_where_no_layer_is_faster_in_integers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"change": "everything in bf16", "before_ms": 2.0, "after_ms": 1.0, "kept": True}
    found = Placement(frozenset(), frozenset({"all"}), "bf16", 1.0, in_float=True, tried=(row,))
    monkeypatch.setattr("microtome.verbs.compress.measured_placement", lambda *_, **__: found)  # this machine has none
    options = CompressOptions(pipeline=PICTURES, threads=1, calibration_cases=8, placement="measured")
    result = microtome.compress(Spots(), manifest_cohort(tmp_path / "cohort"), tmp_path / "package", options=options)
    assert result["recipe"] == "f32"
    assert result["integer"]["requested"] == 0
    assert result["placement"] == [row]
    assert result["session"]["precision"] == "bf16"


def test_integers_are_placed_on_the_graph_that_the_recipe_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def measured(network, *_, **__) -> Placement:
        seen.append(network)
        return Placement(frozenset(), frozenset({"head"}), "f32", 1.0)

    monkeypatch.setattr("microtome.verbs.compress.measured_placement", measured)
    options = CompressOptions(
        pipeline=PICTURES, recipe="equalized", threads=1, calibration_cases=4, placement="measured", target="reference"
    )
    result = microtome.compress(
        Spots(), segmentation_cohort(tmp_path / "cohort"), tmp_path / "package", options=options
    )
    assert [network.state for network in seen] == [{"folded", "equalized"}]
    assert [record["method"] for record in result["methods"]] == [
        "FoldBatchNorm",
        "Equalize",
        "Quantize",
        "CorrectBias",
    ]
    assert (result["methods"][2]["readers"], result["methods"][2]["skip"]) == ([], ["head"])
    assert result["integer"]["requested"] == 2


def test_a_recipe_of_ones_own_runs_and_can_be_recovered(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    text = files.find("minmax").read_text()
    mine.write_text(text.replace('observer = "minmax"', 'observer = "percentile"\npercentile = 99.0'))
    options = CompressOptions(
        pipeline=PICTURES,
        recipe=mine,
        threads=1,
        calibration_cases=4,
        target="reference",
        set={"quantize.weight_bits": 5},
    )
    result = microtome.compress(
        Spots(), segmentation_cohort(tmp_path / "cohort"), tmp_path / "package", options=options
    )
    assert result["recipe"] == "mine"
    found = {(row["kind"], row["observer"]) for row in result["quantizers"]}
    assert found == {("activation", "percentile"), ("weight", "minmax")}
    record = json.loads((tmp_path / "package" / "provenance.json").read_text())["recipe"]
    again = recipes.from_history(record["name"], record["methods"])
    assert again.methods == recipes.read(mine, {"quantize.weight_bits": 5}).methods


def test_roles_are_disjoint_by_patient_and_hashes_hold(package: Path) -> None:
    record = json.loads((package / "provenance.json").read_text())
    roles = {name: {entry["patient"] for entry in cases} for name, cases in record["cohort"]["roles"].items()}
    assert record["cohort"]["disjoint_by_patient"] is True
    assert not roles["calibration"] & (roles["tuning"] | roles["evaluation"])
    assert not roles["tuning"] & roles["evaluation"]
    for name, value in record["package"].items():
        if name not in ("report.html", "MODEL_CARD.md"):  # written after provenance, which they quote
            assert sha256(package / name) == value


def test_no_file_name_reaches_the_package(package: Path) -> None:
    for file in filter(Path.is_file, package.rglob("*")):
        assert b"person" not in file.read_bytes(), file.name


def test_package_opens_without_torch_and_predicts(package: Path) -> None:
    opened = microtome.open_package(package, threads=1)
    array = np.full((1, 40, 48), 60, np.uint8)
    array[:, 10:24, 10:24] = 200
    labels = opened.predict(Image(array))
    assert labels.shape == (40, 48)
    assert labels[16, 16] == 1
    assert labels[35, 40] == 0


def test_changed_model_file_is_refused(package: Path, tmp_path: Path) -> None:
    shutil.copytree(package, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "targets" / "openvino" / "model.bin"
    content = bytearray(weights.read_bytes())
    content[10] ^= 1
    weights.write_bytes(content)
    with pytest.raises(microtome.errors.ReadError, match="not the file that was measured"):
        microtome.open_package(tmp_path)


def test_classification_fixes_the_operating_point_on_tuning_cases(classes: tuple[Path, Path]) -> None:
    result = result_of(classes[0])
    assert result["task"] == "classification"
    assert result["operating_point"]["fixed_on"].endswith("tuning cases, parent")
    assert result["compressed"]["metrics"]["auroc"]["value"] > 0.6
    assert abs(result["difference"]["auroc"]["value"]) < 0.05
    assert {"sensitivity", "specificity", "auprc"} <= set(result["difference"])


def test_volumes_by_sliding_window(volumes: tuple[Path, Path]) -> None:
    result = result_of(volumes[0])
    assert result["integer"]["requested"] == result["integer"]["executed"] > 0
    assert result["agreement"]["value"] > 0.98
    assert result["examples"][0]["slice"] is not None


@pytest.mark.slow
def test_reference_target_says_that_nothing_runs_in_integers(tmp_path: Path) -> None:
    cohort = segmentation_cohort(tmp_path / "cohort", cases=24)
    options = CompressOptions(pipeline=PICTURES, target="reference", threads=1, calibration_cases=4)
    result = microtome.compress(Spots(), cohort, tmp_path / "package", options=options)
    assert result["integer"]["executed"] == 0
    assert "simulates integers" in result["warnings"][0]


@pytest.mark.slow
def test_onnxruntime_target(tmp_path: Path) -> None:
    cohort = segmentation_cohort(tmp_path / "cohort", cases=24)
    options = CompressOptions(pipeline=PICTURES, target="onnxruntime", threads=1, calibration_cases=4)
    result = microtome.compress(Spots(), cohort, tmp_path / "package", options=options)
    assert result["integer"]["executed"] == result["integer"]["requested"] == 3
    assert abs(result["difference"]["dice"]["value"]) < 0.02


class _InterruptOnce:
    """Progress that is interrupted in the middle of the evaluation."""

    def __init__(self, title: str, after: int) -> None:
        self.title, self.after, self.steps = title, after, []

    def track(self, items, title, total=None):
        for i, item in enumerate(items):
            if title == self.title and i == self.after:
                raise KeyboardInterrupt
            self.steps.append(title)
            yield item

    def say(self, text: str) -> None:
        self.steps.append(text)


@pytest.mark.slow
@pytest.mark.parametrize(("title", "after"), [("Quantize", 3), ("evaluate", 5)])
def test_interrupted_work_goes_on_where_it_stopped(tmp_path: Path, title: str, after: int) -> None:
    cohort = segmentation_cohort(tmp_path / "cohort", cases=24)
    options = CompressOptions(pipeline=PICTURES, threads=1, calibration_cases=6)
    with pytest.raises(KeyboardInterrupt):
        microtome.compress(Spots(), cohort, tmp_path / "out", options=options, progress=_InterruptOnce(title, after))
    assert not (tmp_path / "out").exists()
    again = _InterruptOnce("nothing", 0)
    resumed = microtome.compress(Spots(), cohort, tmp_path / "out", options=options, progress=again)
    assert any("going on" in step for step in again.steps)
    if title == "evaluate":
        assert "Quantize" not in again.steps
    fresh = microtome.compress(Spots(), cohort, tmp_path / "fresh", options=options)
    assert resumed["compressed"]["sha256"] == fresh["compressed"]["sha256"]
    assert resumed["compressed"]["metrics"] == fresh["compressed"]["metrics"]


@pytest.mark.slow
def test_other_options_start_over(tmp_path: Path) -> None:
    cohort = segmentation_cohort(tmp_path / "cohort", cases=24)
    options = CompressOptions(pipeline=PICTURES, threads=1, calibration_cases=6)
    with pytest.raises(KeyboardInterrupt):
        microtome.compress(Spots(), cohort, tmp_path / "out", options=options, progress=_InterruptOnce("evaluate", 2))
    other = CompressOptions(pipeline=PICTURES, threads=1, calibration_cases=6, observer="minmax")
    progress = _InterruptOnce("nothing", 0)
    microtome.compress(Spots(), cohort, tmp_path / "out", options=other, progress=progress)
    assert "Quantize" in progress.steps


@pytest.mark.slow
def test_empty_reference_is_counted(tmp_path: Path) -> None:
    cohort = segmentation_cohort(tmp_path / "cohort", cases=40, empty=40)
    options = CompressOptions(pipeline=PICTURES, threads=1, calibration_cases=6)
    result = microtome.compress(Spots(), cohort, tmp_path / "none", options=options)
    assert result["counts"]["empty_reference"]["spot"] == result["counts"]["evaluation"]
    assert result["verdict"]["non_inferior"] is None
    some = segmentation_cohort(tmp_path / "some", cases=40, empty=20)
    options = CompressOptions(pipeline=PICTURES, threads=1, calibration_cases=6, evaluation=0.5)
    result = microtome.compress(Spots(), some, tmp_path / "package", options=options)
    assert result["counts"]["empty_reference"]["spot"] > 0
