import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cohort_files import class_folders, decathlon, manifest, medmnist, picture, volume
from dicom_files import write_series, write_slice

from microtome.errors import DataError, LabelError, OptionError, ReadError
from microtome.medical.cohort import load_cohort
from microtome.medical.formats import FORMATS, find_format
from microtome.medical.formats.patients import patient_in_name

PIXELS = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)

REPORT = "1.2.840.10008.5.1.4.1.1.88.11"  # basic text structured report


def rows(path, name=None):
    return find_format(path, name).rows(path, None)


class TestFinding:
    def test_each_layout_is_recognised(self, tmp_path):
        made = {
            "medmnist": medmnist(tmp_path / "x.npz"),
            "manifest": manifest(tmp_path / "csv", ["image,label", "0.png,0"]).parent,
            "decathlon": decathlon(tmp_path / "msd"),
            "class_folders": class_folders(tmp_path / "classes", {"train/A": ["1"], "test/B": ["2"]}),
            "images": picture(tmp_path / "plain" / "a.png").parent,
        }
        picture(tmp_path / "pairs" / "images" / "a.png")
        picture(tmp_path / "pairs" / "masks" / "a.png")
        made["image_masks"] = tmp_path / "pairs"
        made["boxes"] = picture(tmp_path / "boxes" / "a.png").parent
        (tmp_path / "boxes" / "a.csv").write_text("image,x_min,y_min,x_max,y_max\na.png,0,0,1,1\n")
        made["masks_beside"] = picture(tmp_path / "beside" / "a.png").parent
        picture(tmp_path / "beside" / "a_mask.png")
        write_series(tmp_path / "dicom" / "someone" / "scan", PIXELS)
        made["dicom"] = tmp_path / "dicom"
        assert {name: find_format(path).NAME for name, path in made.items()} == {name: name for name in made}
        assert sorted(made) == sorted(FORMATS)

    def test_dicom_with_suffix_in_a_folder_per_patient_is_no_class_folder(self, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            write_slice(tmp_path / name / "1.dcm", PIXELS[0])
        assert find_format(tmp_path).NAME == "dicom"

    def test_name_is_forced(self, tmp_path):
        class_folders(tmp_path, {"A": ["1"], "B": ["2"]})
        with pytest.raises(DataError, match="holds no single manifest"):
            load_cohort(tmp_path, format="manifest")

    def test_unknown_name_lists_the_names(self, tmp_path):
        with pytest.raises(OptionError, match=r"no cohort format 'nrrd'.*medmnist, boxes, manifest, decathlon"):
            find_format(tmp_path, "nrrd")

    def test_nothing_matches_lists_what_was_looked_for(self, tmp_path):
        (tmp_path / "readme.txt").write_text("hello")
        with pytest.raises(DataError, match=r"looks like no cohort\. Looked for .*\.csv file.*dataset\.json"):
            find_format(tmp_path)

    @pytest.mark.parametrize("name", [None, "decathlon"])
    def test_missing_folder(self, tmp_path, name):
        with pytest.raises(ReadError, match="does not exist"):
            find_format(tmp_path / "nowhere", name)

    @pytest.mark.data
    @pytest.mark.parametrize(
        ("folder", "name", "cases"),
        [
            ("hippocampus", "decathlon", 200),
            ("chest_xray", "class_folders", 5840),
            ("pneumoniamnist", "medmnist", 5856),
            ("skin", "image_masks", 2000),
            ("lung", "image_masks", 704),
            ("dicom", "dicom", 2),
            ("brain", "images", 1),
            ("adrenalmnist3d.npz", "medmnist", 1584),
        ],
    )
    def test_real_folders(self, data, folder, name, cases):
        found = find_format(data / folder)
        assert name == found.NAME
        assert len(found.rows(data / folder, None).rows) == cases


class TestPatients:
    @pytest.mark.parametrize(
        ("name", "patient"),
        [
            ("person12_bacteria_46.jpeg", "person12"),
            ("IM-0115-0001.jpeg", "IM-0115"),
            ("NORMAL2-IM-0381-0001.jpeg", "IM-0381"),
            ("ISIC_0000001.jpg", "ISIC_0000001"),
            ("case.1.nii.gz", "case.1"),
        ],
    )
    def test_default_rule(self, tmp_path, name, patient):
        assert patient_in_name(Path(name))[1] == patient

    @pytest.mark.parametrize("pattern", [r"Image_(\d\d)", r"\d\d(?=[LR])"])
    def test_pattern(self, tmp_path, pattern):
        class_folders(tmp_path, {"A": ["Image_01L", "Image_01R", "Image_02L"], "B": ["Image_03R", "Image_04L"]})
        cohort = load_cohort(tmp_path, patient_pattern=pattern, evaluation=0.5)
        assert len({case.patient for case in cohort.cases}) == 4

    def test_pattern_sees_folders(self, tmp_path):
        for patient in ("p1", "p2", "p3"):
            for file in ("a", "b"):
                picture(tmp_path / "images" / f"{patient}-{file}.png")
                picture(tmp_path / "masks" / f"{patient}-{file}.png")
        cohort = load_cohort(tmp_path, patient_pattern=r"images/(p\d)")
        assert len({case.patient for case in cohort.cases}) == 3

    def test_pattern_that_matches_nothing(self, tmp_path):
        class_folders(tmp_path, {"A": ["x1"], "B": ["y"]})
        with pytest.raises(OptionError, match=r"matches nothing in B/y\.png"):
            load_cohort(tmp_path, patient_pattern=r"x\d")

    def test_pattern_that_is_none(self, tmp_path):
        with pytest.raises(OptionError, match="not a regular expression"):
            load_cohort(picture(tmp_path / "a.png"), patient_pattern="(")


class TestMedmnist:
    def test_rows(self, tmp_path):
        table = rows(medmnist(tmp_path / "x.npz"))
        assert table.task == "classification"
        assert table.classes == ("0", "1")
        assert [row.index for row in table.rows] == list(range(18))
        assert [row.split for row in table.rows] == ["train"] * 8 + ["val"] * 4 + ["test"] * 6
        assert len({row.patient for row in table.rows}) == 18

    def test_folder_with_one_file(self, tmp_path):
        medmnist(tmp_path / "x.npz")
        assert len(rows(tmp_path).rows) == 18

    def test_without_labels(self, tmp_path):
        np.savez(tmp_path / "x.npz", train_images=np.zeros((4, 3, 3)), test_images=np.zeros((4, 3, 3)))
        cohort = load_cohort(tmp_path / "x.npz")
        assert not cohort.labelled
        assert cohort.classes == ()

    @pytest.mark.parametrize(
        ("arrays", "error", "message"),
        [
            ({"train_labels": np.zeros((3, 1))}, DataError, "8 train_images but 3 train_labels"),
            ({"train_labels": np.zeros((8, 14))}, LabelError, "14 labels per image"),
            ({"train_labels": np.full((8, 1), 0.5)}, LabelError, "not class numbers"),
            ({"train_images": np.zeros((8, 2))}, DataError, r"shape \(8, 2\)"),
        ],
    )
    def test_arrays_that_do_not_fit(self, tmp_path, arrays, error, message):
        with pytest.raises(error, match=message):
            rows(medmnist(tmp_path / "x.npz", **arrays))

    def test_other_npz(self, tmp_path):
        np.savez(tmp_path / "x.npz", weights=np.zeros(3))
        with pytest.raises(DataError, match="none of train_images"):
            rows(tmp_path / "x.npz")

    @pytest.mark.parametrize("share", [0.1, 0.9])
    def test_truncated(self, tmp_path, share):
        path = medmnist(tmp_path / "x.npz")
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        with pytest.raises(ReadError, match=r"x\.npz is truncated"):
            rows(path)

    def test_pattern_has_nothing_to_match(self, tmp_path):
        with pytest.raises(OptionError, match="no file names"):
            load_cohort(medmnist(tmp_path / "x.npz"), patient_pattern="x")


class TestClassFolders:
    def test_with_splits(self, tmp_path):
        table = rows(
            class_folders(tmp_path, {"train/B": ["1", "2"], "train/A": ["3"], "test/A": ["4"], "val/B": ["5"]})
        )
        assert table.classes == ("A", "B")
        found = {(row.patient, row.label, row.split) for row in table.rows}
        assert found == {
            ("train/B/1", 1, "train"),
            ("train/B/2", 1, "train"),
            ("train/A/3", 0, "train"),
            ("test/A/4", 0, "test"),
            ("val/B/5", 1, "val"),
        }

    def test_without_splits(self, tmp_path):
        table = rows(class_folders(tmp_path, {"A": ["1"], "B": ["2"]}))
        assert [(row.label, row.split) for row in table.rows] == [(0, None), (1, None)]

    def test_hidden_and_other_files_are_passed_over(self, tmp_path):
        class_folders(tmp_path, {"A": ["1", "._1"], "B": ["2"]})
        (tmp_path / "A" / "Thumbs.db").touch()
        assert len(rows(tmp_path).rows) == 2

    @pytest.mark.parametrize("folders", [{"A": ["1", "2"]}, {"train/A": ["1"], "test/A": ["2"]}])
    def test_one_class_only(self, tmp_path, folders):
        with pytest.raises(LabelError, match="one class only, 'A'"):
            rows(class_folders(tmp_path, folders))


class TestImageMasks:
    @pytest.mark.parametrize(("images", "masks"), [("images", "masks"), ("imgs", "label"), ("Image", "Labels")])
    @pytest.mark.parametrize("ending", ["", "_mask", "_seg", "-mask", "_segmentation"])
    def test_pairs_by_stem(self, tmp_path, images, masks, ending):
        for stem in ("a", "b_1", "c.2"):
            picture(tmp_path / images / f"{stem}.jpg")
            picture(tmp_path / masks / f"{stem}{ending}.png")
        found = rows(tmp_path)
        assert [(row.image[0].stem, row.mask.stem) for row in found.rows] == [
            (stem, stem + ending) for stem in ("a", "b_1", "c.2")
        ]

    def test_with_splits(self, tmp_path):
        for split in ("train", "val", "test"):
            picture(tmp_path / split / "images" / f"{split}.png")
            picture(tmp_path / split / "masks" / f"{split}.png")
        assert [(row.split, row.patient) for row in rows(tmp_path).rows] == [
            (s, f"{s}/images/{s}") for s in ("test", "train", "val")
        ]

    def test_image_without_mask_is_counted(self, tmp_path):
        for stem in "abc":
            picture(tmp_path / "images" / f"{stem}.png")
        picture(tmp_path / "masks" / "a.png")
        table = rows(tmp_path)
        assert len(table.rows) == 1
        assert table.notes == ("2 images without mask left out.",)

    def test_mask_without_image(self, tmp_path):
        picture(tmp_path / "images" / "a.png")
        picture(tmp_path / "masks" / "b.png")
        with pytest.raises(ReadError, match=r"The mask .*b\.png has no image"):
            rows(tmp_path)

    def test_two_masks_of_one_image(self, tmp_path):
        picture(tmp_path / "images" / "a.png")
        picture(tmp_path / "masks" / "a.png")
        picture(tmp_path / "masks" / "a_mask.png")
        with pytest.raises(DataError, match="two masks"):
            rows(tmp_path)

    def test_two_images_of_one_stem(self, tmp_path):
        for suffix in ("png", "jpg"):
            picture(tmp_path / "images" / f"a.{suffix}")
        picture(tmp_path / "masks" / "a.png")
        with pytest.raises(DataError, match="same stem"):
            rows(tmp_path)

    def test_no_pairs_at_all(self, tmp_path):
        picture(tmp_path / "images" / "a.png")
        (tmp_path / "masks").mkdir()
        with pytest.raises(DataError, match="no image with a mask"):
            rows(tmp_path)

    def test_image_may_be_a_folder_of_slices(self, tmp_path):
        for name in ("one", "two"):
            write_series(tmp_path / "images" / name, PIXELS)
            volume(tmp_path / "masks" / f"{name}.nii.gz")
        assert [row.image[0].name for row in rows(tmp_path).rows] == ["one", "two"]

    def test_classes_from_dataset_json(self, tmp_path):
        picture(tmp_path / "images" / "a.png")
        picture(tmp_path / "masks" / "a.png")
        (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "disc": 1, "cup": 2}}')
        assert rows(tmp_path).classes == ("background", "disc", "cup")


