"""What makes no case is counted and said; a table beside the pictures is read, or it is said why not."""

import codecs
import csv
import re

import numpy as np
import pytest
from folders import dataset_json, files, mask, picture, table, volume

from microtome.errors import DataError, ReadError
from microtome.medical.cohort import load_cohort


def said(cohort, *parts: str) -> bool:
    return any(all(part in note for part in parts) for note in cohort.notes)


class TestCounted:
    def test_pairs_of_a_kind_that_is_not_read(self, tmp_path):
        for k in range(12):
            picture(tmp_path / "images" / f"{k}.png", k)
            mask(tmp_path / "masks" / f"{k}.png")
        for k in range(4):
            (tmp_path / "images" / f"v{k}.zzz").write_text("?")
            (tmp_path / "masks" / f"v{k}.zzz").write_text("?")
        cohort = load_cohort(tmp_path)
        assert len(cohort.cases) == 12
        assert said(cohort, "Passed over: 8 files (8 .zzz)")

    def test_the_same_in_every_layout(self, tmp_path):
        made = {}
        for name in ("decathlon", "class_folders", "masks_beside", "images", "manifest"):
            made[name] = tmp_path / name
        for k in range(6):
            volume(made["decathlon"] / "imagesTr" / f"{k}.nii.gz", k)
            volume(made["decathlon"] / "labelsTr" / f"{k}.nii.gz", k % 2)
            picture(made["class_folders"] / "AB"[k % 2] / f"{k}.png", k)
            picture(made["masks_beside"] / f"{k}.png", k)
            mask(made["masks_beside"] / f"{k}_mask.png")
            picture(made["images"] / f"{k}.png", k)
            picture(made["manifest"] / f"{k}.png", k)
        dataset_json(made["decathlon"])
        table(made["manifest"] / "x.csv", [["image", "label"], *([f"{k}.png", k % 2] for k in range(6))])
        for name, root in made.items():
            assert load_cohort(root).notes == (), name
            place = {"decathlon": root / "labelsTr", "class_folders": root / "A"}.get(name, root)
            (place / "more.zzz").write_text("?")
            (place / "Thumbs.db").write_text("?")
            (place / ".hidden").write_text("?")
            cohort = load_cohort(root)
            assert cohort.format == name
            assert cohort.notes == ("Passed over: 1 file (1 .zzz) of no kind that is read here.",), name

    def test_pictures_that_a_manifest_does_not_list(self, tmp_path):
        for k in range(9):
            picture(tmp_path / f"{k}.png", k)
        path = table(tmp_path / "x.csv", [["image", "label"], *([f"{k}.png", k % 2] for k in range(6))])
        for where in (tmp_path, path):
            assert said(load_cohort(where), "Passed over: 3 images (3 .png)")

    def test_unlabelled_test_images_of_a_decathlon(self, tmp_path):
        for k in range(6):
            volume(tmp_path / "imagesTr" / f"{k}.nii.gz", k)
            volume(tmp_path / "labelsTr" / f"{k}.nii.gz")
            volume(tmp_path / "imagesTs" / f"t{k}.nii.gz")
        dataset_json(tmp_path, training=[{"image": f"./imagesTr/{k}.nii.gz", "label": "x"} for k in range(4)])
        assert said(load_cohort(tmp_path), "Passed over: 6 images (6 .nii.gz)")

    def test_cases_that_dataset_json_lists_and_that_are_not_there(self, tmp_path):
        for k in range(6):
            volume(tmp_path / "imagesTr" / f"{k}.nii.gz", k)
            volume(tmp_path / "labelsTr" / f"{k}.nii.gz")
        dataset_json(tmp_path, training=[f"./imagesTr/{k}.nii.gz" for k in range(9)])
        assert said(load_cohort(tmp_path), "3 cases that dataset.json lists")

    def test_a_class_whose_images_lie_deeper(self, tmp_path):
        for k in range(6):
            picture(tmp_path / "A" / f"{k}.png", k)
            picture(tmp_path / "B" / f"p{k}" / "x.png", 10 + k)
            picture(tmp_path / "C" / "deep" / "deeper" / f"{k}.png", 20 + k)
        cohort = load_cohort(tmp_path)
        assert cohort.classes == ("A", "B")
        assert len(cohort.cases) == 12
        assert said(cohort, "Passed over: 6 images (6 .png)")

    def test_arrays_of_an_npz_file(self, tmp_path):
        arrays = {f"{s}_images": np.zeros((4, 8, 8), np.uint8) for s in ("train", "val", "test")}
        labels = {f"{s}_labels": np.arange(4)[:, None] % 2 for s in ("train", "val", "test")}
        np.savez(tmp_path / "x.npz", train_masks=np.zeros((4, 8, 8), np.uint8), **arrays, **labels)
        assert said(load_cohort(tmp_path / "x.npz"), "more than is read: train_masks")

    def test_no_name_of_a_file_is_told(self, tmp_path):
        for k in range(6):
            picture(tmp_path / "A" / f"{k}.png", k)
            picture(tmp_path / "B" / f"{k}.png", k + 6)
        for name in ("Meier_Anna.1966", "1.2.840.113", "doe.john.patientname", "jane.doc"):
            (tmp_path / "A" / name).write_text("?")
        notes = " ".join(load_cohort(tmp_path).notes)
        assert "Passed over: 4 files (3 without ending, 1 .doc)" in notes
        assert not re.search("Meier|840|john|jane", notes)

    def test_a_mask_whose_image_is_of_a_kind_that_is_not_read(self, tmp_path):
        for k in range(3):
            picture(tmp_path / "images" / f"{k}.png", k)
            mask(tmp_path / "masks" / f"{k}.png")
        (tmp_path / "images" / "9.zzz").write_text("?")
        mask(tmp_path / "masks" / "9.png")
        with pytest.raises(ReadError, match=r"9\.zzz, the image of 9\.png, is of a kind that microtome does not read"):
            load_cohort(tmp_path)

    @pytest.mark.parametrize("layout", ["decathlon", "image_masks", "class_folders"])
    def test_nothing_but_files_of_a_kind_that_is_not_read(self, tmp_path, layout):
        folders = {"decathlon": ("imagesTr", "labelsTr"), "image_masks": ("images", "masks"), "class_folders": "AB"}
        for name in folders[layout]:
            (tmp_path / name).mkdir()
            for k in range(6):
                (tmp_path / name / f"{k}.zzz").write_text("?")
        if layout == "decathlon":
            dataset_json(tmp_path)
        with pytest.raises(DataError, match=r"Files ending in \.zzz are not read|It holds 12 \.zzz"):
            load_cohort(tmp_path)


