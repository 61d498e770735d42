"""What can be known before hours of work: what a cohort is, what is guessed, and whether the guess serves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture
from typer.testing import CliRunner

import tiny
from microtome.cli import app
from microtome.deployment.timing import eager
from microtome.errors import OptionError
from microtome.evidence.comparison import streamed
from microtome.evidence.guess_check import check_guess
from microtome.graph import pt2
from microtome.graph.capture import capture
from microtome.medical.cohort import load_cohort
from microtome.medical.pipeline import Pipeline
from microtome.progress import Silent
from microtome.verbs.inspect import inspect
from microtome.verbs.options import CompressOptions
from microtome.verbs.request import identity, read_request
from sharing import Once


@pytest.fixture(scope="module")
def folder(once: Once) -> Path:
    """A network in a file, its cohort, and a cohort of volumes."""

    def make(to: Path) -> None:
        pt2.save(capture(tiny.Spots().eval(), (1, 32, 32)), to / "spots.pt2")
        tiny.segmentation_cohort(to / "pictures", cases=24)
        tiny.volume_cohort(to / "volumes", cases=12)
        pt2.save(capture(tiny.Spots(3).eval(), (1, 16, 16, 16)), to / "volumes.pt2")

    return once("before", make)


def test_inspect_shows_what_compress_would_see(folder: Path) -> None:
    found = inspect(folder / "spots.pt2", target="reference", cohort=folder / "pictures")
    cohort = found["cohort"]
    assert (cohort["task"], cohort["format"], cohort["classes"]) == (
        "segmentation",
        "image_masks",
        ["background", "foreground"],
    )
    assert sum(counts["cases"] for counts in cohort["split"].values()) == 24
    assert sum(counts["patients"] for counts in cohort["split"].values()) == 12
    case = cohort["case"]
    assert (case["size"], case["type"], case["input"]) == ([1, 32, 32], "uint8", [1, 32, 32])
    assert set(case["labels"]) <= {0, 1}
    guessed = {row["name"] for row in found["pipeline"] if row["guessed"]}
    assert {"size", "normalize"} <= guessed
    assert not guessed & {"task", "classes", "channels", "spatial_dims"}


def test_volumes_are_described_in_millimetres(folder: Path) -> None:
    case = inspect(folder / "volumes.pt2", target="reference", cohort=folder / "volumes")["cohort"]["case"]
    assert (case["size"], case["spacing"], case["orientation"]) == ([1, 20, 18, 14], [1.0, 1.0, 2.0], "RAS")


def test_a_guess_is_written_to_be_corrected(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "pipeline.json"
    call = ["inspect", str(folder / "spots.pt2"), "--cohort", str(folder / "pictures"), "--target", "reference"]
    done = CliRunner().invoke(app, [*call, "--write-pipeline", str(out)])
    assert done.exit_code == 0, done.output
    assert "guessed" in done.output
    assert "patients" in done.output
    written = Pipeline.from_json(out.read_text())
    out.write_text(replace(written, normalize="minmax").to_json())
    again = inspect(
        folder / "spots.pt2", target="reference", cohort=folder / "pictures", options=CompressOptions(pipeline=out)
    )
    assert {row["name"]: row["value"] for row in again["pipeline"]}["normalize"] == "minmax"
    assert not any(row["guessed"] for row in again["pipeline"])
    done = CliRunner().invoke(app, [*call, "--write-pipeline", str(out)])
    assert done.exit_code == 2  # what was corrected is not lost
    assert "is there already" in done.output
    assert Pipeline.from_json(out.read_text()).normalize == "minmax"


def test_a_pipeline_that_is_declared_is_shown_without_a_cohort(folder: Path, tmp_path: Path) -> None:
    declared = tmp_path / "pipeline.json"
    declared.write_text(tiny.PICTURES.to_json())
    found = inspect(folder / "spots.pt2", target="reference", options=CompressOptions(pipeline=declared))
    assert {row["name"]: row["value"] for row in found["pipeline"]}["normalize"] == "unit"
    assert "cohort" not in found
    with pytest.raises(OptionError, match="nothing says what"):
        inspect(folder / "spots.pt2", target="reference", write_pipeline=tmp_path / "other.json")


def guess(cohort: Path, pipeline: Pipeline) -> str | None:
    network = capture(tiny.Spots().eval(), (1, 32, 32))
    return check_guess(
        streamed(eager(network, 1)), load_cohort(cohort, seed=0), pipeline, seed=0, free=True, progress=Silent()
    )


def test_a_guess_that_costs_the_parent_much_is_doubted(folder: Path) -> None:
    cohort = load_cohort(folder / "pictures", seed=0)
    right = replace(tiny.PICTURES, classes=tuple(cohort.classes))
    assert guess(folder / "pictures", right) is None
    doubt = guess(folder / "pictures", replace(right, normalize="zscore"))
    assert doubt is not None
    assert '"normalize": "unit"' in doubt or '"normalize": "minmax"' in doubt
    assert "--pipeline" in doubt
    assert "Dice" in doubt


def test_evaluation_cases_are_not_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = load_cohort(folder / "pictures", seed=0)
    seen: list[str] = []
    original = type(cohort).image
    monkeypatch.setattr(type(cohort), "image", lambda self, case: (seen.append(case.role), original(self, case))[1])
    guess(folder / "pictures", replace(tiny.PICTURES, classes=tuple(cohort.classes)))
    assert seen
    assert "evaluation" not in seen


def asked(cohort: Path, **more: Any) -> dict[str, Any]:
    options = CompressOptions(pipeline=tiny.PICTURES, target="reference", calibration_cases=2, **more)
    return json.loads(json.dumps(identity(read_request(tiny.Spots(), cohort, options)), default=str))


def test_a_cohort_that_changed_is_another_request(tmp_path: Path) -> None:
    cohort = tiny.segmentation_cohort(tmp_path / "cohort", cases=24)
    before = asked(cohort)
    assert asked(cohort) == before
    path = cohort / "masks" / "person3_0.png"
    mask = np.asarray(Picture.open(path)).copy()
    mask[:8, :8] = 255
    Picture.fromarray(mask).save(path, compress_level=0)
    assert asked(cohort) != before


def test_another_list_of_what_was_trained_on_is_another_request(tmp_path: Path) -> None:
    cohort = tiny.segmentation_cohort(tmp_path / "cohort", cases=24)
    names, requests = tmp_path / "list.txt", []
    for person in (case for case in ("person1_0", "person2_0", "person3_0", "person4_0")):
        names.write_text(person)
        requests.append(asked(cohort, trained_on=names)["roles"])
    assert any(roles != requests[0] for roles in requests)


def test_a_network_that_fits_no_guess_raises_no_doubt(folder: Path) -> None:
    cohort = load_cohort(folder / "pictures", seed=0)
    pipeline = replace(tiny.PICTURES, classes=tuple(cohort.classes))

    def refuses(batches):
        raise RuntimeError("no size is right")
        yield from batches

    assert check_guess(refuses, cohort, pipeline, seed=0, free=True, progress=Silent()) is None


def test_chance_raises_no_doubt(tmp_path: Path) -> None:
    cohort = load_cohort(tiny.class_cohort(tmp_path), seed=0)
    noise = iter(np.random.default_rng(0).normal(size=(1000, 2)))

    def guesses(batches):
        return (np.stack([next(noise) for _ in x]) for x in batches)

    assert check_guess(guesses, cohort, tiny.CLASSES, seed=0, free=True, progress=Silent()) is None


def test_who_is_a_patient_is_shown_on_the_screen_only(folder: Path) -> None:
    call = ["inspect", str(folder / "spots.pt2"), "--cohort", str(folder / "pictures"), "--target", "reference"]
    shown = CliRunner().invoke(app, call).output
    assert "patients:" in shown
    assert ".png →" in shown.split("patients:")[1]
    logged = CliRunner().invoke(app, [*call, "--json"]).output
    assert "person1_" not in logged
    assert json.loads(logged)["cohort"]["patients"]["rule"]