class TestDecathlon:
    def test_rows(self, tmp_path):
        table = rows(decathlon(tmp_path, 3))
        assert table.classes == ("background", "front", "back")
        assert [row.patient for row in table.rows] == [f"labelsTr/organ_00{k}" for k in range(3)]
        assert all(row.image[0].name == row.mask.name for row in table.rows)

    def test_image_without_label_is_counted(self, tmp_path):
        volume(decathlon(tmp_path, 3) / "imagesTr" / "organ_099.nii.gz")
        table = rows(tmp_path)
        assert len(table.rows) == 3
        assert table.notes == ("1 image without label left out.",)

    def test_label_without_image(self, tmp_path):
        volume(decathlon(tmp_path, 3) / "labelsTr" / "organ_099.nii.gz")
        with pytest.raises(ReadError, match=r"organ_099\.nii\.gz has no image"):
            rows(tmp_path)

    def test_nnunet_has_a_file_per_channel(self, tmp_path):
        for k in range(3):
            volume(tmp_path / "labelsTr" / f"case{k}.nii.gz")
            for channel in range(2):
                volume(tmp_path / "imagesTr" / f"case{k}_{channel:04d}.nii.gz", channel)
        names = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumour": 1}}
        (tmp_path / "dataset.json").write_text(json.dumps(names))
        cohort = load_cohort(tmp_path)
        assert cohort.classes == ("background", "tumour")
        image = cohort.image(cohort.cases[0])
        assert image.array.shape == (2, 3, 4, 5)
        assert [int(channel.max()) for channel in image.array] == [0, 1]

    def test_test_labels_make_an_official_split(self, tmp_path):
        decathlon(tmp_path, 3)
        volume(tmp_path / "imagesTs" / "organ_900.nii.gz")
        volume(tmp_path / "labelsTs" / "organ_900.nii.gz")
        assert [row.split for row in rows(tmp_path).rows] == ["train"] * 3 + ["test"]

    @pytest.mark.parametrize(
        ("text", "error", "message"),
        [
            ("{", ReadError, "cannot be read as JSON"),
            ("[]", ReadError, "not a JSON object"),
            ("{}", DataError, "names no labels"),
            ('{"labels": {"1": "a", "2": "b"}}', DataError, "from 0"),
            ('{"labels": {"background": 0, "region": [1, 2]}}', DataError, "not single numbers"),
        ],
    )
    def test_broken_dataset_json(self, tmp_path, text, error, message):
        (decathlon(tmp_path) / "dataset.json").write_text(text)
        with pytest.raises(error, match=message):
            rows(tmp_path)

    def test_gap_in_the_label_numbers_gets_a_name(self, tmp_path):
        assert rows(decathlon(tmp_path, labels={"0": "bg", "2": "b"})).classes == ("bg", "label 1", "b")

    @pytest.mark.data
    def test_real_folder_with_odd_files(self, data, tmp_path):
        for folder, name in (("imagesTr", "image_without_label"), ("labelsTr", "label_without_image")):
            (tmp_path / folder).mkdir()
            shutil.copy(data / "odd" / "nifti" / f"{name}.nii.gz", tmp_path / folder)
        shutil.copy(data / "hippocampus" / "dataset.json", tmp_path)
        with pytest.raises(ReadError, match="label_without_image"):
            load_cohort(tmp_path)


