"""The phantoms: the same every time, labelled as promised, and written as a cohort that is split by patient."""

import csv
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from microtome.demo.phantom import CLASSES, make_case, write_cohort
from microtome.errors import OptionError, OutputError
from microtome.medical.cohort import load_cohort

SEEDS = range(60)


@pytest.fixture(scope="module")
def cases() -> list[tuple[np.ndarray, np.ndarray, dict[str, str]]]:
    return [make_case(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> tuple[Path, list[dict[str, str]]]:
    folder = tmp_path_factory.mktemp("cohort") / "new"
    manifest = write_cohort(folder, cases=31, seed=3)
    assert manifest == folder / "manifest.csv"
    with manifest.open(newline="", encoding="utf-8") as file:
        return folder, list(csv.DictReader(file))


def test_same_arguments_give_the_same_slice():
    first, second = make_case(5, slice_number=1), make_case(5, slice_number=1)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    assert first[2] == second[2]


def test_another_seed_or_slice_number_gives_another_slice():
    image, mask, _ = make_case(5)
    for other in (make_case(6), make_case(5, slice_number=1)):
        assert not np.array_equal(image, other[0])
        assert not np.array_equal(mask, other[1])


def test_slices_of_one_patient_come_from_one_scanner_and_resemble_one_another():
    within, between = [], []
    for seed in range(12):
        here, below, stranger = make_case(seed), make_case(seed, slice_number=1), make_case(seed + 100)
        assert here[2] == below[2]
        within.append(np.mean((here[1] > 0) != (below[1] > 0)))
        between.append(np.mean((here[1] > 0) != (stranger[1] > 0)))
    assert np.mean(within) < 0.5 * np.mean(between)


@pytest.mark.parametrize("size", [64, 100, 192, 256])
def test_sizes_and_types(size):
    for seed in range(10):
        image, mask, _ = make_case(seed, size)
        assert image.shape == mask.shape == (size, size)
        assert image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) <= set(range(len(CLASSES)))
        assert {0, 1, 2} <= set(np.unique(mask))


def test_some_cases_have_no_lesion_and_most_have_one(cases):
    empty = [not np.any(mask == 3) for _, mask, _ in cases]
    assert 0.1 < np.mean(empty) < 0.5


def test_structures_have_plausible_sizes_and_places(cases):
    for image, mask, _ in cases:
        assert 0.2 < np.mean(mask > 0) < 0.6, "the brain fills a good part of the slice"
        assert 0.005 < np.mean(mask == 2) < 0.06
        assert np.mean(mask == 3) < 0.06
        border = np.concatenate((mask[0], mask[-1], mask[:, 0], mask[:, -1]))
        assert not border.any()
        middle = np.argwhere(mask == 2).mean(axis=0)
        assert np.all(np.abs(middle - 96) < 20), "the ventricles lie in the middle"
        assert image.max() > 100


def test_brightness_orders_the_structures(cases):
    """Lesions are brighter than tissue and ventricles darker, as in FLAIR, in nearly every case."""
    bright, dark = [], []
    for image, mask, _ in cases:
        tissue = image[mask == 1].mean()
        dark.append(image[mask == 2].mean() < 0.7 * tissue)
        if np.sum(mask == 3) > 30:
            bright.append(image[mask == 3].mean() > 1.2 * tissue)
    assert np.mean(dark) > 0.95
    assert len(bright) > 20
    assert np.mean(bright) > 0.95


def test_scanner_b_is_noisier_and_has_less_contrast(cases):
    noise, contrast = defaultdict(list), defaultdict(list)
    for image, mask, attributes in cases:
        noise[attributes["scanner"]].append(image[:12, :12].std())  # air
        contrast[attributes["scanner"]].append(image[mask == 1].mean() - image[mask == 2].mean())
    assert set(noise) == {"A", "B"}
    assert min(noise["B"]) > max(noise["A"])
    assert np.mean(contrast["B"]) < np.mean(contrast["A"])


@pytest.mark.parametrize("arguments", [{"seed": -1}, {"seed": 0, "size": 63}, {"seed": 0, "slice_number": -1}])
def test_impossible_phantoms_are_refused(arguments):
    with pytest.raises(OptionError, match="cannot have"):
        make_case(**arguments)


def test_manifest_names_files_that_hold_the_phantoms(rows):
    folder, table = rows
    assert list(table[0]) == ["image", "mask", "patient", "split", "scanner"]
    assert len(table) == len({row["image"] for row in table}) == 31
    for number, row in enumerate(table):
        image, mask, attributes = make_case(300_000 + number // 2, slice_number=number % 2)
        assert np.array_equal(np.asarray(Image.open(folder / row["image"])), image)
        assert np.array_equal(np.asarray(Image.open(folder / row["mask"])), mask)
        assert row["scanner"] == attributes["scanner"]


def test_splits_share_no_patient(rows):
    patients = defaultdict(set)
    for row in rows[1]:
        patients[row["split"]].add(row["patient"])
    assert set(patients) == {"train", "val", "test"}
    assert sum(len(p) for p in patients.values()) == len(set().union(*patients.values())) == 16


def test_cohort_reader_understands_the_manifest(rows):
    cohort = load_cohort(rows[0])
    assert cohort.task == "segmentation"
    assert Counter(case.role for case in cohort.cases) == {"train": 12, "tuning": 4, "evaluation": 15}
    assert {case.subgroups["scanner"] for case in cohort.cases} == {"A", "B"}
    assert len({case.patient for case in cohort.cases}) == 16
    case = cohort.cases[0]
    image = cohort.image(case)
    mask = cohort.mask(case, image)
    assert image.array.shape == (1, *mask.shape) == (1, 192, 192)
    assert set(np.unique(mask)) <= {0, 1, 2, 3}


def test_default_cohort_has_enough_cases_of_each_split(tmp_path, monkeypatch):
    small = make_case(0, 64)
    monkeypatch.setattr("microtome.demo.phantom.make_case", lambda *_, **__: small)
    with write_cohort(tmp_path).open(newline="", encoding="utf-8") as file:
        splits = [row["split"] for row in csv.DictReader(file)]
    assert {name: splits.count(name) for name in splits} == {"train": 64, "val": 16, "test": 80}


def test_smallest_cohort_has_every_split(tmp_path):
    with write_cohort(tmp_path, cases=6).open(newline="", encoding="utf-8") as file:
        assert {row["split"] for row in csv.DictReader(file)} == {"train", "val", "test"}


def test_writing_twice_gives_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        write_cohort(tmp_path / folder, cases=6)
    for path in sorted((tmp_path / "a").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_impossible_cohorts_are_refused(tmp_path):
    for arguments in ({"cases": 5}, {"cases": 400_000}, {"seed": -1}):
        with pytest.raises(OptionError, match="not possible"):
            write_cohort(tmp_path / "no", **arguments)
    assert not (tmp_path / "no").exists()


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        write_cohort(tmp_path / "file" / "cohort", cases=6)
