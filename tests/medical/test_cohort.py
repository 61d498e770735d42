import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from cohort_files import class_folders, decathlon, manifest, medmnist, picture

from microtome.errors import GeometryError, LabelError, OptionError, ReadError, SplitError
from microtome.medical.cohort import load_cohort


def patients(cohort, role):
    return {case.patient for case in cohort.cases if case.role == role}


def real(cohort, role):
    return {cohort.key[case.id] for case in cohort.cases if case.role == role}


@pytest.fixture
def folders(tmp_path):
    """Two classes with 20 patients each, 2 images per patient."""
    names = {c: [f"person{k + n}_x_{i}" for k in range(20) for i in range(2)] for n, c in ((0, "A"), (100, "B"))}
    return class_folders(tmp_path, names)


class TestSplit:
    def test_shares_of_patients(self, folders):
        cohort = load_cohort(folders)
        counts = {role: len(patients(cohort, role)) for role in ("train", "tuning", "evaluation")}
        assert counts == {"evaluation": 12, "tuning": 2, "train": 26}

    def test_no_patient_has_two_roles(self, folders):
        cohort = load_cohort(folders, tuning=0.2)
        roles = [patients(cohort, role) for role in ("train", "tuning", "evaluation")]
        assert sum(map(len, roles)) == len(set.union(*roles)) == 40
        assert len(cohort.cases) == 80

    def test_both_classes_are_everywhere(self, folders):
        for seed in range(5):
            cohort = load_cohort(folders, seed=seed)
            assert Counter(case.label for case in cohort.evaluation) == {0: 12, 1: 12}

    def test_seed_decides(self, folders):
        one, same, other = (load_cohort(folders, seed=seed) for seed in (1, 1, 2))
        assert one.cases == same.cases
        assert one.key == same.key
        assert real(one, "evaluation") != real(other, "evaluation")

    def test_official_split_is_kept(self, tmp_path):
        cohort = load_cohort(medmnist(tmp_path / "x.npz"))
        assert Counter(case.role for case in cohort.cases) == {"train": 8, "tuning": 4, "evaluation": 6}
        assert {case.index for case in cohort.evaluation} == set(range(12, 18))

    def test_patients_of_evaluation_leave_the_rest(self, tmp_path):
        class_folders(
            tmp_path,
            {
                "train/A": ["person1_a", "person2_a", "person3_a", "person4_a"],
                "train/B": ["person5_a", "person6_a"],
                "val/A": ["person3_b", "person1_c"],
                "test/A": ["person1_b"],
                "test/B": ["person7_b"],
            },
        )
        cohort = load_cohort(tmp_path)
        assert real(cohort, "evaluation") == {"test/A/person1_b.png", "test/B/person7_b.png"}
        assert real(cohort, "tuning") == {"val/A/person3_b.png"}
        names = ("A/person2_a", "A/person4_a", "B/person5_a", "B/person6_a")
        assert real(cohort, "train") == {f"train/{name}.png" for name in names}
        assert "Left out 2 cases from training and 1 case from tuning" in cohort.notes[0]

    def test_train_and_test_only_takes_tuning_from_train(self, tmp_path):
        names = {f"{s}/{c}": [f"{s}{c}{k}" for k in range(10)] for s in ("train", "test") for c in "AB"}
        cohort = load_cohort(class_folders(tmp_path, names), tuning=0.2)
        assert all(name.startswith("train/") for name in real(cohort, "tuning") | real(cohort, "train"))
        assert all(name.startswith("test/") for name in real(cohort, "evaluation"))
        assert (len(cohort.tuning), len(cohort.evaluation)) == (4, 20)

    def test_tuning_may_be_empty(self, folders):
        assert load_cohort(folders, tuning=0).tuning == ()

    def test_everything_for_evaluation(self, folders):
        assert len(load_cohort(folders, evaluation=1).evaluation) == 80

    def test_no_patients_left_for_evaluation(self, tmp_path):
        with pytest.raises(SplitError, match="1 patient: none is left for evaluation"):
            load_cohort(decathlon(tmp_path, 1))

    def test_no_patients_left_for_calibration(self, tmp_path):
        class_folders(tmp_path, {"test/A": ["1"], "test/B": ["2"]})
        with pytest.raises(SplitError, match="none is left for calibration"):
            load_cohort(tmp_path)

    def test_all_images_of_one_patient(self, tmp_path):
        class_folders(tmp_path, {"A": ["person1_1", "person1_2"], "B": ["person1_3"]})
        with pytest.raises(SplitError, match="1 patient"):
            load_cohort(tmp_path)

    @pytest.mark.parametrize(("tuning", "evaluation"), [(0.5, 0.5), (-0.1, 0.3), (0.1, 0), (0.1, 1.5), (1, 0.3)])
    def test_shares_that_make_no_sense(self, folders, tuning, evaluation):
        with pytest.raises(OptionError, match="make no sense"):
            load_cohort(folders, tuning=tuning, evaluation=evaluation)

    @pytest.mark.data
    def test_official_chest_split(self, data):
        cohort = load_cohort(data / "chest_xray")
        assert Counter(case.label for case in cohort.evaluation) == {0: 234, 1: 390}
        assert not patients(cohort, "evaluation") & (patients(cohort, "train") | patients(cohort, "tuning"))
        assert 400 < len(cohort.tuning) < 600
        assert "Left out 551 cases from training" in cohort.notes[0]

    @pytest.mark.data
    def test_hippocampus(self, data):
        cohort = load_cohort(data / "hippocampus")
        assert len(cohort.evaluation) == 60
        assert cohort.classes == ("background", "anterior", "posterior")
        case = cohort.evaluation[0]
        image = cohort.image(case)
        assert cohort.mask(case, image).shape == image.spatial