class TestManifest:
    def test_labels_by_number_with_subgroups(self, tmp_path):
        lines = ["image,label,patient,split,Site,sex", "0.png,0,p1,train,Bern,f", "1.png,2.0,p2,test,,m"]
        table = rows(manifest(tmp_path, lines))
        assert table.task == "classification"
        assert table.classes == ("0", "1", "2")
        first, second = table.rows
        assert (first.patient, first.label, first.split) == ("p1", 0, "train")
        assert (second.label, second.split) == (2, "test")
        assert first.subgroups == {"Site": "Bern", "sex": "f"}
        assert first.image == (tmp_path / "0.png",)

    def test_labels_by_name(self, tmp_path):
        table = rows(manifest(tmp_path, ["image,label", "0.png,TB", "1.png,Normal", "2.png,TB"]))
        assert table.classes == ("Normal", "TB")
        assert [row.label for row in table.rows] == [1, 0, 1]

    def test_masks_and_labels(self, tmp_path):
        table = rows(manifest(tmp_path, ["Image, Mask ,label", "0.png,m0.png,TB", "1.png,m1.png,none", "2.png,,none"]))
        assert table.task == "segmentation"
        assert [row.mask.name for row in table.rows] == ["m0.png", "m1.png"]
        assert table.rows[0].subgroups == {"label": "TB"}
        assert table.notes[0] == "1 line without mask left out."

    def test_unlabelled(self, tmp_path):
        cohort = load_cohort(manifest(tmp_path, ["image", *(f"{k}.png" for k in range(6))]))
        assert not cohort.labelled

    def test_several_files_and_folders(self, tmp_path):
        path = manifest(tmp_path, ["image,mask", "0.png; 1.png,m0.png", "scan,m1.png"])
        write_series(tmp_path / "scan", PIXELS)
        first, second = rows(path).rows
        assert [file.name for file in first.image] == ["0.png", "1.png"]
        assert second.image == (tmp_path / "scan",)

    def test_spreadsheet_export(self, tmp_path):
        path = manifest(tmp_path, [])
        path.write_bytes(b"\xef\xbb\xbfimage,label\r\n0.png,a\r\n,\r\n1.png,b\r\n")
        assert [row.label for row in rows(path).rows] == [0, 1]

    @pytest.mark.parametrize(
        ("lines", "error", "message"),
        [
            (["file,label", "0.png,0"], DataError, "line 1, has no column 'image'"),
            (["image,labels", "0.png,0"], DataError, "column 'labels'. Name it 'label'"),
            (["image,label,patient_id", "0.png,0,1"], DataError, "Name it 'patient'"),
            (["image,label,label", "0.png,0,1"], DataError, "names a column twice"),
            (["image,label"], DataError, "lists no cases"),
            (["image,label", "0.png,0", "1.png"], DataError, "line 3, has 1 cells, not 2"),
            (["image,label", "0.png,0", "9.png,1"], ReadError, r"line 3: the image .*9\.png does not exist"),
            (["image,mask", "0.png,m9.png"], ReadError, r"line 2: the mask .*m9\.png does not exist"),
            (["image,label", "0.png,0", "1.png,"], LabelError, "line 3, has no label"),
            (["image,label", "0.png,20261121", "1.png,0"], LabelError, "no class number"),
            (["image,label", ",0"], DataError, "line 2, names no image"),
            (["image,label,patient", "0.png,0,"], DataError, "line 2, names no patient"),
            (["image,label,split", "0.png,0,holdout"], DataError, "line 2, has the unknown split 'holdout'"),
            (["image,label,split", "0.png,0,train", "1.png,1,"], DataError, "split for some lines only"),
            (["image,mask", "0.png,"], DataError, "lists no cases"),
        ],
    )
    def test_errors_name_the_line(self, tmp_path, lines, error, message):
        with pytest.raises(error, match=message):
            rows(manifest(tmp_path, lines))

    @pytest.mark.parametrize("content", [b"", b"image,label\n\xff\xfe,0\n", b'image,label\n"0.png,0\n'])
    def test_not_a_csv_file(self, tmp_path, content):
        (tmp_path / "x.csv").write_bytes(content)
        with pytest.raises(ReadError, match=r"x\.csv"):
            rows(tmp_path / "x.csv")

    def test_pattern_beside_a_patient_column(self, tmp_path):
        with pytest.raises(OptionError, match="has a patient column"):
            load_cohort(manifest(tmp_path, ["image,label,patient", "0.png,0,a"]), patient_pattern="x")


