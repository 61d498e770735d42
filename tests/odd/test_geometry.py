"""Where images and label maps lie, with SimpleITK as the judge: both forms of NIfTI, DICOM, NRRD, MetaImage, units."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from microtome.errors import GeometryError
from microtome.inference.jobs import Job
from microtome.inference.prefetch import Prefetcher
from microtome.medical.cohort import load_cohort
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.medical.read import read_image, read_mask
from microtome.medical.write import write_labels
from microtome.tasks.guess import default_pipeline

sys.path.append(str(Path(__file__).parents[1] / "medical"))
from dicom_files import functional_groups, write_slice

SHAPE = (4, 5, 6)
VOXELS = np.arange(math.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
FLOAT32 = 2e-5  # headers of NIfTI-1 hold float32
PLAIN = np.diag([2.0, 3, 4, 1])
TURN = nibabel.eulerangles.euler2mat(0.1, 0.2, 0.3)
OBLIQUE = np.block([[TURN * [0.5, 0.7, 1.1], np.array([[10.0], [-20], [30]])], [np.zeros((1, 3)), np.ones((1, 1))]])
SHEARED = np.array([[2.0, 0, 0, 5], [0, 3, 1.5, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
FLIPPED = np.array([[-2.0, 0, 0, 10], [0, -3, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]])
UNITS = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}
PLACE = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "srow_x", "srow_y", "srow_z")


def nifti(path: Path, qform, qcode: int, sform, scode: int, units: int = 2, kind=nibabel.Nifti1Image) -> Path:
    header = kind.header_class()
    header.set_qform(qform, qcode)
    header.set_sform(sform, scode)
    header["xyzt_units"] = units
    nibabel.save(kind(VOXELS, None, header), path)
    return path


def label_map(image_files: list[Path], folder: Path) -> Path:
    image = read_image(image_files)
    path = folder / "labels.nii.gz"
    write_labels(np.zeros(image.spatial, np.uint8), image, path)
    return path


def place(path: Path | list[Path]) -> np.ndarray:
    """Spacing, origin and direction as SimpleITK reads them."""
    image = sitk.ReadImage(str(path) if isinstance(path, Path) else [str(one) for one in path])
    return np.array([*image.GetSpacing(), *image.GetOrigin(), *image.GetDirection()])


class TestBothForms:
    @pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
    @pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
    @pytest.mark.parametrize(
        ("qform", "qcode", "sform", "scode"),
        [
            (PLAIN, 1, FLIPPED, 4),  # the two disagree
            (PLAIN, 1, FLIPPED, 1),
            (PLAIN, 2, FLIPPED, 0),
            (PLAIN, 0, FLIPPED, 3),
            (PLAIN, 0, PLAIN, 0),
            (OBLIQUE, 1, OBLIQUE, 1),
            (OBLIQUE, 1, SHEARED, 2),
            (SHEARED, 1, SHEARED, 1),
        ],
    )
    def test_simpleitk_puts_the_label_map_where_it_puts_the_image(
        self, tmp_path, kind, name, qform, qcode, sform, scode
    ):
        source = nifti(tmp_path / name, qform, qcode, sform, scode, kind=kind)
        judged = nifti(tmp_path / "judge.nii", qform, qcode, sform, scode)  # ITK reads no NIfTI-2
        labels = label_map([source], tmp_path)
        np.testing.assert_allclose(place(labels), place(judged), rtol=FLOAT32, atol=FLOAT32)
        ours, theirs = nibabel.load(labels).header, nibabel.load(source).header
        for field in PLACE:
            np.testing.assert_allclose(ours[field], theirs[field], rtol=1e-6, err_msg=field)
        np.testing.assert_allclose(nibabel.load(labels).affine, nibabel.load(source).affine, rtol=1e-6, atol=1e-6)

    def test_a_form_that_only_nibabel_reads(self, tmp_path):
        source = nifti(tmp_path / "x.nii", PLAIN, 0, SHEARED, 1)
        header = nibabel.load(label_map([source], tmp_path)).header
        assert (int(header["qform_code"]), int(header["sform_code"])) == (0, 1)
        np.testing.assert_allclose(header.get_sform(), SHEARED, rtol=1e-6)

    def test_steps_that_the_sform_does_not_have(self, tmp_path):
        source = nifti(tmp_path / "x.nii", PLAIN, 0, OBLIQUE, 1)
        head = bytearray(source.read_bytes())
        head[80:92] = np.array([7, 7, 7], np.float32).tobytes()  # pixdim, which ITK takes
        source.write_bytes(bytes(head))
        np.testing.assert_allclose(place(label_map([source], tmp_path)), place(source), rtol=FLOAT32, atol=FLOAT32)

    def test_several_files_as_channels(self, tmp_path):
        files = [nifti(tmp_path / f"{k}.nii", PLAIN, 1, FLIPPED, 4) for k in range(2)]
        np.testing.assert_allclose(place(label_map(files, tmp_path)), place(files[0]), atol=FLOAT32)

    def test_channels_that_one_form_only_puts_in_one_place(self, tmp_path):
        """A registration that was written into the sform: the voxels do not lie on one another."""
        first = nifti(tmp_path / "0.nii", PLAIN, 1, PLAIN, 1)
        with pytest.raises(GeometryError, match="another grid"):
            read_image([first, nifti(tmp_path / "1.nii", PLAIN, 1, OBLIQUE, 4)])

    def test_a_header_and_voxels_in_two_files(self, tmp_path):
        source = nifti(tmp_path / "x.hdr", PLAIN, 1, FLIPPED, 4, kind=nibabel.Nifti1Pair)
        assert (tmp_path / "x.img").exists()
        np.testing.assert_allclose(place(label_map([source], tmp_path)), place(source), atol=FLOAT32)

    def test_analyze_which_says_no_place(self, tmp_path):
        nibabel.save(nibabel.AnalyzeImage(VOXELS, PLAIN), tmp_path / "x.hdr")
        image = read_image([tmp_path / "x.hdr"])
        assert image.spacing == (2, 3, 4)
        assert "which way its axes point" in image.notes[0]
        labels = label_map([tmp_path / "x.hdr"], tmp_path)
        np.testing.assert_allclose(place(labels), place(tmp_path / "x.hdr"), atol=FLOAT32)
        np.testing.assert_allclose(nibabel.load(labels).affine, image.affine)

    def test_what_predict_keeps_of_an_image(self, tmp_path):
        source = nifti(tmp_path / "x.nii", PLAIN, 1, FLIPPED, 4)
        reader = Prefetcher([Job("x", (source,))], Pipeline("segmentation", ("a", "b"), 1, 3))
        grid = reader.take().grid
        reader.stop()
        assert grid is not None
        assert grid.array.size == 0
        write_labels(np.zeros(SHAPE, np.uint8), grid, tmp_path / "labels.nii")
        np.testing.assert_allclose(place(tmp_path / "labels.nii"), place(source), atol=FLOAT32)


def series(folder: Path, orientation, step, count: int = 4) -> list[Path]:
    folder.mkdir()
    start, across = np.array([10.0, 20, 30]), np.array(step, float)
    return [
        write_slice(
            folder / f"{k}.dcm",
            np.full((6, 7), k, np.int16),
            position=[round(float(x), 4) for x in start + k * across],
            orientation=[round(float(x), 6) for x in orientation],
        )
        for k in range(count)
    ]


TILT = math.radians(15)
COS, SIN = math.cos(TILT), math.sin(TILT)


class TestDicom:
    @pytest.mark.parametrize(
        ("orientation", "step"),
        [
            ((1, 0, 0, 0, 1, 0), (0, 0, 2)),
            ((1, 0, 0, 0, 1, 0), (0, 0, -2)),
            ((0, 1, 0, 0, 0, -1), (2, 0, 0)),
            ((1, 0, 0, 0, COS, SIN), (0, -2 * SIN, 2 * COS)),
            ((COS, SIN, 0, -SIN, COS, 0), (0, 0, 3)),
            ((1, 0, 0, 0, COS, -SIN), (0, 0, 2)),  # a tilted gantry: slices slide against one another
        ],
    )
    def test_as_simpleitk_stacks_the_series(self, tmp_path, orientation, step):
        files = series(tmp_path / "dicom", orientation, step)
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "dicom"))
        labels = label_map([tmp_path / "dicom"], tmp_path)
        np.testing.assert_allclose(place(labels), place([Path(n) for n in names]), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(nibabel.load(labels).affine, read_image(files).affine, rtol=1e-6, atol=1e-5)

    def test_slices_of_a_micro_ct(self, tmp_path):
        zeros, step = np.zeros((6, 7), np.int16), 0.005  # mm
        files = [
            write_slice(tmp_path / f"{k}", zeros, position=(0, 0, step * k), PixelSpacing=[step, step])
            for k in range(3)
        ]
        assert read_image(files).spacing == pytest.approx((0.005,) * 3)

    def test_frames_of_one_file(self, tmp_path):
        path = write_slice(
            tmp_path / "x.dcm", np.zeros((3, 6, 7), np.int16), position=None, **functional_groups((0.0, 2.0, 4.0))
        )
        header = nibabel.load(label_map([path], tmp_path)).header
        assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)
        np.testing.assert_allclose(header.get_qform(), read_image([path]).affine, atol=FLOAT32)


class TestItkFormats:
    @pytest.mark.parametrize("name", ["x.nrrd", "x.nhdr", "x.mha", "x.mhd"])
    @pytest.mark.parametrize("turned", [np.eye(3), TURN, TURN[:, ::-1]])
    def test_place_and_voxels(self, tmp_path, name, turned):
        image = sitk.GetImageFromArray(VOXELS.transpose(2, 1, 0))
        image.SetOrigin((-11.0, 12, 13))
        image.SetSpacing((0.5, 0.7, 2))
        image.SetDirection(np.ascontiguousarray(turned).ravel())
        sitk.WriteImage(image, str(tmp_path / name))
        found = read_image([tmp_path / name])
        np.testing.assert_array_equal(found.array[0], VOXELS)
        np.testing.assert_allclose(found.spacing, (0.5, 0.7, 2), rtol=1e-6)
        labels = label_map([tmp_path / name], tmp_path)
        np.testing.assert_allclose(place(labels), place(tmp_path / name), rtol=FLOAT32, atol=FLOAT32)
        sitk.WriteImage(image, str(tmp_path / "judge.nii"))
        np.testing.assert_allclose(found.affine, nibabel.load(tmp_path / "judge.nii").affine, atol=1e-5)

    def test_slanted_axes(self, tmp_path):
        text = (
            "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 5 6\n"
            "space directions: (2,0,0) (0,3,0) (0,1.5,4)\nendian: little\nencoding: raw\nspace origin: (5,6,7)\n\n"
        )
        (tmp_path / "x.nrrd").write_bytes(text.encode() + VOXELS.tobytes(order="F"))
        image = read_image([tmp_path / "x.nrrd"])
        np.testing.assert_array_equal(image.array[0], VOXELS)
        np.testing.assert_allclose(image.affine, np.diag([-1, -1, 1, 1]) @ SHEARED, atol=1e-6)
        assert image.notes == ()
        labels = label_map([tmp_path / "x.nrrd"], tmp_path)
        np.testing.assert_allclose(nibabel.load(labels).affine, image.affine, atol=1e-5)
        assert sitk.ReadImage(str(labels)).GetOrigin() == (5, 6, 7)  # ITK reads no shear, but it can read the file

    def test_axes_that_say_nothing(self, tmp_path):
        text = "NRRD0001\ntype: short\ndimension: 3\nsizes: 4 5 6\nspacings: 2 3 4\nendian: little\nencoding: raw\n\n"
        (tmp_path / "x.nrrd").write_bytes(text.encode() + VOXELS.tobytes(order="F"))
        image = read_image([tmp_path / "x.nrrd"])
        assert image.spacing == (2, 3, 4)
        assert "which way its axes point" in image.notes[0]
        np.testing.assert_allclose(place(label_map([tmp_path / "x.nrrd"], tmp_path)), place(tmp_path / "x.nrrd"))

    def test_micrometres(self, tmp_path):
        image = sitk.GetImageFromArray(VOXELS)
        image.SetSpacing((50, 50, 50))
        sitk.WriteImage(image, str(tmp_path / "x.nrrd"))
        text = (tmp_path / "x.nrrd").read_bytes()
        whole = text.replace(b"encoding: raw", b'space units: "um" "um" "um"\nencoding: raw')
        (tmp_path / "x.nrrd").write_bytes(whole)
        assert read_image([tmp_path / "x.nrrd"]).spacing == pytest.approx((0.05, 0.05, 0.05))
        (tmp_path / "x.nrrd").write_bytes(whole.replace(b'"um"', b'"ell"'))
        assert "unit" in read_image([tmp_path / "x.nrrd"]).notes[0]


class TestUnits:
    FIFTY = np.array([[50.0, 0, 0, 100], [0, 50, 0, 200], [0, 0, 50, 300], [0, 0, 0, 1]])

    @pytest.mark.parametrize("time", [0, 8, 16, 24, 32])
    @pytest.mark.parametrize("unit", UNITS)
    def test_spacing_and_place_are_millimetres_as_in_itk(self, tmp_path, unit, time):
        path = nifti(tmp_path / "x.nii.gz", self.FIFTY, 1, self.FIFTY, 1, unit + time)
        image, judge = read_image([path]), sitk.ReadImage(str(path))
        assert image.spacing == pytest.approx(judge.GetSpacing())
        assert image.spacing == pytest.approx((50 * UNITS[unit],) * 3)
        np.testing.assert_allclose(image.affine[:3, 3] * (-1, -1, 1), judge.GetOrigin())
        labels = label_map([path], tmp_path)
        np.testing.assert_allclose(place(labels), place(path), rtol=FLOAT32)
        np.testing.assert_allclose(read_image([labels]).affine, image.affine)
        assert (len(image.notes) == 1) == (unit == 0)

    @pytest.mark.parametrize("code", [4, 5, 6, 7])
    def test_codes_that_the_standard_does_not_know_are_said(self, tmp_path, code):
        image = read_image([nifti(tmp_path / "x.nii", self.FIFTY, 1, self.FIFTY, 1, code)])
        assert image.spacing == (50, 50, 50)
        assert "does not say in which unit" in image.notes[0]

    @pytest.mark.parametrize("step", [0.05, 0.00031, 0.00002])
    def test_a_guess_of_small_voxels(self, tmp_path, step):
        """0.02 µm to 50 µm: a spacing must not be rounded to nothing."""
        (tmp_path / "images").mkdir()
        (tmp_path / "masks").mkdir()
        for k in range(6):
            affine = np.diag([1e3 * step * (1 + k % 2), 1e3 * step, 1e3 * step, 1])
            nifti(tmp_path / "images" / f"{k}.nii", affine, 1, affine, 1, 3)
            nibabel.save(nibabel.load(tmp_path / "images" / f"{k}.nii"), tmp_path / "masks" / f"{k}.nii")
        spacing = default_pipeline(load_cohort(tmp_path)).spacing
        assert spacing is not None
        assert spacing[1] == pytest.approx(step, rel=1e-3)

    def test_the_grid_of_the_pipeline(self, tmp_path):
        path = nifti(tmp_path / "x.nii", self.FIFTY, 1, self.FIFTY, 1, 3)
        pipeline = Pipeline("segmentation", ("a", "b"), 1, 3, spacing=(0.025, 0.05, 0.1))
        assert prepare(read_image([path]), pipeline).content == (8, 5, 3)

    def test_a_mask_in_another_unit_than_its_image(self, tmp_path):
        image = read_image([nifti(tmp_path / "x.nii", self.FIFTY, 1, self.FIFTY, 1, 3)])
        small = np.diag([1e-3, 1e-3, 1e-3, 1]) @ self.FIFTY
        mask = nifti(tmp_path / "m.nii", small, 1, small, 1, 2)
        np.testing.assert_array_equal(read_mask(mask, image), VOXELS)
        with pytest.raises(GeometryError, match="elsewhere"):
            read_mask(nifti(tmp_path / "n.nii", self.FIFTY, 1, self.FIFTY, 1, 2), image)

    def test_a_cohort_says_in_how_many_cases_it_was_assumed(self, tmp_path):
        (tmp_path / "images").mkdir()
        (tmp_path / "masks").mkdir()
        for k in range(4):
            nifti(tmp_path / "images" / f"{k}.nii", PLAIN, 1, PLAIN, 1, 2 if k else 0)
            nibabel.save(nibabel.Nifti1Image((VOXELS > 20).astype(np.uint8), PLAIN), tmp_path / "masks" / f"{k}.nii")
        cohort = load_cohort(tmp_path)
        assert cohort.remarks.sentences == ()
        for _ in range(2):
            for case in cohort.cases:
                cohort.image(case)
        (sentence,) = cohort.remarks.sentences
        assert sentence.startswith("1 case: the NIfTI header does not say in which unit")


def test_a_header_without_any_form_is_said(tmp_path):
    assert "which way" in read_image([nifti(tmp_path / "x.nii", PLAIN, 0, PLAIN, 0)]).notes[0]
    assert read_image([nifti(tmp_path / "x.nii", PLAIN, 0, PLAIN, 2)]).notes == ()


class TestMasksOfOtherPrograms:
    """Image with a qform and an sform that differ; masks that another program laid on one of them."""

    @pytest.fixture
    def image(self, tmp_path):
        return read_image([nifti(tmp_path / "x.nii", PLAIN, 1, FLIPPED, 4)])

    @pytest.mark.parametrize("form", [PLAIN, FLIPPED])
    @pytest.mark.parametrize(("qcode", "scode"), [(1, 1), (1, 0), (0, 2)])
    def test_on_either_form(self, tmp_path, image, form, qcode, scode):
        mask = nifti(tmp_path / "m.nii", form, qcode, form, scode)
        np.testing.assert_array_equal(read_mask(mask, image), VOXELS)

    def test_written_by_simpleitk(self, tmp_path, image):
        source = sitk.ReadImage(str(tmp_path / "x.nii"))
        sitk.WriteImage(source, str(tmp_path / "m.nii.gz"))
        np.testing.assert_array_equal(read_mask(tmp_path / "m.nii.gz", image), VOXELS)

    def test_on_neither(self, tmp_path, image):
        with pytest.raises(GeometryError, match="elsewhere"):
            read_mask(nifti(tmp_path / "m.nii", OBLIQUE, 1, OBLIQUE, 1), image)

    def test_on_both_in_different_ways(self, tmp_path):
        mirrored = np.array([[-2.0, 0, 0, 6], [0, 3, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]])  # the grid from its other end
        image = read_image([nifti(tmp_path / "x.nii", PLAIN, 1, mirrored, 1)])
        np.testing.assert_array_equal(read_mask(tmp_path / "x.nii", image), VOXELS)  # the same header
        with pytest.raises(GeometryError, match="contradict"):
            read_mask(nifti(tmp_path / "m.nii", PLAIN, 1, PLAIN, 1), image)