class TestPseudonyms:
    def test_look(self, folders):
        cohort = load_cohort(folders)
        assert [case.id for case in cohort.cases] == [f"case-{k:04d}" for k in range(1, 81)]
        assert {case.patient for case in cohort.cases} == {f"patient-{k:04d}" for k in range(1, 41)}

    def test_do_not_reveal_the_order_of_files(self, tmp_path):
        cohort = load_cohort(decathlon(tmp_path, 40))
        for numbers in ([case.id for case in cohort.cases], [case.patient for case in cohort.cases]):
            order = [cohort.key[case.id] for _, case in sorted(zip(numbers, cohort.cases, strict=True))]
            rank = np.argsort(np.argsort(order))
            assert abs(np.corrcoef(rank, np.arange(40))[0, 1]) < 0.5

    def test_key_leads_back_to_the_files(self, tmp_path):
        cohort = load_cohort(decathlon(tmp_path))
        assert set(cohort.key) == {case.id for case in cohort.cases}
        assert all((tmp_path / cohort.key[case.id]) == case.image[0] for case in cohort.cases)
        assert "organ" not in repr(cohort.key.keys())

    def test_key_of_cases_in_one_file(self, tmp_path):
        cohort = load_cohort(medmnist(tmp_path / "x.npz"))
        assert all(cohort.key[case.id] == f"x.npz#{case.index}" for case in cohort.cases)

    def test_subgroups_stay(self, tmp_path):
        lines = ["image,label,site", *(f"{k}.png,{k % 2},{'AB'[k // 3]}" for k in range(6))]
        cohort = load_cohort(manifest(tmp_path, lines))
        assert Counter(case.subgroups["site"] for case in cohort.cases) == {"A": 3, "B": 3}


class TestCalibration:
    def test_is_spread_over_classes_and_patients(self, folders):
        chosen = load_cohort(folders).calibration(12)
        assert Counter(case.label for case in chosen) == {0: 6, 1: 6}
        assert len({case.patient for case in chosen}) == 12
        assert {case.role for case in chosen} == {"train"}

    def test_rare_class_is_not_forgotten(self, tmp_path):
        names = {"A": [f"a{k}" for k in range(90)], "B": [f"b{k}" for k in range(10)]}
        chosen = load_cohort(class_folders(tmp_path, names)).calibration(8)
        assert Counter(case.label for case in chosen) == {0: 4, 1: 4}

    def test_grows_at_its_end(self, folders):
        cohort = load_cohort(folders)
        assert cohort.calibration(20)[:7] == cohort.calibration(7)

    def test_takes_all_there_are(self, folders):
        cohort = load_cohort(folders)
        assert {case.id for case in cohort.calibration(1000)} == {case.id for case in cohort.train}

    def test_none_asked_for(self, folders):
        with pytest.raises(OptionError, match="at least one case"):
            load_cohort(folders).calibration(0)


