"""The command line: help, exit codes, output for scripts, and the demo from end to end."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from microtome.batches.selection import STRATEGIES
from microtome.cli import app
from microtome.cli.options import options_of
from microtome.core.observers import OBSERVERS
from microtome.medical.formats import FORMATS, cohort_format
from microtome.recipes import read
from microtome.recipes.files import names as recipe_names
from microtome.runtimes import TARGETS
from microtome.types import CalibrationChoice, ObserverName
from microtome.verbs.recipe import asked
from microtome.version import __version__

COMMANDS = ("compress", "evaluate", "bench", "inspect", "parity", "report", "demo", "recipes", "targets")
DEMO = "microtome.demo.network:demo_network"


def call(*arguments: str | Path, code: int = 0) -> str:
    """Run the command line and return what it printed."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's package."""
    out = tmp_path_factory.mktemp("demo") / "package"
    said = call("demo", "-o", out, "--cases", "40", "--threads", "1")
    assert "non-inferior" in said
    assert str(out / "report.html") in said.replace("\n", "")
    return out


def test_version() -> None:
    assert call("--version").strip() == f"microtome {__version__}"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    assert f"Example: microtome {command}" in " ".join(call(command, "--help").split())


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("compress", recipe_names()),
        ("compress", get_args(ObserverName)),
        ("compress", get_args(CalibrationChoice)),
        ("compress", tuple(TARGETS)),
        ("compress", tuple(FORMATS)),
        ("evaluate", tuple(FORMATS)),
    ],
)
def test_help_names_all_that_there_is(command: str, names: tuple[str, ...]) -> None:
    said = call(command, "--help")
    assert not [name for name in names if name not in said]


def test_names_that_help_knows_are_those_that_there_are() -> None:
    assert tuple(OBSERVERS) == get_args(ObserverName)
    assert tuple(STRATEGIES) == get_args(CalibrationChoice)
    assert [cohort_format(name).NAME for name in FORMATS] == list(FORMATS)


def test_recipes_are_listed_and_shown(tmp_path: Path) -> None:
    listed = dict(line.split(maxsplit=1) for line in call("recipes").splitlines())
    assert tuple(listed) == recipe_names()
    assert listed["qat"] == "train with quantization, distilling the float network"
    mine = tmp_path / "mine.toml"
    mine.write_text(call("recipes", "show", "qat"))
    assert read(mine).methods == read("qat").methods
    assert "the nearest known one is 'qat'" in call("recipes", "show", "qatt", code=2)


def test_options_that_are_given_reach_the_recipe() -> None:
    given = {"input_shape": None, "format_": None, "recipe": "qat", "weight_bits": "4", "activation_bits": "float"}
    options = options_of({**given, "observer": "kl", "skip": ["a"], "set_": ["finetune.steps=7"], "seed": 3})
    (chosen,) = asked(options)
    _, quantize, finetune = chosen.methods
    assert (quantize.weight_bits, quantize.activation_bits, quantize.observer) == (4, None, "kl")
    assert (quantize.skip, finetune.steps, finetune.seed) == (frozenset({"a"}), 7, 3)
    (plain,) = asked(options_of({**given, "weight_bits": None, "activation_bits": None, "seed": 0}))
    assert plain.methods == read("qat", seed=0).methods


@pytest.mark.slow
def test_demo_runs_every_convolution_in_integers(package: Path) -> None:
    result = json.loads((package / "result.json").read_text())
    assert result["verdict"]["non_inferior"] is True
    assert result["integer"]["executed"] == result["integer"]["requested"] == 19
    assert [text for text in result["warnings"] if "busy" not in text] == []


