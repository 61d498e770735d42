"""Files that are not what their name says, formats of Slicer and ITK, and numbers that are almost right."""

from __future__ import annotations

import builtins
import gzip
import io
import json
import signal
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from microtome.errors import DataError, LabelError, MissingExtraError, ReadError
from microtome.evidence.comparison import Pair, evaluate_pair, streamed
from microtome.inference.jobs import jobs_of
from microtome.medical.cohort import load_cohort
from microtome.medical.pipeline import Pipeline
from microtome.medical.read import read_image, read_mask
from microtome.medical.readers import apart, apart_program
from microtome.medical.readers.detached import voxel_files

VOXELS = np.random.default_rng(0).integers(-500, 500, (5, 6, 7)).astype(np.int16)
LABELS = np.random.default_rng(1).integers(0, 3, (5, 6, 7)).astype(np.uint8)
AFFINE = np.diag([2.0, 3, 4, 1])


def nifti(path: Path, array: np.ndarray, kind=nibabel.Nifti1Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = kind(array, AFFINE)
    image.header.set_xyzt_units("mm")
    path.write_bytes(image.to_bytes())  # unpacked, whatever the name
    return path


def itk(path: Path, array: np.ndarray, *, vector: bool = False, packed: bool = False) -> Path:
    """Axes (z, y, x) or with `vector` (z, y, x, values)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array, isVector=vector)
    image.SetSpacing([2.0, 3, 4, 1][: image.GetDimension()])
    sitk.WriteImage(image, str(path), packed)
    return path


class TestPacked:
    @pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
    @pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x.NII.GZ", "x.dcm", "x"])
    @pytest.mark.parametrize("times", [0, 1, 2])
    def test_content_decides(self, tmp_path, kind, name, times):
        path = nifti(tmp_path / name, VOXELS, kind)
        for _ in range(times):
            path.write_bytes(gzip.compress(path.read_bytes()))
        np.testing.assert_array_equal(read_image([path]).array[0], VOXELS)

    def test_in_a_cohort_and_for_predict(self, tmp_path):
        for k in range(6):
            nifti(tmp_path / "images" / f"{k}.nii.gz", VOXELS)
            nifti(tmp_path / "masks" / f"{k}.nii.gz", LABELS)
        cohort = load_cohort(tmp_path)
        for case in cohort.cases:
            np.testing.assert_array_equal(cohort.mask(case, cohort.image(case)), LABELS)
        assert [job.name for job in jobs_of([tmp_path / "images"])] == [str(k) for k in range(6)]

    def test_truncated(self, tmp_path):
        path = nifti(tmp_path / "x.nii.gz", VOXELS)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ReadError, match="truncated"):
            read_image([path])


NAMES = ["x.nrrd", "x.nhdr", "x.mha", "x.mhd"]


class TestItk:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("packed", [False, True])
    def test_volume(self, tmp_path, name, packed):
        image = read_image([itk(tmp_path / name, VOXELS.transpose(2, 1, 0), packed=packed)])
        assert image.array.dtype == np.int16
        np.testing.assert_array_equal(image.array[0], VOXELS)
        np.testing.assert_allclose(image.affine, np.diag([-2.0, -3, 4, 1]))

    @pytest.mark.parametrize("name", NAMES)
    def test_picture_and_channels(self, tmp_path, name):
        np.testing.assert_array_equal(read_image([itk(tmp_path / name, VOXELS[0])]).array, VOXELS[:1])
        assert read_image([tmp_path / name]).affine is None
        np.testing.assert_array_equal(
            read_image([itk(tmp_path / name, VOXELS, vector=True)]).array, np.moveaxis(VOXELS, 2, 0)
        )
        four = np.stack([VOXELS, VOXELS + 1])
        for array, vector in ((four, False), (np.moveaxis(four, 0, 3), True)):
            path = itk(tmp_path / name, array, vector=vector)
            np.testing.assert_array_equal(read_image([path]).array, four.transpose(0, 3, 2, 1))

    def test_content_decides(self, tmp_path):
        for name, other in (("x.nrrd", "y.mha"), ("x.mha", "y.nrrd"), ("x.mha", "y.nii.gz"), ("x.nrrd", "y")):
            itk(tmp_path / name, VOXELS).rename(tmp_path / other)
            np.testing.assert_array_equal(read_image([tmp_path / other]).array[0], VOXELS.T)

    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("name", ["x.nrrd", "x.mha"])
    @pytest.mark.parametrize("cut", [1, 9, 60, 300])
    def test_truncated(self, tmp_path, name, packed, cut):
        path = itk(tmp_path / name, VOXELS, packed=packed)
        path.write_bytes(path.read_bytes()[:-cut])
        with pytest.raises(ReadError, match=rf"{name} is (truncated|damaged)"):
            read_image([path])

    @pytest.mark.parametrize("name", ["x.nrrd", "x.mha"])
    def test_damage_that_only_the_checksum_shows(self, tmp_path, name):
        path = itk(tmp_path / name, VOXELS, packed=True)
        whole = bytearray(path.read_bytes())
        whole[-20] ^= 0x55
        path.write_bytes(bytes(whole))
        with pytest.raises(ReadError, match="damaged"):
            read_image([path])

    @pytest.mark.parametrize("name", ["x.mha", "x.mhd"])
    def test_nothing_in_it(self, tmp_path, name):
        path = itk(tmp_path / name, VOXELS)
        path.write_bytes(path.read_bytes().replace(b"DimSize = 7 6 5", b"DimSize = 7 0 5"))
        with pytest.raises(ReadError):
            read_image([path])

    @pytest.mark.parametrize(("name", "data"), [("x.nhdr", "x.raw"), ("x.mhd", "x.raw")])
    def test_voxels_that_are_not_there(self, tmp_path, name, data):
        itk(tmp_path / name, VOXELS)
        (tmp_path / data).unlink()
        with pytest.raises(ReadError, match="voxels is missing"):
            read_image([tmp_path / name])

    @pytest.mark.parametrize("name", NAMES)
    def test_without_the_extra(self, tmp_path, name, monkeypatch):
        path = itk(tmp_path / name, VOXELS)
        original = builtins.__import__

        def refuse(module, *args, **kwargs):
            if module == "SimpleITK":
                raise ImportError(module)
            return original(module, *args, **kwargs)

        monkeypatch.delitem(sys.modules, "SimpleITK")
        monkeypatch.setattr(builtins, "__import__", refuse)
        with pytest.raises(MissingExtraError, match=r"microtome\[itk\]"):
            read_image([path])


class TestApart:
    """The process in which readers of C++ run."""

    def test_an_answer_that_was_not_waited_for_answers_nothing_else(self, tmp_path, monkeypatch):
        program = "import sys, time\nsys.stdin.readline()\nprint('{', flush=True, end='')\ntime.sleep(60)\n"
        (tmp_path / "slow.py").write_text(program)
        path, process = itk(tmp_path / "x.mha", VOXELS), apart.Apart()

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            with monkeypatch.context() as patch:
                patch.setattr(apart_program, "__file__", str(tmp_path / "slow.py"))
                signal.setitimer(signal.ITIMER_REAL, 0.5)
                with pytest.raises(KeyboardInterrupt):
                    process.read("itk", path, driver="MetaImageIO")
        finally:
            signal.signal(signal.SIGALRM, before)
        np.testing.assert_array_equal(process.read("itk", path, driver="MetaImageIO")[1][..., 0], VOXELS)
        process.end()

    def test_several_threads(self, tmp_path):
        paths = [itk(tmp_path / f"{k}.mha", VOXELS + np.int16(k)) for k in range(12)]
        with ThreadPoolExecutor(4) as pool:
            images = list(pool.map(lambda path: read_image([path]), paths))
        for k, image in enumerate(images):
            np.testing.assert_array_equal(image.array[0].T, VOXELS + k)


class TestItkCohorts:
    def check(self, cohort) -> None:
        assert cohort.labelled
        for case in cohort.cases:
            image = cohort.image(case)
            np.testing.assert_array_equal(image.array[0], VOXELS)
            np.testing.assert_array_equal(cohort.mask(case, image), LABELS)
        assert not any("left out" in note for note in cohort.notes)

    @pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd"])
    @pytest.mark.parametrize("mask", ["{}", "{}_seg", "{}.seg"])
    def test_images_and_masks(self, tmp_path, ending, mask):
        for k in range(6):
            itk(tmp_path / "images" / f"{k}{ending}", VOXELS.transpose(2, 1, 0))
            itk(tmp_path / "masks" / f"{mask.format(k)}{ending}", LABELS.transpose(2, 1, 0))
        cohort = load_cohort(tmp_path)
        assert len(cohort.cases) == 6
        self.check(cohort)
        assert len(jobs_of([tmp_path / "images"])) == 6  # the .raw beside a header is no image

    @pytest.mark.parametrize("ending", [".nrrd", ".mha"])
    @pytest.mark.parametrize("suffix", ["", "_0000"])
    def test_nnunet(self, tmp_path, ending, suffix):
        for k in range(6):
            itk(tmp_path / "imagesTr" / f"case_{k}{suffix}{ending}", VOXELS.transpose(2, 1, 0))
            itk(tmp_path / "labelsTr" / f"case_{k}{ending}", LABELS.transpose(2, 1, 0))
        content = {"labels": {"background": 0, "front": 1, "back": 2}, "file_ending": ending}
        if suffix:
            content["channel_names"] = {"0": "T1"}
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        self.check(load_cohort(tmp_path))

    def test_what_is_not_read_is_not_called_unpaired(self, tmp_path):
        for k in range(3):
            for folder in ("images", "masks"):
                (tmp_path / folder).mkdir(exist_ok=True)
                (tmp_path / folder / f"{k}.mgz").write_bytes(b"some")
        with pytest.raises(DataError, match=r"Files ending in \.mgz are not read"):
            load_cohort(tmp_path)
        nifti(tmp_path / "masks" / "1_seg.nii.gz", LABELS)
        (tmp_path / "masks" / "1.mgz").unlink()
        with pytest.raises(
            ReadError, match=r"1\.mgz, the image of 1_seg\.nii\.gz, is of a kind that microtome does not"
        ):
            load_cohort(tmp_path)

    def test_what_is_not_read_of_nnunet(self, tmp_path):
        (tmp_path / "imagesTr").mkdir()
        (tmp_path / "imagesTr" / "a_0000.mgz").write_bytes(b"some")
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "front": 1}}))
        (tmp_path / "labelsTr").mkdir()
        with pytest.raises(DataError, match=r"Files ending in \.mgz are not read"):
            load_cohort(tmp_path)
        nifti(tmp_path / "labelsTr" / "a.nii.gz", LABELS)
        with pytest.raises(ReadError, match=r"a_0000\.mgz, the image of a\.nii\.gz"):
            load_cohort(tmp_path)

    def test_a_manifest(self, tmp_path):
        lines = ["image,mask"]
        for k in range(6):
            itk(tmp_path / f"{k}.nrrd", VOXELS.transpose(2, 1, 0))
            itk(tmp_path / f"m{k}.mha", LABELS.transpose(2, 1, 0))
            lines.append(f"{k}.nrrd,m{k}.mha")
        (tmp_path / "cohort.csv").write_text("\n".join(lines))
        self.check(load_cohort(tmp_path / "cohort.csv"))

    def test_masks_on_images_of_another_format(self, tmp_path):
        image = sitk.GetImageFromArray(VOXELS.transpose(2, 1, 0))
        image.SetOrigin((1, 2, 3))
        sitk.WriteImage(image, str(tmp_path / "x.nii.gz"))
        mask = sitk.GetImageFromArray(LABELS.transpose(2, 1, 0))
        mask.CopyInformation(image)
        sitk.WriteImage(mask, str(tmp_path / "m.nrrd"))
        np.testing.assert_array_equal(read_mask(tmp_path / "m.nrrd", read_image([tmp_path / "x.nii.gz"])), LABELS)


class TestVoxelsInAnotherFile:
    def write(self, path: Path, array: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".hdr":
            nibabel.save(nibabel.Nifti1Pair(array, AFFINE), path)
        else:
            itk(path, array.transpose(2, 1, 0))

    @pytest.mark.parametrize("suffix", [".nhdr", ".mhd", ".hdr"])
    def test_they_count_for_what_a_case_is(self, tmp_path, suffix):
        """Headers of images of one size are all the same."""
        for k in range(4):
            self.write(tmp_path / f"{k}" / f"image{suffix}", VOXELS + np.int16(k % 2))
        lines = "\n".join(f"{k}/image{suffix},{k % 2}" for k in range(4))
        (tmp_path / "cohort.csv").write_text(f"image,label\n{lines}\n")
        cohort = load_cohort(tmp_path / "cohort.csv", evaluation=1.0, tuning=0.0)
        assert len({cohort.sha256(case) for case in cohort.cases}) == 2

    @pytest.mark.parametrize("suffix", [".nhdr", ".mhd", ".hdr"])
    def test_they_are_no_images_of_their_own(self, tmp_path, suffix):
        like_dicom = np.zeros((5, 6, 7), np.int16)
        like_dicom.T.flat[:4] = (8, 5, 5, 0)  # as a file without preamble would begin
        for k in range(4):
            self.write(tmp_path / "images" / f"{k}{suffix}", like_dicom)
            self.write(tmp_path / "masks" / f"{k}{suffix}", LABELS)
        assert [job.name for job in jobs_of([tmp_path / "images"])] == ["0", "1", "2", "3"]
        cohort = load_cohort(tmp_path)
        assert [len(case.image) for case in cohort.cases] == [1] * 4
        for case in cohort.cases:
            np.testing.assert_array_equal(cohort.mask(case, cohort.image(case)), LABELS)


class TestNamesOfVoxelFiles:
    def test_a_list_and_a_pattern(self, tmp_path):
        head = "ObjectType = Image\nNDims = 3\nDimSize = 7 6 5\nElementType = MET_SHORT\nElementDataFile = "
        names = [f"s{k:03d}.raw" for k in range(1, 6)]
        for name, plane in zip(names, VOXELS, strict=True):
            (tmp_path / name).write_bytes(plane.tobytes())
        for rest in ("LIST\n" + "\n".join(names), "s%03d.raw 1 5 1"):
            (tmp_path / "x.mhd").write_text(head + rest + "\n")
            np.testing.assert_array_equal(read_image([tmp_path / "x.mhd"]).array[0].T, VOXELS)
            assert voxel_files(tmp_path / "x.mhd") == [tmp_path / name for name in names]
        assert [job.name for job in jobs_of([tmp_path])] == ["x"]

    def test_a_header_whose_voxels_are_missing_takes_no_other(self, tmp_path):
        for name in ("1.mhd", "10.mhd", "11.mhd"):
            itk(tmp_path / name, VOXELS)
        (tmp_path / "1.raw").unlink()
        assert [job.name for job in jobs_of([tmp_path])] == ["1", "10", "11"]

    @pytest.mark.parametrize("name", ["", "  ", "\0", "a" * 5000, "..", "%"])
    def test_names_that_are_none(self, tmp_path, name):
        for path, text in (("x.mhd", "NDims = 3\nElementDataFile = "), ("x.nhdr", "NRRD0004\ndata file: ")):
            (tmp_path / path).write_text(f"{text}{name}\n")
            assert voxel_files(tmp_path / path) == []


class TestAlmostWhole:
    """Masks that were stored as float32, or by a slope."""

    ALMOST = np.array([[[0, 0.99998474, 7.00010681, 2.0, 3.009, -0.0001]]], np.float32)

    def cohort(self, tmp_path, mask):
        for k in range(4):
            nifti(tmp_path / "images" / f"{k}.nii", VOXELS[:1, :1, :6])
            nifti(tmp_path / "masks" / f"{k}.nii", mask if k < 2 else np.rint(mask).astype(np.uint8))
        return load_cohort(tmp_path)

    def test_rounded_and_said(self, tmp_path):
        cohort = self.cohort(tmp_path, self.ALMOST)
        for case in cohort.cases:
            labels = cohort.mask(case, cohort.image(case))
            assert labels.dtype == np.uint8
            np.testing.assert_array_equal(labels, [[[0, 1, 7, 2, 3, 0]]])
        (sentence,) = cohort.remarks.sentences
        assert sentence.startswith("2 cases: the mask holds values up to 0.01 beside whole numbers")

    def test_said_after_an_interruption_too(self, tmp_path):
        self.cohort(tmp_path, self.ALMOST)
        network = streamed(lambda x: np.repeat(x, 8, axis=1))
        said = []
        for _ in range(2):  # the second time nothing is left to do
            cohort = load_cohort(tmp_path, evaluation=1.0, tuning=0.0)
            pipeline = Pipeline("segmentation", cohort.classes, 1, 3, normalize="minmax")
            evaluate_pair(Pair(network, network), cohort, pipeline, store=tmp_path / "cases.jsonl")
            said.append(cohort.remarks.sentences)
        assert said[0] == said[1]
        assert "2 cases: the mask" in said[1][0]

    def test_whole_ones_are_not_remarked(self, tmp_path):
        cohort = self.cohort(tmp_path, np.rint(np.abs(self.ALMOST)))
        for case in cohort.cases:
            cohort.mask(case, cohort.image(case))
        assert cohort.remarks.sentences == ()

    def test_by_a_slope(self, tmp_path):
        path = nifti(tmp_path / "m.nii", (np.arange(6, dtype=np.int16) * 4681)[None, None])
        head = bytearray(path.read_bytes())
        head[112:120] = np.array([1 / 4681, 0], np.float32).tobytes()  # scl_slope and scl_inter
        path.write_bytes(bytes(head))
        np.testing.assert_array_equal(read_mask(path, None), np.arange(6)[None, None])

    @pytest.mark.parametrize("value", [0.02, 0.5, 1.98])
    def test_farther_off_is_refused(self, tmp_path, value):
        mask = self.ALMOST.copy()
        mask[0, 0, 0] = value
        with pytest.raises(LabelError, match=r"not whole numbers: one is 0\.(02|5) off"):
            read_mask(nifti(tmp_path / "m.nii", mask), None)

    def test_a_mask_divided_by_255_does_not_vanish(self, tmp_path):
        with pytest.raises(LabelError, match="nothing but values near 0"):
            read_mask(nifti(tmp_path / "m.nii", LABELS.astype(np.float32) / 255), None)

    @pytest.mark.parametrize("value", [1e9, 1e20, 2**25])
    def test_numbers_beyond_any_label(self, tmp_path, value):
        with pytest.raises(LabelError, match="no labels"):
            read_mask(nifti(tmp_path / "m.nii", np.array([[[0, value]]], np.float64)), None)


class TestWideNumbers:
    @pytest.mark.parametrize("value", [3.5e38, -1e300])
    def test_beyond_32_bits(self, tmp_path, value):
        array = np.ones((2, 3, 4))
        array[0, 0, 0] = value
        for path in (nifti(tmp_path / "x.nii", array), itk(tmp_path / "x.nrrd", array)):
            with pytest.raises(DataError, match=r"holds 1 values of more than 3\.4e\+38") as caught:
                read_image([path])
            assert "NaN" not in str(caught.value)

    def test_the_largest_of_32_bits_is_read(self, tmp_path):
        array = np.full((2, 3, 4), float(np.finfo(np.float32).max))
        assert (read_image([nifti(tmp_path / "x.nii", array)]).array == np.finfo(np.float32).max).all()

    def test_infinity_is_told_as_infinity(self, tmp_path):
        with pytest.raises(DataError, match="NaN or infinite"):
            read_image([nifti(tmp_path / "x.nii", np.full((2, 3, 4), np.inf))])

    def test_numbers_that_would_all_vanish(self, tmp_path):
        with pytest.raises(DataError, match="cannot tell from 0"):
            read_image([nifti(tmp_path / "x.nii", np.full((2, 3, 4), 1e-60))])
        mixed = np.array([[[1e-60, 1.0]]])
        np.testing.assert_array_equal(read_image([nifti(tmp_path / "y.nii", mixed)]).array, [[[[0, 1]]]])

    def test_npz(self, tmp_path):
        np.savez(tmp_path / "x.npz", test_images=np.full((2, 5, 5), 1e39))
        with pytest.raises(DataError, match=r"3\.4e\+38"):
            read_image([tmp_path / "x.npz"], 0)


class TestMedmnist:
    @pytest.mark.parametrize(
        ("shape", "wanted"),
        [
            ((28, 30), (1, 28, 30)),
            ((28, 30, 1), (1, 28, 30)),
            ((28, 30, 3), (3, 28, 30)),
            ((28, 30, 4), (4, 28, 30)),
            ((1, 28, 30), (1, 28, 30)),
            ((3, 28, 30), (3, 28, 30)),
            ((28, 29, 30), (1, 28, 29, 30)),
            ((28, 29, 30, 1), (1, 28, 29, 30)),
            ((2, 28, 29, 30), (2, 28, 29, 30)),
        ],
    )
    def test_pictures_and_volumes(self, tmp_path, shape, wanted):
        arrays, values = {}, np.random.default_rng(0).integers(0, 256, (4, *shape), dtype=np.uint8)
        for split in ("train", "val", "test"):
            arrays |= {f"{split}_images": values, f"{split}_labels": np.array([[0], [1], [0], [1]])}
        np.savez(tmp_path / "x.npz", **arrays)
        cohort = load_cohort(tmp_path / "x.npz")
        assert len(cohort.cases) == 12
        for case in cohort.cases:
            array, stored = cohort.image(case).array, values[case.index % 4]
            assert array.shape == wanted
            last = len(wanted) == len(shape) and shape[-1] <= 4
            np.testing.assert_array_equal(array, (np.moveaxis(stored, -1, 0) if last else stored).reshape(wanted))

    @pytest.mark.parametrize("shape", [(28,), (5, 6, 7, 8), (2, 5, 6, 7, 8)])
    def test_other_shapes_are_refused(self, tmp_path, shape):
        np.savez(tmp_path / "x.npz", test_images=np.zeros((2, *shape), np.uint8))
        with pytest.raises(ReadError, match=r"shape|channels"):
            read_image([tmp_path / "x.npz"], 0)

    def test_text_is_no_image(self, tmp_path):
        np.savez(tmp_path / "x.npz", test_images=np.full((2, 5, 5), "a"))
        with pytest.raises(ReadError, match="not an image"):
            read_image([tmp_path / "x.npz"], 0)

    @pytest.mark.parametrize("shape", [(10**15, 28, 28), (10**15, 0, 28)])
    def test_a_header_that_promises_more_than_there_is(self, tmp_path, shape):
        member = io.BytesIO()
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("test_images.npy", member.getvalue() + bytes(100))
        with pytest.raises(ReadError, match="truncated"):
            load_cohort(tmp_path / "x.npz")
        assert len(jobs_of([tmp_path / "x.npz"])) == 1  # told when it is read
