"""Several inputs and outputs by name, along the whole road: each network made small, and its numbers checked."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from sklearn.metrics import f1_score, roc_auc_score

import microtome
from microtome.errors import CaptureError, DataError, OptionError
from microtome.inference.jobs import Given
from microtome.medical.cohort import load_cohort
from microtome.medical.pipeline import Pipeline
from microtome.medical.read import read_image
from microtome.package import open_package
from microtome.verbs.evaluate import evaluate
from microtome.verbs.options import CompressOptions
from microtome.verbs.predict import predict
from microtome.verbs.request import read_request
from ports import AGE_SEX, CLINICAL, GROWTH, Clinical, Growth, Headed, both_cohort, clinical_cohort, growth_cohort
from tiny import CLASSES, PICTURES, SIZE

MASK, LABEL = (
    replace(PICTURES, output="mask", keep=("label",)),
    replace(CLASSES, classes=("none", "spot"), output="label"),
)
# Mean of the probabilities' differences, int8 against float: an age that is a decade off gives 0.1.
SCORE = 0.03


def compressed(model: torch.nn.Module, cohort: Path, out: Path, pipeline: Pipeline, **more: Any) -> dict[str, Any]:
    options = CompressOptions(pipeline=pipeline, threads=1, calibration_cases=4, **more)
    return microtome.compress(model.eval(), cohort, out, options=options)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def clinical(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clinical")
    compressed(
        Clinical(), clinical_cohort(root / "cohort"), root / "package", CLINICAL, target=("openvino", "onnxruntime")
    )
    return root


def rows_of(root: Path) -> list[dict[str, str]]:
    with (root / "cohort" / "manifest.csv").open() as file:
        return list(csv.DictReader(file))


def table_of(rows: list[dict[str, str]], path: Path, **changed: str) -> Path:
    """Write image, age and sex of rows as a table, the first with other cells."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, ["image", "age", "sex"], extrasaction="ignore")
        table.writeheader()
        table.writerows(
            [{**row, "image": Path(row["image"]).name, **(changed if k == 0 else {})} for k, row in enumerate(rows)]
        )
    return path


def logits(row: dict[str, str], root: Path) -> float:
    """What the float network says of a line of the manifest, worked out by hand."""
    image = np.asarray(Picture.open(root / "cohort" / row["image"]), np.float32)[None, None] / 255
    numbers = np.array([[(float(row["age"]) - 60) / 10, {"F": 0.0, "M": 1.0}[row["sex"]]]], np.float32)
    with torch.no_grad():
        score = Clinical()(torch.from_numpy(image), torch.from_numpy(numbers)).softmax(1)
    return float(score[0, 1])


def test_image_and_clinical_values(clinical: Path) -> None:
    result = json.loads((clinical / "package" / "result.json").read_text())
    assert result["integer"] == {"requested": 3, "executed": 3}
    assert [port["name"] for port in result["inputs"]] == ["image", "age_sex"]
    assert "age" not in result["subgroups"]  # each has its own
    labels = [case["label"] for case in result["cases"]]
    for side in ("parent", "compressed"):
        scores = [case[side]["score"][1] for case in result["cases"]]
        assert result[side]["metrics"]["auroc"]["value"] == pytest.approx(roc_auc_score(labels, scores))
    known = {f"{logits(row, clinical):.5f}" for row in rows_of(clinical)}
    assert all(f"{case['parent']['score'][1]:.5f}" in known for case in result["cases"])
    assert json.loads((clinical / "package" / "pipeline.json").read_text())["input"] == "image"


def test_predict_takes_the_values_from_a_table(clinical: Path, tmp_path: Path) -> None:
    rows = rows_of(clinical)
    given = Given([clinical / "cohort" / "images"], {"age_sex": table_of(rows, tmp_path / "t.csv")})
    assert predict(clinical / "package", given, tmp_path / "out")["cases"] == len(rows)
    with (tmp_path / "out" / "predictions.csv").open() as file:
        found = {row["name"]: float(row["probability ill"]) for row in csv.DictReader(file)}
    assert np.mean([abs(found[Path(row["image"]).stem] - logits(row, clinical)) for row in rows]) < SCORE
    older = [{**row, "age": str(int(row["age"]) + 10)} for row in rows]
    assert np.mean([abs(found[Path(row["image"]).stem] - logits(row, clinical)) for row in older]) > 2 * SCORE


BAD_TABLES = {
    "text where a number is due": ({"age": "old"}, DataError, "p0: the column 'age' holds text where a number is due"),
    "nothing": ({"age": ""}, DataError, "p0 has no value in the column 'age'"),
    "an unknown code": ({"sex": "X"}, DataError, "p0: the value in the column 'sex' is none of F, M"),
    "another image": ({"image": "other.png"}, DataError, "has no line for p0"),
}