@pytest.mark.slow
def test_report_opens_in_a_browser_without_errors(package: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--enable-logging=stderr", f"--screenshot={tmp_path / 'page.png'}", (package / "report.html").as_uri()]
    run = subprocess.run([browser, *options], check=True, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in run.stderr
    assert (tmp_path / "page.png").stat().st_size > 20_000


@pytest.mark.slow
def test_json_is_all_that_is_printed(package: Path, tmp_path: Path) -> None:
    said = call("bench", package, "--threads", "1", "--json")
    assert json.loads(said)["runs"][0]["latency_ms"] > 0


def test_inspect_names_layers_and_targets() -> None:
    result = json.loads(call("inspect", DEMO, "--input-shape", "1,64,64", "--json"))
    by_name = {layer["name"]: layer for layer in result["layers"]}
    expected = {"openvino": "int8", "onnxruntime": "f32", "litert": "int8", "reference": "int8"}
    assert {**by_name["grow1"]["executes"], **expected} == by_name["grow1"]["executes"]
    assert by_name["head"]["macs"] == 16 * 4 * 64 * 64
    assert "grow1" in call("inspect", DEMO, "--input-shape", "1,64,64")


@pytest.mark.slow
def test_bench_of_a_model_compares_precisions() -> None:
    result = json.loads(call("bench", DEMO, "--input-shape", "1,64,64", "--threads", "1", "--json"))
    assert {run["name"] for run in result["runs"]} >= {"eager f32", "openvino f32"}
    assert "down1.0.0" in {layer["name"] for layer in result["layers"]}


@pytest.mark.slow
def test_evaluate_against_the_parent_and_alone(package: Path, tmp_path: Path) -> None:
    from microtome.demo.phantom import write_cohort

    manifest = write_cohort(tmp_path / "other", cases=40, seed=3)
    alone = json.loads(call("evaluate", package, manifest, "-o", tmp_path / "alone", "--json"))
    assert alone["verdict"]["non_inferior"] is None
    assert alone["compressed"]["metrics"]["dice"]["value"] > 0.9
    pair = json.loads(call("evaluate", package, manifest, "-o", tmp_path / "pair", "--parent", DEMO, "--json"))
    assert pair["verdict"]["non_inferior"] is True
    assert (tmp_path / "pair" / "report.html").exists()


@pytest.mark.slow
def test_cases_that_calibrated_are_not_evaluated(package: Path, tmp_path: Path) -> None:
    from microtome.demo.phantom import write_cohort

    manifest = write_cohort(tmp_path / "same", cases=40)
    rows = list(csv.DictReader(manifest.read_text().splitlines()))
    with manifest.open("w", newline="") as file:
        table = csv.DictWriter(file, [name for name in rows[0] if name != "split"], extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    result = json.loads(call("evaluate", package, manifest, "-o", tmp_path / "out", "--json"))
    calibrated = json.loads((package / "result.json").read_text())["counts"]["calibration"]
    assert result["counts"]["evaluation"] == 40 - calibrated
    assert "left out" in result["notes"][-1]


def test_key_names_the_files_and_stays_outside(tmp_path: Path) -> None:
    from microtome.demo.phantom import write_cohort

    manifest = write_cohort(tmp_path / "cohort", cases=40)
    call(
        "compress", DEMO, manifest, "-o", tmp_path / "out", "--key", tmp_path / "key.csv", "--target", "nothing", code=2
    )
    rows = list(csv.DictReader((tmp_path / "key.csv").read_text().splitlines()))
    assert len(rows) == 40
    assert all(row["files"].endswith(".png") for row in rows)


@pytest.mark.slow
def test_report_again_and_comparison(package: Path, tmp_path: Path) -> None:
    assert call("report", package).strip().endswith("report.html")
    call("report", package, package, "-o", tmp_path / "both.html")
    assert (tmp_path / "both.html").exists()
    assert "error:" in call("report", tmp_path / "nothing", code=2)


def test_targets_are_listed_with_what_they_run_and_what_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(call("targets", "--json"))["targets"]
    assert tuple(found) == tuple(TARGETS)
    assert found["onnxruntime"]["layers"]["conv"] == {"activation": "uint8", "weight": "int8", "axes": [1, 2]}
    assert found["litert"]["everywhere"]
    assert not found["reference"]["integers"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert not json.loads(call("targets", "--target", "onnxruntime", "--json"))["targets"]["onnxruntime"]["installed"]
    assert "microtome[onnxruntime]" in " ".join(call("targets").split())
    assert "there is no target 'tensorrt'" in call("targets", "--target", "tensorrt", code=2)
