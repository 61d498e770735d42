from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pytest

from microtome.errors import OutputError
from microtome.medical.read import read_image, read_mask
from microtome.medical.write import write_labels
from microtome.types import Image

AFFINE = np.array([[0, -1.5, 0.1, 3], [0.9, 0, 0, 1], [0, 0.1, 1.1, 2], [0, 0, 0, 1.0]])
ROUNDING = 1e-6  # headers hold float32


def volume(shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape).astype(dtype)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(35, 51, 37), (1, 1, 1), (16, 200, 3)])
def test_volumes_come_back_as_they_were(suffix: str, dtype: type, shape: tuple[int, ...], tmp_path: Path):
    labels, path = volume(shape, dtype), tmp_path / f"labels{suffix}"
    write_labels(labels, Image(np.empty((1, *shape), np.int16), AFFINE), path)
    image = nibabel.load(path)
    assert np.array_equal(np.asarray(image.dataobj), labels)
    assert image.get_data_dtype() == dtype
    np.testing.assert_allclose(image.affine, AFFINE, rtol=0, atol=ROUNDING)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert np.array_equal(read_mask(path, Image(labels[None], AFFINE)), labels)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_qform_is_the_affine_where_it_can_be(tmp_path: Path):
    affine = np.array([[-2.0, 0, 0, 5], [0, 3.0, 0, 6], [0, 0, 1.5, 7], [0, 0, 0, 1]])
    write_labels(volume((3, 4, 5)), Image(np.empty((1, 3, 4, 5)), affine), tmp_path / "a.nii")
    np.testing.assert_allclose(nibabel.load(tmp_path / "a.nii").get_qform(), affine, rtol=0, atol=ROUNDING)


def test_labels_that_are_not_contiguous(tmp_path: Path):
    labels = volume((20, 30, 40))[::-1, 3:, ::2]
    write_labels(labels, Image(np.empty((1, 0, 0, 0)), AFFINE), tmp_path / "a.nii.gz")
    assert np.array_equal(np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj), labels)


def test_a_volume_without_affine_says_so(tmp_path: Path):
    write_labels(volume((3, 4, 5)), Image(np.empty((1, 3, 4, 5))), tmp_path / "a.nii")
    header = nibabel.load(tmp_path / "a.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (0, 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pictures_are_png(dtype: type, tmp_path: Path):
    labels = volume((7, 9), dtype)
    write_labels(labels, Image(np.empty((3, 7, 9))), tmp_path / "a.png")
    assert np.array_equal(np.asarray(PIL.Image.open(tmp_path / "a.png")), labels)
    assert read_image([tmp_path / "a.png"]).spatial == (7, 9)


def test_the_same_labels_are_the_same_bytes(tmp_path: Path):
    labels = volume((9, 9, 9))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_labels(labels, Image(labels[None], AFFINE), tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.nii.gz").read_bytes())[344:348] == b"n+1\0"


@pytest.mark.parametrize(("shape", "name"), [((4, 4, 4), "a.png"), ((4, 4), "a.nii.gz"), ((4, 4, 4), "a.mha")])
def test_a_suffix_that_does_not_fit_is_refused(shape: tuple[int, ...], name: str, tmp_path: Path):
    with pytest.raises(OutputError, match=r"label map of \d axes is no"):
        write_labels(np.zeros(shape, np.uint8), Image(np.empty((1, *shape))), tmp_path / name)


def test_an_axis_too_long_for_nifti_is_refused(tmp_path: Path):
    with pytest.raises(OutputError, match="does not fit"):
        write_labels(np.zeros((40000, 1, 1), np.uint8), Image(np.empty((1, 1, 1, 1))), tmp_path / "a.nii")


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "a.png"
    write_labels(np.ones((4, 4), np.uint8), Image(np.empty((1, 4, 4))), path)
    before = path.read_bytes()
    with pytest.raises((TypeError, OSError)):
        write_labels(np.zeros((4, 4), np.complex64), Image(np.empty((1, 4, 4))), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