@pytest.mark.parametrize("bad", BAD_TABLES)
def test_what_is_wrong_with_a_table_is_said_before_any_work(bad: str, clinical: Path, tmp_path: Path) -> None:
    changed, kind, problem = BAD_TABLES[bad]
    table = table_of(rows_of(clinical), tmp_path / "t.csv", **changed)
    with pytest.raises(kind, match=problem):
        predict(clinical / "package", Given([clinical / "cohort" / "images"], {"age_sex": table}), tmp_path / "out")
    with pytest.raises(DataError, match=r"nothing says what 'age_sex' is \(age, sex\)"):
        predict(clinical / "package", [clinical / "cohort" / "images"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_cohort_lacks_is_said_before_any_work(clinical: Path, tmp_path: Path) -> None:
    cohort = clinical / "cohort" / "manifest.csv"

    def asked(**inputs: Any) -> None:
        pipeline = replace(CLINICAL, inputs=inputs or None)
        read_request(Clinical().eval(), cohort, CompressOptions(pipeline=pipeline))

    with pytest.raises(DataError, match="no column 'weight', which the network's input 'age_sex' needs"):
        asked(age_sex={"columns": ["age", "weight"]})
    with pytest.raises(DataError, match=r"case-\d+: the column 'sex' holds text where a number is due"):
        asked(age_sex={"columns": ["age", "sex"]})
    with pytest.raises(CaptureError, match=r"cannot run on an input of shape \(1, 1, 32, 32\), \(1, 1\)"):
        asked(age_sex={"columns": ["age"]})
    with pytest.raises(CaptureError, match="has no input 'prior'"):
        asked(age_sex=AGE_SEX, prior={"images": "age"})
    with pytest.raises(CaptureError, match="takes 2 inputs") as caught:
        asked()
    assert "'inputs'" in caught.value.hint
    options = CompressOptions(pipeline=CLINICAL, inputs={"weight": tmp_path})
    with pytest.raises(OptionError, match="the pipeline declares no input 'weight'"):
        read_request(Clinical().eval(), cohort, options)


@pytest.mark.slow
def test_two_time_points_in_windows_mirrored(tmp_path: Path) -> None:
    cohort = growth_cohort(tmp_path / "cohort")
    result = compressed(Growth(), cohort, tmp_path / "package", GROWTH)
    assert result["verdict"]["non_inferior"]
    assert result["parent"]["metrics"]["dice"]["value"] > 0.9
    assert result["subgroups"] == {}  # names of files are none
    assert "before/" not in (tmp_path / "package" / "result.json").read_text()
    given = Given([cohort.parent / "images"], {"prior": cohort.parent / "before"})
    assert predict(tmp_path / "package", given, tmp_path / "out")["failed"] == []
    package = open_package(tmp_path / "package", threads=1)
    image = read_image([cohort.parent / "images" / "p1.png"])
    prior = read_image([cohort.parent / "before" / "p1.png"])
    found = package.predict(replace(image, inputs={"prior": prior.array}))
    assert np.array_equal(np.asarray(Picture.open(tmp_path / "out" / "p1.png")), found)
    assert not np.array_equal(package.predict(replace(image, inputs={"prior": image.array})), found)


def mask_and_label(scores: Any, low: Any, numbers: Any) -> Any:
    return {"mask": scores, "label": numbers}


FORMS = {
    "a dict with aux": (
        lambda scores, low, numbers: {"out": scores, "aux": scores * 0.9},
        "'out'",
        "aux (for training",
    ),
    "deep supervision": (lambda scores, low, numbers: [low, scores], "'output_1'", "output (of lower"),
    "nested": (
        lambda scores, low, numbers: {"a": {"logits": scores}, "b": (numbers,)},
        "'a.logits'",
        "b.0 (no scores of",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_scores_are_found_and_the_rest_is_noted(form: str, tmp_path: Path) -> None:
    make, name, left = FORMS[form]
    result = compressed(Headed(make), both_cohort(tmp_path / "cohort"), tmp_path / "package", PICTURES)
    assert result["parent"]["metrics"]["dice"]["value"] > 0.95
    assert abs(result["difference"]["dice"]["value"]) < 0.01
    assert result["integer"]["executed"] == result["integer"]["requested"] == 3
    assert any(f"taken from {name}" in note and left in note for note in result["notes"])
    check_dice(tmp_path / "package", tmp_path / "cohort" / "manifest.csv", result)


def check_dice(package: Path, manifest: Path, result: dict[str, Any]) -> None:
    """Compute the Dice of every case with scikit-learn, from what the opened package predicts."""
    opened, cohort = open_package(package, threads=1), load_cohort(manifest)
    cases, checked = {case.id: case for case in cohort.cases}, 0
    for row in result["cases"]:
        image = cohort.image(cases[row["case"]])
        truth, found = cohort.mask(cases[row["case"]], image), opened.predict(image)
        if truth is not None and truth.any():
            assert row["compressed"]["dice"] == pytest.approx(f1_score(truth.ravel(), found.ravel()))
            checked += 1
    assert checked > 3


def test_two_candidates_for_the_output(tmp_path: Path) -> None:
    cohort, model = both_cohort(tmp_path / "cohort"), Headed(mask_and_label)
    with pytest.raises(CaptureError, match=r"'mask' \(N, 2, 32, 32\) and 'label' \(N, 2\)") as caught:
        read_request(model.eval(), cohort, CompressOptions(input_shape=(1, SIZE, SIZE)))
    assert "--output mask" in caught.value.hint


@pytest.mark.slow
def test_mask_and_label_of_one_network(tmp_path: Path) -> None:
    cohort, model = both_cohort(tmp_path / "cohort"), Headed(mask_and_label)
    result = compressed(model, cohort, tmp_path / "package", MASK)
    assert [port["name"] for port in result["outputs"]] == ["mask", "label"]
    assert result["integer"] == {"requested": 4, "executed": 4}
    assert abs(result["difference"]["dice"]["value"]) < 0.01
    check_dice(tmp_path / "package", cohort, result)
    options = CompressOptions(pipeline=LABEL, evaluation=1.0, tuning=0.0, threads=1)
    label = evaluate(tmp_path / "package", cohort, tmp_path / "label", options=options)
    scores, labels = zip(*((case["compressed"]["score"][1], case["label"]) for case in label["cases"]), strict=True)
    assert label["compressed"]["metrics"]["auroc"]["value"] == pytest.approx(roc_auc_score(labels, scores)) == 1.0
    options = replace(options, pipeline=replace(LABEL, output="lable"))
    with pytest.raises(OptionError, match="the package has no output 'lable'"):
        evaluate(tmp_path / "package", cohort, tmp_path / "typo", options=options)