class TestLabels:
    def test_one_class_only_in_a_manifest(self, tmp_path):
        with pytest.raises(LabelError, match="one class only, '1'"):
            load_cohort(manifest(tmp_path, ["image,label", "0.png,1", "1.png,1"]))

    def test_one_class_only_in_npz(self, tmp_path):
        zeros = {f"{s}_labels": np.zeros((n, 1), int) for s, n in (("train", 8), ("val", 4), ("test", 6))}
        with pytest.raises(LabelError, match="one class only"):
            load_cohort(medmnist(tmp_path / "x.npz", **zeros))

    def test_one_class_only_in_evaluation(self, tmp_path):
        class_folders(tmp_path, {"train/A": ["1"], "train/B": ["2"], "test/A": ["3"]})
        with pytest.raises(LabelError, match="one class only for evaluation, 'A'"):
            load_cohort(tmp_path)

    def test_classes_from_two_valued_masks(self, tmp_path):
        lines = ["image,mask", *(f"{k}.png,m{k}.png" for k in range(6))]
        cohort = load_cohort(manifest(tmp_path, lines))
        assert cohort.classes == ("background", "foreground")
        assert cohort.labelled

    def test_classes_from_masks_of_many_labels(self, tmp_path):
        for k in range(6):
            picture(tmp_path / "images" / f"{k}.png")
            picture(tmp_path / "masks" / f"{k}.png", k % 4)
        assert load_cohort(tmp_path).classes == ("background", "label 1", "label 2", "label 3")

    def test_intensities_are_no_labels(self, tmp_path):
        for k in range(4):
            picture(tmp_path / "images" / f"{k}.png")
            picture(tmp_path / "masks" / f"{k}.png", 200)
        with pytest.raises(LabelError, match="values up to 200, which are hardly labels"):
            load_cohort(tmp_path)

    def test_label_beyond_the_classes(self, tmp_path):
        cohort = load_cohort(decathlon(tmp_path, labels={"0": "background", "1": "front"}))
        case = next(case for case in cohort.cases if cohort.key[case.id].endswith("organ_002.nii.gz"))
        with pytest.raises(LabelError, match="holds the label 2, but the cohort has 2 classes"):
            cohort.mask(case, cohort.image(case))

    def test_empty_mask_is_a_mask(self, tmp_path):
        cohort = load_cohort(decathlon(tmp_path))
        masks = [cohort.mask(case, cohort.image(case)) for case in cohort.cases]
        assert sorted(int(mask.max()) for mask in masks)[0] == 0

    def test_mask_of_another_shape(self, tmp_path):
        for k in range(4):
            picture(tmp_path / "images" / f"{k}.png")
            picture(tmp_path / "masks" / f"{k}.png", size=(4, 5))
        cohort = load_cohort(tmp_path)
        with pytest.raises(GeometryError, match="shape 4×5, its image 4×4"):
            cohort.mask(cohort.cases[0], cohort.image(cohort.cases[0]))

    def test_unlabelled(self, tmp_path):
        for k in range(4):
            picture(tmp_path / f"{k}.png")
        cohort = load_cohort(tmp_path)
        assert not cohort.labelled
        assert cohort.classes == ()
        assert cohort.mask(cohort.cases[0], cohort.image(cohort.cases[0])) is None


class TestHash:
    def test_one_file_has_its_own(self, folders):
        cohort = load_cohort(folders)
        case = cohort.cases[0]
        assert cohort.sha256(case) == hashlib.sha256(case.image[0].read_bytes()).hexdigest()

    def test_mask_counts(self, tmp_path):
        cohort = load_cohort(decathlon(tmp_path))
        case = cohort.cases[0]
        before = cohort.sha256(case)
        case.mask.write_bytes(b"changed")
        assert cohort.sha256(case) != before

    def test_cases_in_one_file_differ(self, tmp_path):
        cohort = load_cohort(medmnist(tmp_path / "x.npz", {"train": 4, "val": 2, "test": 4}))
        assert len({cohort.sha256(case) for case in cohort.train}) == 4

    def test_file_gone(self, folders):
        cohort = load_cohort(folders)
        cohort.cases[0].image[0].unlink()
        with pytest.raises(ReadError, match="cannot be read"):
            cohort.sha256(cohort.cases[0])


def test_missing_cohort(tmp_path):
    with pytest.raises(ReadError, match="does not exist"):
        load_cohort(tmp_path / "nowhere")


def test_needs_no_torch():
    code = "import sys, microtome.medical.cohort; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
