"""Packages of several targets, packages from before there were several, and targets that cannot be run here."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer

import microtome
from microtome.cli.running import FAULT, finish
from microtome.errors import OptionError, ReadError
from microtome.files import sha256
from microtome.medical.pipeline import Pipeline
from microtome.verbs.options import CompressOptions
from microtome.verbs.report import report
from tiny import Spots, segmentation_cohort

pytestmark = pytest.mark.slow

PICTURES = Pipeline("segmentation", ("background", "spot"), 1, 2, size=(32, 32), normalize="unit", activation="softmax")
OPTIONS = CompressOptions(pipeline=PICTURES, threads=1, calibration_cases=4)
FILES = {"openvino": "model.xml", "onnxruntime": "model.onnx", "reference": "model.pt2"}
X = np.random.default_rng(0).standard_normal((1, 1, 32, 32), np.float32)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return segmentation_cohort(tmp_path_factory.mktemp("cohort") / "cohort", cases=24)


@pytest.fixture(scope="module")
def package(cohort: Path) -> Path:
    """A package for all built-in targets."""
    out = cohort.parent / "package"
    microtome.compress(Spots(), cohort, out, options=replace(OPTIONS, target=tuple(FILES)))
    return out


def before_there_were_several(package: Path, target: str, out: Path) -> Path:
    """Lay a target of a package out as older versions did: its files beside `result.json`, which knows of no others."""
    shutil.copytree(package, out, ignore=shutil.ignore_patterns("targets"))
    own = package / "targets" / target
    for file in own.iterdir():
        shutil.copy(file, out)
    result = json.loads((out / "result.json").read_text())
    if target == "openvino":
        assert result.pop("targets")
        for field in ("session", "compressed"):
            result[field]["file"] = FILES[target]
    assert result["session"]["file"] == FILES[target]
    del result["inputs"], result["outputs"]
    (out / "result.json").write_text(json.dumps(result))
    return out


def test_the_first_target_is_the_packages_own(package: Path) -> None:
    result = json.loads((package / "result.json").read_text())
    assert result["target"] == "openvino"
    assert list(result["targets"]) == list(FILES)
    assert not (package / "targets" / "openvino" / "result.json").exists()
    for name, line in result["targets"].items():
        assert line["file"] == f"targets/{name}/{FILES[name]}"
        hashes = {file: sha256(package / "targets" / name / file) for file in line["sha256"]}
        assert (line["sha256"], line["measured"]) == (hashes, True)
    line = result["targets"]["openvino"]
    assert {key: line[key] for key in result["session"]} == result["session"]


@pytest.mark.parametrize("target", ["onnxruntime", "reference"])
def test_each_further_target_has_a_whole_result(package: Path, target: str) -> None:
    first, result = (
        json.loads((place / "result.json").read_text()) for place in (package, package / "targets" / target)
    )
    assert result.keys() == first.keys() - {"targets", "failed_targets"}
    assert (result["target"], result["session"]["file"]) == (target, FILES[target])
    assert result["verdict"] == first["targets"][target]["verdict"]
    assert result["compressed"]["latency_ms"] == first["targets"][target]["latency_ms"]
    assert {run["runtime"] for run in result["runs"]} == {"pytorch", target}
    assert "spot" in report([package / "targets" / target]).read_text()


@pytest.mark.parametrize("target", FILES)
def test_each_target_opens_by_its_name(package: Path, target: str) -> None:
    opened = microtome.open_package(package, target=target, threads=1)
    assert (opened.folder, opened.result["target"]) == (package, target)
    assert type(opened.session).__module__.endswith(target)
    assert [port.name for port in (*opened.session.inputs, *opened.session.outputs)] == ["input", "output"]
    assert {run["runtime"] for run in microtome.bench(package, target=target, threads=1)["runs"]} == {target}


def test_without_a_name_the_first_opens_and_another_is_refused(package: Path) -> None:
    assert microtome.open_package(package).result["target"] == "openvino"
    with pytest.raises(OptionError, match="no target 'tensorrt'") as caught:
        microtome.open_package(package, target="tensorrt")
    assert caught.value.hint == "It has openvino, onnxruntime, reference."


@pytest.mark.parametrize("target", FILES)
def test_older_packages_open_predict_bench_and_report(package: Path, target: str, cohort: Path, tmp_path: Path) -> None:
    older = before_there_were_several(package, target, tmp_path / "older")
    opened = microtome.open_package(older, threads=1)
    assert opened.result["target"] == target
    assert np.array_equal(
        opened.session.run(X), microtome.open_package(package, target=target, threads=1).session.run(X)
    )
    assert microtome.open_package(older, target=target, threads=1).result == opened.result
    with pytest.raises(OptionError, match=f"It has {target}"):
        microtome.open_package(older, target="tensorrt")
    image = next(iter((cohort / "images").iterdir()))
    assert microtome.predict(older, [image], tmp_path / "labels", threads=1)["cases"] == 1
    assert microtome.bench(older, threads=1)["runs"][0]["runtime"] == target
    assert report([older]).stat().st_size > 1000


def test_a_target_that_cannot_be_run_here_is_exported_without_evidence(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from their_pkg import boxed

    monkeypatch.setattr(boxed, "HERE", False)
    options = replace(OPTIONS, target=("reference", "their_pkg.boxed"))
    result = microtome.compress(Spots(), cohort, tmp_path / "package", options=options)
    line = result["targets"]["boxed"]
    assert (line["measured"], line["file"]) == (False, "targets/boxed/model.box")
    assert line["verdict"]["non_inferior"] is None
    assert "cannot run boxed" in line["verdict"]["reason"]
    assert "latency_ms" not in line
    own = tmp_path / "package" / "targets" / "boxed"
    assert {file.name for file in own.iterdir()} == {"model.box", "network.pt2", "result.json"}
    assert json.loads((own / "result.json").read_text())["measured"] is False
    assert "cannot run boxed" in report([own]).read_text()
    opened = microtome.open_package(tmp_path / "package", target="boxed", threads=1)  # on a machine that can
    assert opened.session.run(X).shape == (1, 2, 32, 32)
    first = replace(OPTIONS, target="their_pkg.boxed")
    with pytest.raises(OptionError, match="cannot run boxed, so that there would be no evidence"):
        microtome.compress(Spots(), cohort, tmp_path / "other", options=first)


def test_a_further_target_that_fails_does_not_lose_the_first(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from their_pkg import boxed

    def fails(network: object, folder: Path) -> Path:
        (folder / "half.box").write_text("half")
        raise OptionError("boxed cannot hold a convolution.", "Take another target.")

    monkeypatch.setattr(boxed, "export", fails)
    options = replace(OPTIONS, target=("reference", "their_pkg.boxed"))
    result = microtome.compress(Spots(), cohort, tmp_path / "package", options=options)
    assert list(result["targets"]) == ["reference"]
    assert "cannot hold a convolution" in result["failed_targets"]["boxed"]
    assert any("no part for boxed" in warning for warning in result["warnings"])
    assert not (tmp_path / "package" / "targets" / "boxed").exists()
    assert microtome.open_package(tmp_path / "package", threads=1).session.run(X).shape == (1, 2, 32, 32)
    with pytest.raises(typer.Exit) as end:
        finish(result, as_json=True, out=tmp_path / "package")
    assert end.value.exit_code == FAULT
    first = replace(OPTIONS, target="their_pkg.boxed")
    with pytest.raises(OptionError, match="cannot hold a convolution"):
        microtome.compress(Spots(), cohort, tmp_path / "other", options=first)


def test_any_target_of_a_package_predicts_and_is_evaluated(package: Path, cohort: Path, tmp_path: Path) -> None:
    image = next(iter((cohort / "images").iterdir()))
    for target in FILES:
        out = tmp_path / target
        assert microtome.predict(package, [image], out / "labels", target=target, threads=1)["cases"] == 1
        options = CompressOptions(evaluation=1.0, tuning=0.0, threads=1)
        assert microtome.evaluate(package, cohort, out / "e", target=target, options=options)["target"] == target
    with pytest.raises(OptionError, match="has no target 'tensorrt'"):
        microtome.predict(package, [image], tmp_path / "other", target="tensorrt")
    with pytest.raises(OptionError, match="is no package"):
        microtome.evaluate("torch.nn:Identity", cohort, tmp_path / "model", target="openvino")


def test_a_package_imports_no_runtime_of_another_package_unless_it_is_named(package: Path, tmp_path: Path) -> None:
    out = before_there_were_several(package, "reference", tmp_path / "package")
    result = json.loads((out / "result.json").read_text())
    result["session"]["runtime"] = "their_pkg.boxed"
    (out / "result.json").write_text(json.dumps(result))
    for name in [name for name in sys.modules if name.startswith("their_pkg")]:
        del sys.modules[name]
    with pytest.raises(ReadError, match=r"runtime their_pkg\.boxed of another package"):
        microtome.open_package(out)
    assert not any(name.startswith("their_pkg") for name in sys.modules)
    assert microtome.open_package(out, target="their_pkg.boxed").session.run(X).shape == (1, 2, 32, 32)


@pytest.mark.parametrize("targets", [(), ("openvino", "openvino")])
def test_targets_are_named_once_each(targets: tuple[str, ...], cohort: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, target=targets)
    with pytest.raises(OptionError, match="the targets are"):
        microtome.compress(Spots(), cohort, tmp_path / "package", options=options)


def spoiled(package: Path, folder: Path, *, without: str = "", result: str | None = None) -> Path:
    """A copy of a package that lacks a file, or has another `result.json`."""
    shutil.copytree(package, folder)
    if without:
        (folder / without).unlink()
    if result is not None:
        (folder / "result.json").write_text(result)
    return folder


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"without": "result.json"}, "it has no result.json"),
        ({"without": "pipeline.json"}, "has no pipeline.json"),
        ({"without": "targets/openvino/model.bin"}, "has no model.bin"),
        ({"result": "{"}, "is broken"),
        ({"result": "[]"}, "is not of schema 1"),
        ({"result": '{"schema": 2}'}, "is not of schema 1"),
        ({"result": '{"schema": 1}'}, "does not say which runtime"),
    ],
)
def test_a_package_that_is_not_whole_is_refused(
    package: Path, how: dict[str, str], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ReadError, match=reason):
        microtome.open_package(spoiled(package, tmp_path / "copy", **how))


def test_a_file_that_was_not_measured_is_refused(package: Path, tmp_path: Path) -> None:
    copy = spoiled(package, tmp_path / "copy")
    with (copy / "targets" / "openvino" / "model.bin").open("ab") as file:
        file.write(b"0")
    with pytest.raises(ReadError, match="not the file that was measured"):
        microtome.open_package(copy)
