"""Layouts in which masks lie beside images, and nnU-Net's folders of version 1."""

import csv

import nibabel
import numpy as np
import pytest
import torch
from folders import case_of, dataset_json, files, mask, picture, volume
from PIL import Image as Picture
from torch import nn

import microtome
from microtome.errors import DataError, LabelError, ReadError
from microtome.inference.jobs import jobs_of
from microtome.medical.cohort import load_cohort
from microtome.medical.pipeline import Pipeline
from microtome.verbs.options import CompressOptions
from microtome.verbs.request import read_request, write_key
from microtome.verbs.roles import as_classes


@pytest.fixture
def busi(tmp_path):
    """Breast ultrasound images (Al-Dhabyani et al. 2020): names with brackets, one to three masks per image."""
    for name in ("benign", "malignant", "normal"):
        for k in range(1, 9):
            picture(tmp_path / name / f"{name} ({k}).png", 10 * k + len(name))
            mask(tmp_path / name / f"{name} ({k})_mask.png", slice(0, 0 if name == "normal" else 2))
    mask(tmp_path / "benign" / "benign (1)_mask_1.png", slice(4, 5))
    mask(tmp_path / "benign" / "benign (1)_mask_2.png", slice(7, 8))
    return tmp_path


class TestBusi:
    def test_images_masks_and_classes(self, busi):
        cohort = load_cohort(busi)
        assert (cohort.format, cohort.task) == ("class_folders", "segmentation")
        assert len(cohort.cases) == 24
        assert not any("mask" in name for name in files(cohort))
        for case in cohort.cases:
            assert case.mask.name == f"{case.image[0].stem}_mask.png"
            assert case.subgroups == {"class": case.image[0].parent.name}
            assert case.label == ("benign", "malignant", "normal").index(case.image[0].parent.name)
        assert len({case.patient for case in cohort.cases}) == 24

    def test_several_masks_of_an_image_are_one(self, busi):
        cohort = load_cohort(busi)
        case = case_of(cohort, "benign (1).png")
        labels = cohort.mask(case, cohort.image(case))
        assert np.flatnonzero(labels[:, 0]).tolist() == [0, 1, 4, 7]
        assert labels.max() == 1
        before = cohort.sha256(case)
        mask(busi / "benign" / "benign (1)_mask_2.png", slice(6, 7))
        assert cohort.sha256(case) != before

    def test_the_same_folder_classifies(self, busi):
        cohort = load_cohort(busi).of_task("classification")
        assert cohort.classes == ("benign", "malignant", "normal")
        assert len(cohort.cases) == 24
        assert all(case.mask is None for case in cohort.cases)

    @pytest.mark.parametrize("declared", [True, False])
    def test_the_network_decides(self, busi, declared):
        head = nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        pipeline = Pipeline("classification", ("normal", "benign", "malignant"), 1, 2, size=(8, 8), normalize="unit")
        options = CompressOptions(
            target="reference", pipeline=pipeline if declared else None, input_shape=(1, 8, 8), metric="auroc"
        )
        found = read_request(head, busi, options)
        assert (found.cohort.task, found.pipeline.task) == ("classification", "classification")
        case = found.cohort.cases[0]
        assert found.pipeline.classes[case.label] == case.image[0].parent.name
        found = read_request(nn.Conv2d(1, 2, 1), busi, CompressOptions(target="reference", input_shape=(1, 8, 8)))
        assert found.cohort.task == "segmentation"

    def test_a_class_without_masks_is_counted(self, busi):
        for file in (busi / "normal").glob("*_mask*"):
            file.unlink()
        cohort = load_cohort(busi)
        assert len(cohort.cases) == 16
        assert "8 images without mask left out." in cohort.notes
        assert len(cohort.of_task("classification").cases) == 24

    def test_both_tasks_have_the_same_names_and_roles(self, busi, tmp_path_factory):
        for file in (busi / "normal").glob("*_mask*"):
            file.unlink()
        cohort = load_cohort(busi)
        other = cohort.of_task("classification")
        cases = {case.id: case for case in other.cases}
        for case in cohort.cases:
            same = cases[case.id]
            assert (case.image, case.patient, case.role) == (same.image, same.patient, same.role)
        file = tmp_path_factory.mktemp("key") / "key.csv"
        write_key(file, busi, CompressOptions(tuning=0.1, evaluation=0.3))
        lines = list(csv.DictReader(file.read_text().splitlines()))
        assert {line["case"]: line["files"] for line in lines} == other.key
        assert {line["case"]: line["role"] for line in lines} == {case.id: case.role for case in other.cases}

    def test_it_may_be_calibrated_on(self, busi, tmp_path_factory):
        head = nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        pipeline = Pipeline("classification", ("normal", "benign", "malignant"), 1, 2, size=(8, 8), normalize="unit")
        root = tmp_path_factory.mktemp("other")
        for k in range(24):
            picture(root / ("benign", "malignant", "normal")[k % 3] / f"{k}.png", 900 + k)
        how = {"pipeline": pipeline, "calibration": busi, "calibration_choice": "stratified"}
        found = read_request(head, root, CompressOptions(target="reference", input_shape=(1, 8, 8), **how))
        _, cases = found.calibration
        assert len(cases) == 24
        assert {(case.image[0].parent.name, pipeline.classes[case.label]) for case in cases} == {
            (name, name) for name in pipeline.classes
        }

    def test_masks_that_disagree(self, tmp_path):
        for k in range(4):
            picture(tmp_path / f"{k}.png", k)
            mask(tmp_path / f"{k}_mask.png", slice(0, 2), value=1)
            mask(tmp_path / f"{k}_mask_1.png", slice(1, 3), value=2)
        cohort = load_cohort(tmp_path)
        with pytest.raises(LabelError, match="give one voxel different labels"):
            cohort.mask(cohort.cases[0], None)


