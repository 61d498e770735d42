"""`microtome parity`, and what `compress` says of several targets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import microtome
from microtome.cli import app
from microtome.errors import OptionError, ReadError
from microtome.verbs.options import CompressOptions
from sharing import Once
from tiny import PICTURES, Spots, manifest_cohort

TARGETS = ("openvino", "litert")


@pytest.fixture(scope="module")
def several(once: Once) -> Path:
    """A folder with a package of two targets, and its cohort."""

    def make(folder: Path) -> None:
        options = CompressOptions(pipeline=PICTURES, threads=1, calibration_cases=4, target=TARGETS, precision="f32")
        microtome.compress(Spots(), manifest_cohort(folder / "cohort"), folder / "package", options=options)

    return once("several-targets", make)


def test_each_target_is_compared_by_case_and_layer_by_layer(several: Path):
    found = microtome.parity(
        several / "package", [several / "cohort" / "images"], cases=3, threads=1, parent=f"{several / 'package'}"
    )
    assert set(found["targets"]) == set(TARGETS)
    for one in found["targets"].values():
        assert one["departs"] is None
        assert len(one["cases"]) == 3
        assert one["agreement"] > 0.995
        assert [rung["layer"] for rung in one["rungs"]][-1] == "(output)"
    assert found["parent"]["agreement"] == 1.0  # the package's network is its own parent here


def test_the_command_prints_a_table_or_json(several: Path):
    arguments = ["parity", str(several / "package"), str(several / "cohort" / "images"), "--cases", "1"]
    said = CliRunner().invoke(app, [*arguments, "--target", "litert"])
    assert said.exit_code == 0, said.output
    assert "litert" in said.output
    assert "openvino" not in said.output
    assert "1 image, " in said.output
    parsed = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert set(parsed["targets"]) == set(TARGETS)


def test_what_compress_found_stands_in_the_package(several: Path):
    result = json.loads((several / "package" / "result.json").read_text())
    for name in TARGETS:
        assert result["targets"][name]["parity"]["departs"] is None
        assert result["targets"][name]["parity"]["values"] > 3
    own = json.loads((several / "package" / "targets" / "litert" / "result.json").read_text())
    assert len(own["rungs"]) == result["targets"]["litert"]["parity"]["values"]
    page = (several / "package" / "report.html").read_text()
    assert "Runtime beside simulation" in page
    assert "value by value" in page


def test_a_package_of_one_target_says_nothing_of_others(pictures: tuple[Path, Path]):
    package, images = pictures
    assert "Runtime beside simulation" not in (package / "report.html").read_text()
    assert set(microtome.parity(package, [images], cases=1)["targets"]) == {"openvino"}


def test_a_package_that_classifies(classes: tuple[Path, Path]):
    package, images = classes
    one = microtome.parity(package, [images], cases=2)["targets"]["openvino"]
    assert one["agreement"] == 1.0
    assert max(case["largest"] for case in one["cases"]) < 0.05


def test_what_cannot_be_compared_is_said(several: Path, tmp_path: Path):
    older = tmp_path / "package"
    shutil.copytree(several / "package", older)
    (older / "targets" / "litert" / "network.pt2").unlink()
    images = several / "cohort" / "images"
    found = microtome.parity(older, [images], cases=1)["targets"]
    assert found["openvino"]["departs"] is None
    assert "no targets/litert/network.pt2" in found["litert"]["skipped"]
    with pytest.raises(OptionError, match=r"no targets/litert/network\.pt2"):
        microtome.parity(older, [images], target="litert")
    with pytest.raises(OptionError, match="has no target"):
        microtome.parity(older, [images], target="onnxruntime")
    with pytest.raises(ReadError, match="is not a package"):
        microtome.parity(tmp_path, [images])
    with pytest.raises(ReadError):
        microtome.parity(older, [tmp_path / "nowhere.png"])
