"""`compress --coded`: what every verb makes of the package, and what it weighs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import microtome
from microtome.entropy.packages import CODED, coded_files
from microtome.graph.coded import NETWORK, PLACES, WEIGHTS
from microtome.types import Image
from microtome.verbs.options import CompressOptions
from microtome.verbs.report import report
from tiny import PICTURES, Spots, segmentation_cohort

pytestmark = pytest.mark.slow

OPTIONS = CompressOptions(
    pipeline=PICTURES, threads=1, calibration_cases=4, target=("openvino", "onnxruntime"), precision="f32"
)
X = np.random.default_rng(0).standard_normal((1, 1, 32, 32), np.float32)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return segmentation_cohort(tmp_path_factory.mktemp("cohort") / "cohort", cases=24)


@pytest.fixture(scope="module")
def packages(cohort: Path) -> tuple[Path, Path]:
    """The same package as files, and coded."""
    found = []
    for coded in (False, True):
        found.append(cohort.parent / f"coded {coded}")
        microtome.compress(Spots(), cohort, found[-1], options=replace(OPTIONS, coded=coded))
    return found[0], found[1]


def result_of(package: Path) -> dict:
    return json.loads((package / "result.json").read_text())


def test_model_files_are_in_one(packages: tuple[Path, Path]) -> None:
    one, other = ({p.relative_to(f).as_posix() for p in f.rglob("*") if p.is_file()} for f in packages)
    model = {f"targets/openvino/model.{ending}" for ending in ("xml", "bin")} | {"targets/onnxruntime/model.onnx"}
    second = f"targets/onnxruntime/{NETWORK}"  # each further target's own network, which a coded package leaves out
    assert one - other == {NETWORK, WEIGHTS, second, *model}
    assert other - one == {CODED}
    assert set(coded_files(packages[1])) == {NETWORK, WEIGHTS, PLACES, *model}


def test_the_bytes_are_those_on_disk(packages: tuple[Path, Path]) -> None:
    one, other = map(result_of, packages)
    size = (packages[1] / CODED).stat().st_size
    assert other["compressed"]["bytes"] == other["packed"]["coded_bytes"] == size
    assert {line["bytes"] for line in other["targets"].values()} == {size}
    assert {run["bytes"] for run in other["runs"] if run.get("compressed")} == {size}
    files = {name: content for name, content in coded_files(packages[1]).items() if "openvino" in name}
    assert other["packed"]["decoded_bytes"] == sum(map(len, files.values()))
    assert other["parent"]["bytes"] == pytest.approx(one["parent"]["bytes"], rel=0.02)  # names have numbers in them


def test_no_number_of_the_evidence_is_another(packages: tuple[Path, Path]) -> None:
    one, other = map(result_of, packages)
    assert one["compressed"]["metrics"] == other["compressed"]["metrics"]
    assert one["difference"] == other["difference"]
    weights = "targets/openvino/model.bin"
    assert (packages[0] / weights).read_bytes() == coded_files(packages[1])[weights]


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_it_runs_like_the_other(packages: tuple[Path, Path], target: str) -> None:
    one, other = (microtome.open_package(folder, target=target, threads=1) for folder in packages)
    assert np.array_equal(one.session.run(X), other.session.run(X))
    image = Image(np.full((1, 40, 48), 60, np.uint8))
    assert np.array_equal(one.predict(image), other.predict(image))
    assert {run["runtime"] for run in microtome.bench(packages[1], target=target, threads=1)["runs"]} == {target}


def test_predict_evaluate_inspect_and_report(packages: tuple[Path, Path], cohort: Path, tmp_path: Path) -> None:
    coded = packages[1]
    assert microtome.predict(coded, [cohort / "images"], tmp_path / "out", threads=1)["cases"] == 24
    result = microtome.evaluate(coded, cohort, tmp_path / "again", options=CompressOptions(threads=1))
    assert result["compressed"]["metrics"]["dice"]["value"] > 0.9
    assert [layer["name"] for layer in microtome.inspect(coded)["layers"]] == ["smooth", "mix", "head"]
    assert "spot" in report([coded]).read_text()


def test_the_network_can_be_compressed_again(packages: tuple[Path, Path], cohort: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, target="openvino", recipe="f32", coded=None)
    result = microtome.compress(packages[1], cohort, tmp_path / "again", options=options)
    assert "coded_bytes" not in result["packed"]
    assert result["parent"]["sha256"] == result_of(packages[1])["compressed"]["sha256"]


def test_a_recipe_can_ask_for_it(cohort: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('coded = true\n[[method]]\nmethod = "fold"\n')
    options = replace(OPTIONS, target="openvino", recipe=mine)
    result = microtome.compress(Spots(), cohort, tmp_path / "package", options=options)
    assert (tmp_path / "package" / CODED).stat().st_size == result["packed"]["coded_bytes"]
    result = microtome.compress(Spots(), cohort, tmp_path / "plain", options=replace(options, coded=False))
    assert not (tmp_path / "plain" / CODED).exists()