LINES = [["image", "label"], *([f"{k}.png", "ab"[k % 2]] for k in range(6))]


class TestTables:
    @pytest.fixture
    def folder(self, tmp_path):
        for k in range(6):
            picture(tmp_path / f"{k}.png", k)
        return tmp_path

    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    @pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
    def test_quotes_and_what_separates(self, folder, delimiter, quoting):
        table(folder / "x.csv", LINES, delimiter, quoting)
        cohort = load_cohort(folder)
        assert (cohort.format, cohort.classes, len(cohort.cases)) == ("manifest", ("a", "b"), 6)
        assert cohort.notes == ()

    @pytest.mark.parametrize(
        ("start", "encoding", "end"),
        [
            (codecs.BOM_UTF8, "utf-8", "\r\n"),
            (b"", "utf-8", "\n"),
            (b"", "utf-8", "\r"),
            (codecs.BOM_UTF16_LE, "utf-16-le", "\r\n"),
            (codecs.BOM_UTF16_BE, "utf-16-be", "\n"),
        ],
    )
    @pytest.mark.parametrize("head", ['"Image" ; "label"', "sep=;\r\nimage;label", "IMAGE;Label", '"image";" label"'])
    def test_as_spreadsheets_write_it(self, folder, start, encoding, end, head):
        text = end.join([head.replace("\r\n", end), *(f'"{k}.png";{"ab"[k % 2]}' for k in range(6)), ""])
        (folder / "x.csv").write_bytes(start + text.encode(encoding))
        cohort = load_cohort(folder)
        assert (cohort.format, cohort.classes, len(cohort.cases)) == ("manifest", ("a", "b"), 6)

    def test_running_numbers_of_pandas_and_empty_columns_of_a_spreadsheet(self, folder):
        lines = [["", "image", "label", "", ""], *([k, f"{k}.png", k % 2, "", ""] for k in range(6)), [""] * 5]
        for delimiter in ",;\t":
            table(folder / "x.csv", lines, delimiter)
            cohort = load_cohort(folder)
            assert len(cohort.cases) == 6
            assert all(case.subgroups == {} for case in cohort.cases)

    def test_quoted_cells_may_hold_what_separates_and_ends_of_lines(self, folder):
        picture(folder / "a, b.png", 50)
        lines = [["image", "label", "remark"], *([f"{k}.png", k % 2, "x,\ny"] for k in range(5)), ["a, b.png", 1, '"']]
        table(folder / "x.csv", lines)
        cohort = load_cohort(folder)
        assert "a, b.png" in files(cohort)
        assert {case.subgroups["remark"] for case in cohort.cases} == {"x,\ny", '"'}

    @pytest.mark.parametrize("name", ["x.txt", "X.CSV", "x.Tsv"])
    @pytest.mark.parametrize("above", ["", "\n", "\r\n \r\n", "\nsep=\t\n\n"])
    def test_endings_and_empty_lines_above(self, folder, name, above):
        lines = ["image\tlabel", *(f"{k}.png\t{k % 2}" for k in range(6))]
        (folder / name).write_text(above + "\n".join(lines), newline="")
        (folder / "readme.txt").write_text("An image, a label.\n")
        cohort = load_cohort(folder)
        assert (cohort.format, len(cohort.cases)) == ("manifest", 6)
        assert cohort.notes == ("Passed over: 1 file (1 .txt) of no kind that is read here.",)
        (folder / name).write_text(above + "\n".join([*lines, "9.png\t1"]), newline="")
        with pytest.raises(ReadError, match=rf"line {len(above.splitlines()) + 8}: the image"):
            load_cohort(folder)

    def test_umlauts_of_windows(self, folder):
        picture(folder / "Möller.png", 50)
        lines = [*(f"{k}.png;{k % 2};männlich" for k in range(5)), "Möller.png;1;weiblich"]
        (folder / "x.csv").write_bytes("\r\n".join(["image;label;Geschlecht", *lines]).encode("cp1252"))
        cohort = load_cohort(folder)
        assert "Möller.png" in files(cohort)
        assert {case.subgroups["Geschlecht"] for case in cohort.cases} == {"männlich", "weiblich"}
        assert said(cohort, "read as Windows-1252")

    def test_paths_of_windows(self, tmp_path):
        for k in range(6):
            picture(tmp_path / "images" / f"{k}.png", k)
        table(tmp_path / "x.csv", [["image", "label"], *([rf"images\{k}.png", k % 2] for k in range(6))])
        assert len(load_cohort(tmp_path).cases) == 6

    def test_one_table_for_each_part(self, folder):
        for k, part in enumerate(("train", "valid", "test")):
            table(folder / f"{part}.csv", [["image", "label"], *([f"{2 * k + i}.png", i] for i in range(2))])
        cohort = load_cohort(folder)
        assert [len(cohort.train), len(cohort.tuning), len(cohort.evaluation)] == [2, 2, 2]
        table(folder / "test.csv", [["image", "class"], ["4.png", 1]])
        with pytest.raises(DataError, match="other columns"):
            load_cohort(folder)

    @pytest.mark.parametrize(
        ("name", "content", "reason"),
        [
            ("x.csv", "file,label\n0.png,a\n", "the first line has no column 'image'"),
            ("x.csv", "0.png,a\n1.png,b\n", "the first line has no column 'image'"),
            ("x.tsv", "", "it is empty"),
            ("x.csv", 'image,label\n"0.png,a\n', "it cannot be read as CSV"),
        ],
    )
    def test_a_table_that_is_not_taken_is_said_with_the_reason(self, folder, name, content, reason):
        (folder / name).write_text(content)
        cohort = load_cohort(folder)
        assert cohort.format == "images"
        assert said(cohort, "1 table beside the images not taken as a manifest", reason)

    def test_several_tables(self, folder):
        for name in ("one.csv", "two.csv"):
            table(folder / name, LINES)
        assert said(load_cohort(folder), "2 tables", "there are several")
        assert load_cohort(folder / "one.csv").format == "manifest"

    def test_tables_beside_another_layout(self, tmp_path):
        for k in range(6):
            picture(tmp_path / "images" / f"{k}.png", k)
            mask(tmp_path / "masks" / f"{k}.png")
        (tmp_path / "metadata.csv").write_text("id,age\n0,40\n")
        cohort = load_cohort(tmp_path)
        assert cohort.format == "image_masks"
        assert said(cohort, "1 table", "no column 'image'")

    def test_masks_and_labels_are_there_for_both_tasks(self, folder):
        for k in range(6):
            mask(folder / "masks" / f"{k}.png")
        table(
            folder / "x.csv",
            [["image", "mask", "label"], *([f"{k}.png", f"masks/{k}.png", "ab"[k % 2]] for k in range(6))],
        )
        cohort = load_cohort(folder)
        assert cohort.task == "segmentation"
        other = cohort.of_task("classification")
        assert (other.task, other.classes, len(other.cases)) == ("classification", ("a", "b"), 6)
