"""Who is a patient."""

import numpy as np
import pytest
from folders import dataset_json, mask, picture, table, volume

from microtome.errors import DataError
from microtome.medical.cohort import load_cohort


def patients(cohort) -> int:
    return len({case.patient for case in cohort.cases})


def test_files_that_each_class_folder_numbers_anew(tmp_path):
    for part, count in (("train", 20), ("test", 10)):
        for k in range(1, count + 1):
            for name in ("a", "b"):
                picture(tmp_path / part / name / f"{k}.jpg", 100 * k + ord(name))
    cohort = load_cohort(tmp_path)
    assert len(cohort.cases) == patients(cohort) == 60
    assert len(cohort.evaluation) == 20
    assert len(cohort.train) + len(cohort.tuning) == 40
    assert cohort.notes == ()
    assert cohort.patient_rule == "every file is a patient of its own"


def test_files_that_each_part_numbers_anew(tmp_path):
    for part in ("train", "val", "test"):
        for k in range(4):
            picture(tmp_path / part / "images" / f"{k}.png", k)
            mask(tmp_path / part / "masks" / f"{k}.png")
    cohort = load_cohort(tmp_path)
    assert len(cohort.cases) == patients(cohort) == 12


def test_cases_that_train_and_test_of_nnunet_number_anew(tmp_path):
    for part in ("Tr", "Ts"):
        for k in range(4):
            volume(tmp_path / f"images{part}" / f"case_{k}.nii.gz", k)
            volume(tmp_path / f"labels{part}" / f"case_{k}.nii.gz")
    cohort = load_cohort(dataset_json(tmp_path))
    assert len(cohort.cases) == patients(cohort) == 8


def test_manifest_without_patients(tmp_path):
    lines = [["image", "label"]]
    for name in ("a", "b"):
        for k in range(4):
            picture(tmp_path / name / f"{k}.png", k)
            lines.append([f"{name}/{k}.png", name])
    cohort = load_cohort(table(tmp_path / "x.csv", lines))
    assert len(cohort.cases) == patients(cohort) == 8


@pytest.mark.parametrize(
    ("names", "count", "rule"),
    [
        (("person1_a", "person1_b", "person2_a", "person3"), 3, "personN (4 files)"),
        (("IM-0001-0001", "IM-0001-0002", "x", "y"), 3, "IM-NNNN (2 files); each of 2 other files is one"),
        (("sub-01_T1w", "sub-01_T2w", "sub-02_T1w", "sub-03"), 3, "sub-NN (4 files)"),
        (("patient001_frame01", "patient001_frame12", "patient002_frame01", "patient 3"), 3, "patientN (4 files)"),
        (("TCGA_CS_4941_19960909_1", "TCGA_CS_4941_19960909_2", "TCGA-02-0003", "TCGA-06-0003"), 3, "TCGA-XX-XXXX"),
        (("impatient_1", "impatient_2", "outpatient2", "subset-1"), 4, "every file is a patient of its own"),
    ],
)
def test_names_that_tell(tmp_path, names, count, rule):
    for k, name in enumerate(names):
        picture(tmp_path / f"{name}.png", k)
    cohort = load_cohort(tmp_path, tuning=0)
    assert patients(cohort) == count
    assert rule in cohort.patient_rule


def test_folders_that_tell(tmp_path):
    for k in range(12):
        for sub, write in (("images", picture), ("masks", mask)):
            write(tmp_path / sub / f"patient{k // 2}" / f"slice{k % 2}.png")
    cohort = load_cohort(tmp_path)
    assert len(cohort.cases) == 12
    assert patients(cohort) == 6


def test_folders_within_class_folders_are_patients(tmp_path):
    for k in range(24):
        picture(tmp_path / "train" / "AB"[k % 2] / f"x{k % 6}" / f"{k}.png", k)
    cohort = load_cohort(tmp_path)
    assert len(cohort.cases) == 24
    assert patients(cohort) == 6
    assert cohort.patient_rule == "named by the folder that holds a file (24 files)"


def test_the_rule_is_there_to_be_shown_and_no_example_in_it(tmp_path):
    for k in range(8):
        picture(tmp_path / "AB"[k % 2] / f"person{k // 2}_{k}.png", k)
    cohort = load_cohort(tmp_path)
    examples = cohort.patient_examples()
    assert len(examples) == 3
    for file, patient in examples:
        assert (tmp_path / file).exists()
        assert patient in file
    assert "person0" not in cohort.patient_rule
    assert "patients={" not in repr(cohort)


def test_every_way_to_tell_patients_has_words(tmp_path):
    for k in range(8):
        picture(tmp_path / "p" / "AB"[k % 2] / f"s{k // 2}_{k}.png", k)
    assert load_cohort(tmp_path / "p", patient_pattern=r"s(\d)").patient_rule.startswith("what 's(\\d)' matches")
    lines = [["image", "label", "patient"], *([f"p/{'AB'[k % 2]}/s{k // 2}_{k}.png", k % 2, k] for k in range(8))]
    assert load_cohort(table(tmp_path / "x.csv", lines)).patient_rule == "the column patient"
    arrays = {f"{s}_images": np.zeros((4, 8, 8), np.uint8) for s in ("train", "val", "test")}
    labels = {f"{s}_labels": np.arange(4)[:, None] % 2 for s in ("train", "val", "test")}
    np.savez(tmp_path / "x.npz", **arrays, **labels)
    assert load_cohort(tmp_path / "x.npz").patient_rule == "every image is a patient of its own"


def test_numbers_that_a_spreadsheet_wrote_as_fractions(tmp_path):
    lines = [["image", "label", "patient"]]
    for k in range(8):
        picture(tmp_path / f"{k}.png", k)
        lines.append([f"{k}.png", k % 2, ("1", "1.0", "2", "2.00", "10", "10", "P1.0", "3")[k]])
    assert patients(load_cohort(table(tmp_path / "x.csv", lines))) == 5


@pytest.mark.parametrize("name", ["subject_id", "Participant", "PatientID", "patient_id", "mrn"])
def test_columns_that_seem_to_name_patients(tmp_path, name):
    for k in range(4):
        picture(tmp_path / f"{k}.png", k)
    table(tmp_path / "x.csv", [["image", "label", name], *([f"{k}.png", k % 2, k] for k in range(4))])
    with pytest.raises(DataError, match=f"has a column '{name}'"):
        load_cohort(tmp_path)
    table(tmp_path / "x.csv", [["image", "label", name, "patient"], *([f"{k}.png", k % 2, k, k] for k in range(4))])
    if name in ("subject_id", "Participant", "mrn"):
        assert load_cohort(tmp_path).patient_rule == "the column patient"


def test_few_folders_are_no_patients(tmp_path):
    for k in range(12):
        for name in ("A", "B"):
            picture(tmp_path / "classes" / "train" / name / "images" / f"{name}{k}.png", k)
            picture(tmp_path / "classes" / "test" / name / "images" / f"{name}{k}.png", k + 20)
        for sub, write in (("images", picture), ("masks", mask)):
            write(tmp_path / "sites" / sub / "AB"[k % 2] / f"{k}.png")
        picture(tmp_path / "beside" / "data" / f"{k}.png", k)
        mask(tmp_path / "beside" / "data" / f"{k}_mask.png")
    assert patients(load_cohort(tmp_path / "classes")) == 48
    assert patients(load_cohort(tmp_path / "sites")) == 12
    assert patients(load_cohort(tmp_path / "beside")) == 12