BESIDE = [
    "{}_mask", "{}-mask", "{} mask", "{}.mask", "{}_seg", "{}_label", "{}_labels", "{}_gt", "{}_GT", "{}_annotation",
    "{}_Segmentation", "{}_groundtruth", "{}_ground_truth", "{}_roi", "mask_{}", "seg-{}", "{}_mask_1", "{}_mask (1)",
]  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("stem", ["a{}", "case.{}", "x {} (1)", "1{}"])
def test_masks_beside_their_images(tmp_path, name, stem):
    for k in range(6):
        picture(tmp_path / f"{stem.format(k)}.jpg", k)
        mask(tmp_path / f"{name.format(stem.format(k))}.png")
    cohort = load_cohort(tmp_path)
    assert (cohort.format, cohort.task, len(cohort.cases)) == ("masks_beside", "segmentation", 6)
    for case in cohort.cases:
        assert case.mask.stem == name.format(case.image[0].stem)


@pytest.mark.parametrize(("image", "its"), [("a{}_image", "a{}_mask"), ("img_{}", "mask_{}"), ("{}-img", "{}-seg")])
def test_images_that_say_that_they_are_images(tmp_path, image, its):
    for folder, masks in (
        (tmp_path / "flat", tmp_path / "flat"),
        (tmp_path / "x" / "images", tmp_path / "x" / "masks"),
    ):
        for k in range(4):
            picture(folder / f"{image.format(k)}.png", k)
            mask(masks / f"{its.format(k)}.png")
    for root in ("flat", "x"):
        cohort = load_cohort(tmp_path / root)
        assert len(cohort.cases) == 4
        assert all(case.mask.stem == its.format(case.image[0].stem.strip("aimge_-")) for case in cohort.cases)


def test_a_name_with_such_a_word_is_an_image_if_no_other_has_the_rest(tmp_path):
    for k in range(6):
        picture(tmp_path / f"{k}_label.png", k)
    cohort = load_cohort(tmp_path)
    assert (cohort.format, len(cohort.cases)) == ("images", 6)


def test_masks_beside_images_in_train_and_test(tmp_path):
    for part in ("train", "val", "test"):
        for k in range(4):
            picture(tmp_path / part / f"{k}.png", k)
            mask(tmp_path / part / f"{k}_seg.png")
    cohort = load_cohort(tmp_path)
    assert [len(cohort.train), len(cohort.tuning), len(cohort.evaluation)] == [4, 4, 4]
    assert len({case.patient for case in cohort.cases}) == 12