class TestDicom:
    def test_one_case_per_series(self, tmp_path):
        write_series(tmp_path / "a" / "1", PIXELS, PatientID="p1", SeriesInstanceUID="1.1")
        write_series(tmp_path / "a" / "2", PIXELS, PatientID="p1", SeriesInstanceUID="1.2")
        write_series(tmp_path / "b", PIXELS, PatientID="p2", SeriesInstanceUID="1.3")
        write_slice(tmp_path / "b" / "report.dcm", PIXELS[0], Rows=None, SOPClassUID=REPORT)
        (tmp_path / "readme.txt").write_text("hello")
        cohort = load_cohort(tmp_path)
        assert cohort.format == "dicom"
        assert not cohort.labelled
        assert len(cohort.cases) == 3
        assert len({case.patient for case in cohort.cases}) == 2
        assert cohort.notes == ("2 files left out: no DICOM image.",)
        assert cohort.image(cohort.cases[0]).array.shape == (1, 5, 4, 3)

    def test_without_patient_the_study_or_the_folder_counts(self, tmp_path):
        write_series(tmp_path / "a", PIXELS, PatientID="", SeriesInstanceUID="1.1", StudyInstanceUID="1.5")
        write_series(tmp_path / "b", PIXELS, PatientID="", SeriesInstanceUID="1.2", StudyInstanceUID="")
        assert [row.patient for row in rows(tmp_path).rows] == ["1.5", str(tmp_path / "b")]

    def test_broken_file_is_not_passed_over(self, tmp_path):
        paths = write_series(tmp_path, PIXELS)
        paths[-1].write_bytes(paths[-1].read_bytes()[:450])
        with pytest.raises(ReadError, match=rf"{paths[-1].name} is truncated"):
            rows(tmp_path)

    def test_no_images(self, tmp_path):
        write_slice(tmp_path / "a.dcm", PIXELS[0], Rows=None, SOPClassUID=REPORT)
        with pytest.raises(DataError, match="holds no DICOM images"):
            rows(tmp_path, "dicom")
