import dataclasses
import json
from pathlib import Path

import pytest

import tiny
from microtome.errors import OptionError, SplitError
from microtome.methods.bias_correction import CorrectBias
from microtome.methods.quantize import Quantize
from microtome.verbs import auto, recipe
from microtome.verbs.compress import compress
from microtome.verbs.options import CompressOptions

pytestmark = pytest.mark.slow

OPTIONS = {
    "recipe": "auto",
    "threads": 1,
    "tuning": 0.3,
    "evaluation": 0.3,
    "set": {"reconstruct.steps": 3, "finetune.steps": 3},
    "target": "openvino",
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return tiny.segmentation_cohort(tmp_path_factory.mktemp("cohort"), cases=60)


def run(cohort: Path, out: Path, **options) -> dict:
    return compress(tiny.Spots(), cohort, out, options=CompressOptions(**{**OPTIONS, **options}))


def test_the_cheapest_recipe_that_loses_nothing_is_taken(cohort: Path, tmp_path: Path):
    result = run(cohort, tmp_path / "package")
    assert [trial["name"] for trial in result["trials"]] == ["minmax"]
    assert result["trials"][0]["chosen"] is True
    assert "non-inferior on the tuning cases" in result["trials"][0]["reason"]
    assert result["verdict"]["non_inferior"] is True
    assert (tmp_path / "package" / "weights.safetensors").is_file()


@pytest.mark.slow
def test_it_goes_on_where_a_recipe_loses_and_says_why(cohort: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(recipe, "LADDER", ("minmax", "int8", "gptq"))
    result = run(cohort, tmp_path / "package", margin=1e-9, weight_bits=2, activation_bits=2, set={})
    names = [trial["name"] for trial in result["trials"]]
    assert names == ["minmax", "int8", "gptq"]
    assert all("on the tuning cases (lower bound" in trial["reason"] for trial in result["trials"])
    assert sum(trial["chosen"] for trial in result["trials"]) == 1
    chosen = next(trial for trial in result["trials"] if trial["chosen"])
    assert chosen["lower"] == max(trial["lower"] for trial in result["trials"])
    json.dumps(result)


@pytest.mark.slow
def test_a_recipe_that_cannot_run_is_named_and_passed_over(cohort: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(recipe, "LADDER", ("dynamic", "int8"))  # there is no linear layer
    trials = run(cohort, tmp_path / "package", set={})["trials"]
    assert [trial["name"] for trial in trials] == ["int8", "dynamic"]
    assert "could not run" in trials[1]["reason"]


@pytest.mark.slow
def test_interrupted_it_goes_on_behind_what_is_finished(cohort: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(recipe, "LADDER", ("minmax", "int8"))
    tried: list[str] = []
    step = auto._Climb._compress

    def interrupted(self, chosen, folder: Path):
        tried.append(chosen.name)
        if chosen.name == "int8" and len(tried) == 2:
            raise KeyboardInterrupt
        return step(self, chosen, folder)

    monkeypatch.setattr(auto._Climb, "_compress", interrupted)
    options = {"margin": 1e-9, "weight_bits": 2, "activation_bits": 2, "set": {}}
    with pytest.raises(KeyboardInterrupt):
        run(cohort, tmp_path / "package", **options)
    result = run(cohort, tmp_path / "package", **options)
    assert tried == ["minmax", "int8", "int8"]
    assert [trial["name"] for trial in result["trials"]] == ["minmax", "int8"]


@pytest.mark.slow
def test_nothing_more_is_tried_when_the_time_is_spent(cohort: Path, tmp_path: Path):
    result = run(cohort, tmp_path / "package", margin=1e-9, weight_bits=2, activation_bits=2, time_budget=1e-6)
    assert [trial["name"] for trial in result["trials"]] == ["minmax"]


def test_without_tuning_cases_it_is_refused(cohort: Path, tmp_path: Path):
    with pytest.raises(SplitError, match="to tune on"):
        run(cohort, tmp_path / "package", tuning=0.0)
    assert not (tmp_path / "package").exists()


def test_an_unknown_recipe_is_refused_before_any_work(cohort: Path, tmp_path: Path):
    with pytest.raises(OptionError, match="auto"):
        run(cohort, tmp_path / "package", recipe="int3")


def test_what_is_set_must_be_in_some_recipe_that_it_tries(cohort: Path, tmp_path: Path):
    with pytest.raises(OptionError, match=r"no recipe that auto tries has 'smooth\.alpha'"):
        run(cohort, tmp_path / "package", set={"smooth.alpha": 0.3})
    with pytest.raises(OptionError, match="finetune has no field 'stepz'"):
        run(cohort, tmp_path / "package", set={"finetune.stepz": 3})


def test_each_recipe_is_told_what_it_can_be_told():
    options = CompressOptions(recipe="auto", weight_bits=4, observer="kl", seed=5, set={"finetune.steps": 7})
    tried = {one.name: one.methods for one in recipe.asked(options)}
    assert tuple(tried) == recipe.LADDER
    assert {m.weight_bits for methods in tried.values() for m in methods if isinstance(m, Quantize)} == {4}
    assert {m.observer for methods in tried.values() for m in methods if isinstance(m, Quantize)} == {"kl"}
    assert (tried["qat"][-1].steps, tried["qat"][-1].seed) == (7, 5)
    assert tried["int8"][-1] == CorrectBias()


@pytest.mark.slow
def test_a_subgroup_can_speak_up(tmp_path: Path, monkeypatch):
    manifest = tiny.manifest_cohort(tmp_path / "cohort", cases=80)
    monkeypatch.setattr(recipe, "LADDER", ("minmax", "int8"))
    call = auto.Judge.__call__

    def one_site_suffers(self, candidate, name="judge"):
        return dataclasses.replace(call(self, candidate, name), worst=-0.5, non_inferior=True)

    monkeypatch.setattr(auto.Judge, "__call__", one_site_suffers)
    trials = run(manifest, tmp_path / "package", worst_subgroup=True, set={})["trials"]
    assert [trial["name"] for trial in trials] == ["minmax", "int8"]
    assert all("the worst subgroup changes by -0.5000" in trial["reason"] for trial in trials)