def test_two_kinds_of_masks_are_an_error(tmp_path):
    for k in range(4):
        picture(tmp_path / f"{k}.png", k)
        mask(tmp_path / f"{k}_mask.png")
        mask(tmp_path / f"{k}_gt.png")
    with pytest.raises(DataError, match="has two masks"):
        load_cohort(tmp_path)


def test_images_and_masks_within_class_folders(tmp_path):
    for name in ("COVID", "Normal"):
        for k in range(4):
            picture(tmp_path / name / "images" / f"{name}-{k}.png", k + len(name))
            mask(tmp_path / name / "masks" / f"{name}-{k}.png")
    cohort = load_cohort(tmp_path)
    assert (cohort.format, cohort.task, len(cohort.cases)) == ("class_folders", "segmentation", 8)
    assert all(case.mask.name == case.image[0].name for case in cohort.cases)
    assert {case.subgroups["class"] for case in cohort.cases} == {"COVID", "Normal"}


def test_patients_with_slices_and_masks(tmp_path):
    for patient in ("TCGA_CS_4941_19960909", "TCGA_CS_4942_19970222", "TCGA_DU_5851_19950428"):
        for k in range(3):
            picture(tmp_path / patient / f"{patient}_{k}.tif", k)
            mask(tmp_path / patient / f"{patient}_{k}_mask.tif")
    cohort = load_cohort(tmp_path)
    assert (cohort.format, len(cohort.cases)) == ("masks_beside", 9)
    assert len({case.patient for case in cohort.cases}) == 3


def test_a_folder_for_each_patient_with_a_file_for_each_channel(tmp_path):
    for k in range(5):
        name = f"BraTS20_Training_{k:03d}"
        for value, channel in enumerate(("flair", "t1", "t1ce", "t2")):
            volume(tmp_path / name / f"{name}_{channel}.nii", value)
        volume(tmp_path / name / f"{name}_seg.nii", k % 2)
    cohort = load_cohort(tmp_path)
    assert (cohort.format, len(cohort.cases)) == ("masks_beside", 5)
    image = cohort.image(cohort.cases[0])
    assert [int(channel.max()) for channel in image.array] == [0, 1, 2, 3]
    assert any("Up to 4 files of a case are taken for its channels" in note for note in cohort.notes)
    assert len({case.patient for case in cohort.cases}) == 5


def test_several_masks_in_a_folder_of_masks(tmp_path):
    for k in range(4):
        picture(tmp_path / "images" / f"{k}.png", k)
        mask(tmp_path / "masks" / f"{k}_mask.png", slice(0, 1))
        mask(tmp_path / "masks" / f"{k}_mask_1.png", slice(5, 6))
    cohort = load_cohort(tmp_path)
    assert len(cohort.cases) == 4
    assert np.flatnonzero(cohort.mask(cohort.cases[0], None)[:, 0]).tolist() == [0, 5]


def test_the_same_folders_in_images_and_masks(tmp_path):
    for k in range(8):
        for sub, write in (("images", picture), ("masks", mask)):
            write(tmp_path / sub / f"scan{k % 4}" / f"{k // 4}.png")
    cohort = load_cohort(tmp_path)
    assert len(cohort.cases) == 8
    assert all(
        case.mask.relative_to(tmp_path / "masks") == case.image[0].relative_to(tmp_path / "images")
        for case in cohort.cases
    )


@pytest.mark.parametrize("ending", ["png", "gif", "bmp", "tif"])
def test_masks_that_differ_from_their_images_in_the_ending_only(tmp_path, ending):
    for k in range(6):
        picture(tmp_path / "flat" / f"{k}.jpg", k)
        mask(tmp_path / "flat" / f"{k}.{ending}")
        picture(tmp_path / "classes" / "AB"[k % 2] / f"{k}.jpeg", k)
        mask(tmp_path / "classes" / "AB"[k % 2] / f"{k}.{ending}")
    for root, name in (("flat", "masks_beside"), ("classes", "class_folders")):
        cohort = load_cohort(tmp_path / root)
        assert (cohort.format, cohort.task, len(cohort.cases)) == (name, "segmentation", 6)
        assert all(case.mask == case.image[0].with_suffix(f".{ending}") for case in cohort.cases)


