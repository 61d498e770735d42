"""What a network takes beside the image: declared, found, put on the image's grid, cut and mirrored with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from microtome.errors import DataError, GeometryError, OptionError
from microtome.medical.cohort import Cohort, load_cohort
from microtome.medical.further import with_further
from microtome.medical.inputs import batch_of, batch_of_one, label_channels
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.medical.stream import segment_each
from microtome.types import Image

NUMBERS = {"columns": ["age", "sex"], "codes": {"sex": {"F": 0, "M": 1}}, "mean": [60, 0], "std": [10, 1]}
STAGE = {"labels": "stage", "one_hot": 2, "into": "image"}
ALL = {"numbers": NUMBERS, "prior": {"images": "prior"}, "stage": STAGE}


def pipeline(inputs: Any, **fields: Any) -> Pipeline:
    return Pipeline(
        **{"task": "segmentation", "classes": ("background", "spot"), "spatial_dims": 3} | fields, inputs=inputs
    )


VOLUMES = pipeline(
    ALL, orientation="LPS", spacing=(1.0, 1.0, 1.0), crop="foreground", normalize="zscore", divisible=4, input="image"
)


def image(seed: int = 0) -> Image:
    """A volume with a border of zeros, another one, and a label map, on a grid that is turned and resampled."""
    rng = np.random.default_rng(seed)
    array, prior = np.zeros((1, 9, 8, 7), np.float32), rng.normal(5, 2, (1, 9, 8, 7)).astype(np.float32)
    array[:, 2:7, 1:8, 3:6] = rng.uniform(1, 9, (1, 5, 7, 3))
    stage = rng.integers(0, 4, (9, 8, 7)).astype(np.uint8)
    inputs = {"numbers": np.array([1.0, 0.0], np.float32), "prior": prior, "stage": stage}
    return Image(array, np.diag([1.0, 1.0, 2.0, 1.0]), inputs=inputs)


def test_everything_lies_on_the_grid_of_the_image() -> None:
    given = image()
    prepared = prepare(given, VOLUMES)
    alone = prepare(replace(given, inputs={}), replace(VOLUMES, inputs=None))
    assert (prepared.content, prepared.box, prepared.numbers["numbers"].tolist()) == (
        alone.content,
        alone.box,
        [1.0, 0.0],
    )
    found = batch_of_one(prepared, VOLUMES)
    assert isinstance(found, dict)
    assert {name: array.shape for name, array in found.items()} == {
        "image": (1, 3, 8, 8, 8), "numbers": (1, 2), "prior": (1, 1, 8, 8, 8),
    }  # fmt: skip
    np.testing.assert_array_equal(found["image"][0, :1], alone.array)
    # the prior, cut by hand to the image's box, is what it is alone
    cut = Image(given.inputs["prior"][:, 2:7, 1:8, 3:6], given.affine)
    np.testing.assert_allclose(
        found["prior"][0], prepare(cut, replace(VOLUMES, inputs=None, crop=None)).array, atol=1e-6
    )
    marks = given.inputs["stage"][2:7, 1:8, 3:6][::-1, ::-1].repeat(2, axis=2)
    for channel, label in ((1, 1), (2, 2)):
        np.testing.assert_array_equal(found["image"][0, channel, :5, :7, :6], marks == label)
    assert label_channels(VOLUMES) == (1, 2)


def test_windows_and_mirrors_hold_all_of_it() -> None:
    windowed = replace(VOLUMES, patch=(4, 4, 4), divisible=1, mirror=(0, 2), crop=None)
    given, seen = prepare(image(), windowed), []

    def stream(batches: Iterable[Any]) -> Iterator[Any]:
        for x in batches:
            seen.append(x)
            yield {"scores": np.concatenate([x["prior"], 0 * x["prior"]], axis=1), "other": np.zeros((1, 1))}

    labels = next(segment_each(stream, [given], windowed))
    assert not isinstance(labels, DataError)
    assert len(seen) % 4 == 0
    for x in seen:
        assert list(x) == ["image", "numbers", "prior"]
        assert x["image"].shape == (1, 3, 4, 4, 4)
        assert x["numbers"].tolist() == [[1.0, 0.0]]
    for plain, flipped in zip(seen[::4], seen[1::4], strict=True):
        for name in ("image", "prior"):
            np.testing.assert_array_equal(flipped[name], plain[name][:, :, ::-1])
    inside = given.array[3]  # the prior, behind the image and two labels
    alone, single = replace(given, array=inside[None]), replace(windowed, inputs=None)
    expected = next(segment_each(lambda xs: (np.concatenate([x, 0 * x], 1) for x in xs), [alone], single))
    np.testing.assert_array_equal(labels, expected)


def test_an_output_is_read_by_its_name() -> None:
    named, given = replace(VOLUMES, output="other"), prepare(image(), VOLUMES)
    right = np.zeros((1, 2, *given.array.shape[1:]), np.float32)
    right[:, 1] = 1
    labels = next(segment_each(lambda batches: ({"first": -right, "other": right} for _ in batches), [given], named))
    assert labels[4, 4, 4] == 1  # type: ignore[index]
    with pytest.raises(OptionError, match="no output 'other'"):
        next(segment_each(lambda batches: ({"first": right} for _ in batches), [given], named))


def test_what_is_missing_or_on_another_grid_is_named() -> None:
    given = image()
    with pytest.raises(DataError, match="comes without 'prior'") as caught:
        prepare(replace(given, inputs={name: one for name, one in given.inputs.items() if name != "prior"}), VOLUMES)
    assert "--input prior=PATH" in caught.value.hint
    with pytest.raises(GeometryError, match="labels have the size"):
        prepare(replace(given, inputs={**given.inputs, "stage": np.zeros((9, 8, 6), np.uint8)}), VOLUMES)


def test_a_batch_has_numbers_of_its_own_for_each_image() -> None:
    x = np.zeros((3, 4, 8, 8, 8), np.float32)
    found = batch_of(x, {"numbers": np.arange(6, dtype=np.float32).reshape(3, 2)}, VOLUMES)
    assert isinstance(found, dict)
    assert found["numbers"][2].tolist() == [4, 5]
    assert batch_of(x, {}, pipeline({"stage": STAGE})) is x  # all in one input: an array as ever


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ({"a": {}}, "either 'columns', 'images' or 'labels'"),
        ({"a": {"columns": ["age"], "images": "prior"}}, "either 'columns', 'images' or 'labels'"),
        ({"a": {"columns": ["age"], "mean": [1, 2]}}, "'mean' must have one value per column"),
        ({"a": {"columns": ["age"], "std": [0]}}, "'std' must be positive"),
        ({"a": {"columns": ["age"], "codes": {"sex": {"F": 0}}}}, "'codes' speak of sex"),
        ({"a": {"columns": ["age"], "into": "image"}}, "numbers cannot go into the image"),
        ({"a": {"labels": "stage"}}, "'labels' and 'one_hot' go together"),
        ({"a": {"labels": "stage", "one_hot": [1, 1]}}, "must name different labels"),
        ({"a": {"colums": ["age"]}}, "no field 'colums'; the nearest known one is 'columns'"),
        ({"a": {"columns": ["age"], "codes": {"age": {"x": "y"}}}}, "codes must be"),
        ({"image": {"images": "prior"}}, "'inputs' declares 'image', which 'input' says takes the image"),
        ({"a": ["age"]}, "'inputs' must be"),
    ],
)
def test_declarations_that_make_no_sense(inputs: Any, problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        pipeline(inputs, input="image")


def test_json_and_back() -> None:
    assert Pipeline.from_json(VOLUMES.to_json()) == VOLUMES
    assert VOLUMES.image_channels == 3
    assert VOLUMES.apart == (("numbers", 2, False), ("prior", 1, True))


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """Four volumes with prior, stage, age and sex by manifest."""
    lines = ["image,mask,prior,stage,age,sex,split"]
    for k in range(4):
        for name in ("image", "mask", "prior", "stage"):
            array = np.full((4, 4, 4), k + 1 if name in ("image", "prior") else k % 2, np.uint8)
            array[0] = 0
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}{k}.nii.gz")
        names = ",".join(f"{name}{k}.nii.gz" for name in ("image", "mask", "prior", "stage"))
        lines.append(f"{names},{50 + 10 * k},{'FM'[k % 2]},{('train', 'test')[k % 2]}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    return load_cohort(tmp_path / "manifest.csv")


def test_a_manifest_says_where_everything_is(cohort: Cohort) -> None:
    told = with_further(cohort, VOLUMES, {})
    assert all(set(case.subgroups) == {"sex"} for case in told.cases)  # no file names, no ages
    for case in told.cases:
        number = int(told.key[case.id].removeprefix("image")[0])
        found = told.image(case)
        assert found.inputs["numbers"].tolist() == [(50 + 10 * number - 60) / 10, number % 2]
        assert found.inputs["prior"].max() == number + 1
        assert found.inputs["stage"].max() == number % 2


def test_folders_and_tables_in_place_of_columns(cohort: Cohort, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    table = ["image,age,sex", *(f"image{k}.nii.gz,{30 + k},M" for k in range(4))]
    (tmp_path / "table.csv").write_text("\n".join(table))
    for k in range(3):
        (folder / f"image{k}.nii.gz").write_bytes((tmp_path / f"prior{k}.nii.gz").read_bytes())
    given = {"prior": folder, "numbers": tmp_path / "table.csv"}
    with pytest.raises(DataError, match=r"holds no file for case-\d+") as caught:
        with_further(cohort, VOLUMES, given)
    assert "image3" not in caught.value.problem
    (folder / "image3.nii.gz").write_bytes((tmp_path / "prior0.nii.gz").read_bytes())
    told = with_further(cohort, VOLUMES, given)
    case = next(case for case in told.cases if told.key[case.id] == "image3.nii.gz")
    assert told.image(case).inputs["prior"].max() == 1
    assert told.image(case).inputs["numbers"].tolist() == [pytest.approx(-2.7), 1]


def test_training_sees_all_of_it_moved_alike(cohort: Cohort) -> None:
    from microtome.batches.training import TrainingBatches, TuningBatches

    declared = pipeline(ALL, input="image", size=(4, 4, 4))
    told = with_further(cohort, declared, {})
    numbers = {tuple(np.float32(told.image(case).inputs["numbers"])) for case in told.train}
    batches = TrainingBatches(told, told.train, declared, batch=2, labelled=True, flips=(0,))
    for _ in range(3):
        ((x, labels),) = batches
        assert list(x) == ["image", "numbers", "prior"]
        assert {tuple(row.tolist()) for row in x["numbers"]} == numbers
        marks = x["image"][:, 1:]
        assert set(marks.unique().tolist()) <= {0.0, 1.0}
        assert np.array_equal(marks[:, 0].numpy(), labels.numpy() == 1)  # mask and stage are the same here
        np.testing.assert_allclose(x["image"][:, 0], x["prior"][:, 0], atol=1e-6)  # image and prior, too
    tuned = replace(told, cases=tuple(replace(case, role="tuning") for case in told.cases))
    (first, *_) = TuningBatches(tuned, declared)
    assert {name: tuple(value.shape) for name, value in first.items()} == {
        "image": (1, 3, 4, 4, 4), "numbers": (1, 2), "prior": (1, 1, 4, 4, 4),
    }  # fmt: skip


def test_who_knows_already_is_not_asked_again(cohort: Cohort) -> None:
    told = with_further(cohort, VOLUMES, {})
    assert with_further(told, VOLUMES, {}) is told
    assert with_further(cohort, replace(VOLUMES, inputs=None), {}) is cohort