def test_two_pictures_of_one_stem_are_two_pictures(tmp_path):
    for k in range(6):
        picture(tmp_path / f"{k}.jpg", k)
        picture(tmp_path / f"{k}.png", k + 10)
    cohort = load_cohort(tmp_path)
    assert (cohort.format, len(cohort.cases)) == ("images", 12)
    for k in range(6):
        mask(tmp_path / f"{k}.png")
    picture(tmp_path / "0.png", 20)
    assert load_cohort(tmp_path).format == "images"


def test_masks_for_training_only_leave_classification(tmp_path):
    for part in ("train", "test"):
        for k in range(4):
            picture(tmp_path / part / "AB"[k % 2] / f"{k}.png", k + len(part))
            if part == "train":
                mask(tmp_path / part / "AB"[k % 2] / f"{k}_mask.png")
    cohort = load_cohort(tmp_path, tuning=0)
    assert (cohort.task, len(cohort.cases)) == ("classification", 8)
    assert not any("mask" in name for name in files(cohort))


@pytest.mark.parametrize("sub", ["masks", "labels", "Mask", "annotations", "GT"])
def test_a_folder_of_masks_beside_the_images(tmp_path, sub):
    for k in range(6):
        for name in ("A", "B"):
            picture(tmp_path / "classes" / name / f"{k}.png", k + 10 * ord(name))
            mask(tmp_path / "classes" / name / sub / f"{k}.png")
        picture(tmp_path / "flat" / f"{k}.png", k)
        mask(tmp_path / "flat" / sub / f"{k}_mask.png")
    cohort = load_cohort(tmp_path / "flat")
    assert (cohort.format, len(cohort.cases), cohort.notes) == ("masks_beside", 6, ())
    assert len({case.patient for case in cohort.cases}) == 6
    cohort = load_cohort(tmp_path / "classes")
    assert (cohort.format, cohort.task, len(cohort.cases)) == ("class_folders", "segmentation", 12)
    for case in cohort.cases:
        assert case.mask == case.image[0].parent / sub / case.image[0].name


def test_train_and_test_within_images_and_masks(tmp_path):
    for part, count in (("train", 6), ("val", 3), ("test", 4)):
        for k in range(count):
            picture(tmp_path / "images" / part / f"{k}.png", k)
            mask(tmp_path / "masks" / part / f"{k}.png")
    cohort = load_cohort(tmp_path)
    assert [len(cohort.train), len(cohort.tuning), len(cohort.evaluation)] == [6, 3, 4]
    assert len({case.patient for case in cohort.cases}) == 13


def test_masks_that_are_numbered_before_the_word(tmp_path):
    for k in range(4):
        picture(tmp_path / f"x{k}.png", k)
        for one in range(2):
            mask(tmp_path / f"x{k}_{one}_mask.png", slice(one, one + 1))
    cohort = load_cohort(tmp_path)
    assert len(cohort.cases) == 4
    assert int(cohort.mask(cohort.cases[0], None).sum()) == 16


def test_names_of_classes_beside_any_layout(tmp_path):
    for k in range(4):
        for name in ("A", "B"):
            picture(tmp_path / "classes" / name / f"{k}.png", k + 10 * ord(name))
            mask(tmp_path / "classes" / name / f"{k}_mask.png")
        picture(tmp_path / "flat" / f"{k}.png", k)
        mask(tmp_path / "flat" / f"{k}_mask.png")
    for root in ("classes", "flat"):
        dataset_json(tmp_path / root, labels={"background": 0, "lesion": 255})
        cohort = as_classes(load_cohort(tmp_path / root), Pipeline("segmentation", ("background", "lesion"), 1, 2))
        assert cohort.numbers == {0: 0, 255: 1}
        assert sorted(np.unique(cohort.mask(cohort.cases[0], None))) == [0, 1]


def test_folders_of_patients_are_no_classes(tmp_path):
    for k in range(6):
        for c in range(2):
            volume(tmp_path / f"sub-0{k}" / f"{c}.nii.gz", k)
    with pytest.raises(DataError, match="looks like no cohort"):
        load_cohort(tmp_path)


# nnU-Net's raw folders.


def nnunet(root, channels=2, cases=6, **content):
    for k in range(cases):
        for c in range(channels):
            volume(root / "imagesTr" / f"case_{k}_{c:04d}.nii.gz", 10 * k + c)
        volume(root / "labelsTr" / f"case_{k}.nii.gz", k % 2)
    return dataset_json(root, **content)


@pytest.mark.parametrize(
    "content",
    [
        {"modality": {"0": "T1", "1": "T2"}, "labels": {"0": "background", "1": "tumour"}},
        {"modality": ["T1", "T2"], "labels": ["background", "tumour"]},
        {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumour": 1}},
        {"labels": {"background": "0", "tumour": "1"}},
        {
            "modality": {"0": "T1", "1": "T2"},
            "training": [
                {"image": f"./imagesTr/case_{k}.nii.gz", "label": f"./labelsTr/case_{k}.nii.gz"} for k in range(6)
            ],
            "test": ["./imagesTs/case_9.nii.gz"],
            "labels": {"0": "background", "1": "tumour"},
        },
        {
            "training": [f"./imagesTr/case_{k}.nii.gz" for k in range(6)],
            "test": [],
            "labels": {"0": "background", "1": "tumour"},
        },
    ],
)
def test_files_of_channels(tmp_path, content):
    cohort = load_cohort(nnunet(tmp_path, **content))
    assert cohort.classes == ("background", "tumour")
    assert cohort.notes == ()
    assert len(cohort.cases) == 6
    for case in cohort.cases:
        values = [int(channel.max()) for channel in cohort.image(case).array]
        assert values == [values[0], values[0] + 1]


def test_one_channel_with_its_number(tmp_path):
    cohort = load_cohort(nnunet(tmp_path, 1, modality={"0": "MRI"}))
    assert cohort.image(cohort.cases[0]).array.shape[0] == 1


def test_validation_list(tmp_path):
    root = nnunet(tmp_path, validation=[{"image": "./imagesTr/case_1.nii.gz", "label": "./labelsTr/case_1.nii.gz"}])
    cohort = load_cohort(root)
    assert [case.mask.name for case in cohort.tuning] == ["case_1.nii.gz"]


def test_a_missing_channel_is_an_error(tmp_path):
    root = nnunet(tmp_path, channel_names={"0": "T1", "1": "T2"})
    (root / "imagesTr" / "case_3_0001.nii.gz").unlink()
    with pytest.raises(ReadError, match=r"case_3\.nii\.gz has the channels 0000; dataset\.json names 2 channels"):
        load_cohort(root)
    (root / "imagesTr" / "case_3_0000.nii.gz").rename(root / "imagesTr" / "case_3_0001.nii.gz")
    with pytest.raises(ReadError, match="has the channels 0001"):
        load_cohort(root)


def test_a_case_may_be_called_like_a_channel(tmp_path):
    for k in range(6):
        volume(tmp_path / "imagesTr" / f"scan_{k:04d}.nii.gz", k)
        volume(tmp_path / "labelsTr" / f"scan_{k:04d}.nii.gz")
    cohort = load_cohort(dataset_json(tmp_path, modality={"0": "MRI"}))
    assert len(cohort.cases) == 6
    assert all(len(case.image) == 1 for case in cohort.cases)


# nnU-Net's files of channels, predicted.


def names(jobs) -> dict[str, list[str]]:
    return {job.name: [file.name for file in job.files] for job in jobs}


def test_channels_are_one_job_called_like_the_case(tmp_path):
    for k in range(3):
        for c in range(2):
            volume(tmp_path / f"case_{k}_{c:04d}.nii.gz")
    joined = {f"case_{k}": [f"case_{k}_0000.nii.gz", f"case_{k}_0001.nii.gz"] for k in range(3)}
    assert names(jobs_of([tmp_path], 2)) == joined
    assert names(jobs_of(sorted(tmp_path.iterdir(), reverse=True), 2)) == joined
    single = {file.name.removesuffix(".nii.gz"): [file.name] for file in sorted(tmp_path.iterdir())}
    assert names(jobs_of([tmp_path], 1)) == names(jobs_of([tmp_path], 3)) == single


@pytest.mark.parametrize("channels", [1, 3])
def test_one_file_with_the_number_of_a_channel_is_called_like_the_case(tmp_path, channels):
    volume(tmp_path / "case_0000.nii.gz")
    volume(tmp_path / "other_0001.nii.gz")
    volume(tmp_path / "plain.nii.gz")
    found = names(jobs_of([tmp_path], channels))
    assert found == {
        "case": ["case_0000.nii.gz"],
        "other_0001": ["other_0001.nii.gz"],
        "plain": ["plain.nii.gz"],
    }


def test_numbered_colour_pictures_are_no_channels(tmp_path):
    for k in range(3):
        Picture.fromarray(np.full((8, 8, 3), k, np.uint8)).save(tmp_path / f"frame_{k:04d}.png")
    assert len(jobs_of([tmp_path], 3)) == 3
    for k in range(3):
        picture(tmp_path / f"frame_{k:04d}.png", k)
    assert list(names(jobs_of([tmp_path], 3))) == ["frame"]


def test_channels_in_two_folders_are_two_images(tmp_path):
    for c in range(2):
        volume(tmp_path / "ab"[c] / f"case_{c:04d}.nii.gz")
    assert len(jobs_of([tmp_path / "a", tmp_path / "b"], 2)) == 2
    for c in range(2):
        volume(tmp_path / "ab"[c] / f"case_{1 - c:04d}.nii.gz")
    assert list(names(jobs_of([tmp_path / "a", tmp_path / "b"], 2))) == ["case", "case-2"]


def test_unlabelled_channels_are_one_case(tmp_path):
    for k in range(3):
        for c in range(2):
            volume(tmp_path / f"case_{k}_{c:04d}.nii.gz")
    cohort = load_cohort(tmp_path, evaluation=1, tuning=0)
    assert [len(case.image) for case in cohort.cases] == [2, 2, 2]
    volume(tmp_path / "case_9_0000.nii.gz")
    assert len(load_cohort(tmp_path, evaluation=1, tuning=0).cases) == 7


def test_a_package_of_two_channels_predicts_files_of_channels(tmp_path):
    root = nnunet(tmp_path / "raw", channel_names={"0": "T1", "1": "T2"}, labels={"background": 0, "tumour": 1})
    rng = np.random.default_rng(0)
    for file in (root / "imagesTr").iterdir():
        nibabel.save(nibabel.Nifti1Image(rng.normal(100, 9, (8, 8, 8)).astype(np.float32), np.eye(4)), file)
    for file in (root / "labelsTr").iterdir():
        nibabel.save(nibabel.Nifti1Image(rng.integers(0, 2, (8, 8, 8), np.uint8), np.eye(4)), file)
    network = nn.Conv3d(2, 2, 1)
    with torch.no_grad():  # the second channel decides
        network.weight.copy_(torch.tensor([[0.0, 0.0], [0.0, 1.0]])[..., None, None, None])
        network.bias.copy_(torch.tensor([100.0, 0.0]))
    pipeline = Pipeline("segmentation", ("background", "tumour"), 2, 3, patch=(8, 8, 8), normalize="none")
    options = CompressOptions(target="reference", pipeline=pipeline, input_shape=(2, 8, 8, 8), recipe="f32")
    microtome.compress(network, root, tmp_path / "package", options=options)
    result = microtome.predict(tmp_path / "package", [root / "imagesTr"], tmp_path / "out")
    assert (result["cases"], result["failed"]) == (6, [])
    assert sorted(file.name for file in (tmp_path / "out").glob("*.gz")) == [f"case_{k}.nii.gz" for k in range(6)]
    second = np.asarray(nibabel.load(root / "imagesTr" / "case_3_0001.nii.gz").dataobj)
    assert np.array_equal(np.asarray(nibabel.load(tmp_path / "out" / "case_3.nii.gz").dataobj), second > 100)
    again = microtome.predict(tmp_path / "package", [root / "imagesTr"], tmp_path / "out")
    assert (again["cases"], again["skipped"]) == (0, 6)
    alone = microtome.predict(tmp_path / "package", [root / "imagesTr" / "case_0_0000.nii.gz"], tmp_path / "alone")
    assert "has 1 channels but the pipeline expects 2" in alone["failed"][0]["problem"]
