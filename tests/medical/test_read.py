import gzip

import nibabel
import numpy as np
import PIL.Image
import pytest

from microtome.errors import DataError, GeometryError, LabelError, ReadError
from microtome.medical.read import read_image, read_mask
from microtome.medical.readers import arrays
from microtome.types import Image

RNG = np.random.default_rng(0)
AFFINE = np.array([[-2.0, 0, 0, 5], [0, 3, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
VOLUME = RNG.integers(-500, 500, (5, 6, 7)).astype(np.int16)


def write_nifti(path, array, affine=AFFINE, **header):
    image = nibabel.Nifti1Image(array, affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def write_png(path, array, mode=None):
    PIL.Image.fromarray(array, mode).save(path) if mode else PIL.Image.fromarray(array).save(path)
    return path


class TestNifti:
    @pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "with.dots.nii.gz"])
    def test_keeps_integers_and_affine(self, tmp_path, name):
        image = read_image([write_nifti(tmp_path / name, VOLUME)])
        assert image.array.dtype == np.int16
        np.testing.assert_array_equal(image.array[0], VOLUME)
        np.testing.assert_allclose(image.affine, AFFINE)
        assert image.spacing == (2, 3, 4)

    def test_slope_and_intercept(self, tmp_path):
        path = tmp_path / "x.nii"
        stored = nibabel.Nifti1Image(VOLUME, AFFINE)
        stored.header.set_slope_inter(0.5, -10)
        stored.to_filename(path)
        head = bytearray(path.read_bytes())  # nibabel rescales on writing: put the plain integers there
        head[352:] = VOLUME.tobytes(order="F")
        head[112:120] = np.array([0.5, -10], np.float32).tobytes()
        path.write_bytes(bytes(head))
        image = read_image([path])
        assert image.array.dtype == np.float32
        np.testing.assert_allclose(image.array[0], VOLUME * 0.5 - 10)

    def test_fourth_axis_is_channels(self, tmp_path):
        array = RNG.random((5, 6, 7, 2)).astype(np.float32)
        image = read_image([write_nifti(tmp_path / "x.nii.gz", array)])
        np.testing.assert_array_equal(image.array, np.moveaxis(array, 3, 0))

    def test_vector_file_with_five_axes(self, tmp_path):
        array = RNG.random((5, 6, 7, 1, 2)).astype(np.float32)
        assert read_image([write_nifti(tmp_path / "x.nii.gz", array)]).array.shape == (2, 5, 6, 7)

    def test_float64_becomes_float32(self, tmp_path):
        assert read_image([write_nifti(tmp_path / "x.nii", VOLUME.astype(np.float64))]).array.dtype == np.float32

    def test_one_file_per_channel(self, tmp_path):
        paths = [write_nifti(tmp_path / f"{k}.nii", VOLUME + np.int16(k)) for k in range(3)]
        image = read_image(paths)
        np.testing.assert_array_equal(image.array, [VOLUME, VOLUME + 1, VOLUME + 2])
        np.testing.assert_allclose(image.affine, AFFINE)

    def test_channels_on_different_grids(self, tmp_path):
        other = AFFINE.copy()
        other[0, 3] += 1
        paths = [write_nifti(tmp_path / "0.nii", VOLUME), write_nifti(tmp_path / "1.nii", VOLUME, other)]
        with pytest.raises(GeometryError, match="another grid"):
            read_image(paths)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, tmp_path, bad):
        array = VOLUME.astype(np.float32)
        array[1, 2, 3] = array[0, 0, 0] = bad
        with pytest.raises(DataError, match=r"x\.nii holds 2 values that are NaN or infinite"):
            read_image([write_nifti(tmp_path / "x.nii", array)])

    def test_affine_without_inverse(self, tmp_path):
        flat = AFFINE.copy()
        flat[2] = 0
        path = write_nifti(tmp_path / "x.nii", VOLUME)
        image = nibabel.load(path)
        image.set_sform(flat, code=1)
        image.to_filename(tmp_path / "y.nii")
        with pytest.raises(GeometryError, match="affine without inverse"):
            read_image([tmp_path / "y.nii"])

    def test_complex_values(self, tmp_path):
        with pytest.raises(ReadError, match="complex64"):
            read_image([write_nifti(tmp_path / "x.nii", VOLUME.astype(np.complex64))])

    @pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
    @pytest.mark.parametrize("keep", [1, 40, 300, 352, -20])
    def test_truncated(self, tmp_path, name, keep):
        path = write_nifti(tmp_path / name, VOLUME)
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(ReadError, match=rf"{name} .*\. Copy the file again"):
            read_image([path])

    def test_damaged_in_the_middle(self, tmp_path):
        path = write_nifti(tmp_path / "x.nii.gz", RNG.random((20, 20, 20)).astype(np.float32))
        whole = bytearray(path.read_bytes())
        whole[2000:2100] = bytes(100)
        path.write_bytes(bytes(whole))
        with pytest.raises(ReadError, match="damaged"):
            read_image([path])

    def test_damage_that_only_the_checksum_shows(self, tmp_path):
        nibabel.save(nibabel.Nifti1Image(VOLUME, AFFINE), tmp_path / "x.nii")
        packed = bytearray(gzip.compress((tmp_path / "x.nii").read_bytes(), compresslevel=0))
        packed[500] ^= 1
        path = tmp_path / "x.nii.gz"
        path.write_bytes(bytes(packed))
        with pytest.raises(ReadError, match="damaged"):
            read_image([path])

    def test_second_version_of_the_format(self, tmp_path):
        for name in ("x.nii", "x.nii.gz"):
            nibabel.save(nibabel.Nifti2Image(VOLUME, AFFINE), tmp_path / name)
            np.testing.assert_array_equal(read_image([tmp_path / name]).array[0], VOLUME)

    def test_big_endian(self, tmp_path):
        header = nibabel.Nifti1Header(endianness=">")
        header.set_data_dtype(np.int16)
        nibabel.save(nibabel.Nifti1Image(VOLUME.astype(">i2"), AFFINE, header), tmp_path / "x.nii.gz")
        image = read_image([tmp_path / "x.nii.gz"])
        assert image.array.dtype == np.dtype("=i2")
        np.testing.assert_array_equal(image.array[0], VOLUME)

    def test_gzip_of_something_else(self, tmp_path):
        path = tmp_path / "x.nii.gz"
        path.write_bytes(gzip.compress(b"hello" * 200))
        with pytest.raises(ReadError, match=r"x\.nii\.gz"):
            read_image([path])

    @pytest.mark.data
    def test_real_truncated(self, data):
        with pytest.raises(ReadError, match="truncated or damaged: the file has 9,000 bytes"):
            read_image([data / "odd" / "nifti" / "truncated.nii.gz"])


class TestPicture:
    @pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif"])
    def test_gray(self, tmp_path, suffix):
        array = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
        image = read_image([write_png(tmp_path / f"x.{suffix}", array)])
        assert image.affine is None
        assert image.spacing == (1, 1)
        np.testing.assert_array_equal(image.array, array[None])

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_sixteen_bits_are_kept(self, tmp_path, suffix):
        array = RNG.integers(0, 65536, (6, 8)).astype(np.uint16)
        image = read_image([write_png(tmp_path / f"x.{suffix}", array)])
        assert image.array.dtype == np.uint16
        np.testing.assert_array_equal(image.array, array[None])

    def test_colour_and_alpha(self, tmp_path):
        array = RNG.integers(0, 256, (6, 8, 4), dtype=np.uint8)
        image = read_image([write_png(tmp_path / "x.png", array)])
        np.testing.assert_array_equal(image.array, np.moveaxis(array[..., :3], 2, 0))

    def test_palette_becomes_colour(self, tmp_path):
        array = RNG.choice([0, 90, 180], (6, 8, 3)).astype(np.uint8)
        PIL.Image.fromarray(array).convert("P", palette=PIL.Image.Palette.WEB).save(tmp_path / "x.png")
        with PIL.Image.open(tmp_path / "x.png") as stored:
            assert stored.mode == "P"
            expected = np.asarray(stored.convert("RGB"))
        np.testing.assert_array_equal(read_image([tmp_path / "x.png"]).array, np.moveaxis(expected, 2, 0))

    def test_exif_orientation_is_applied(self, tmp_path):
        exif = PIL.Image.Exif()
        exif[0x0112] = 6  # turn by 90° clockwise to see it upright
        PIL.Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / "x.jpg", exif=exif)
        assert read_image([tmp_path / "x.jpg"]).spatial == (8, 6)

    def test_one_bit_is_zero_and_one(self, tmp_path):
        array = RNG.random((6, 8)) > 0.5
        np.testing.assert_array_equal(read_image([write_png(tmp_path / "x.png", array)]).array[0], array)

    @pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "gif"])
    @pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
    def test_truncated(self, tmp_path, suffix, share):
        path = write_png(tmp_path / f"x.{suffix}", RNG.integers(0, 256, (64, 64), dtype=np.uint8))
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ReadError, match=rf"x\.{suffix}"):
            read_image([path])

    def test_several_pictures_in_one_file(self, tmp_path):
        first, second = (PIL.Image.fromarray(np.full((4, 4), k, np.uint8)) for k in (0, 200))
        first.save(tmp_path / "x.tif", save_all=True, append_images=[second])
        with pytest.raises(ReadError, match="holds 2 pictures"):
            read_image([tmp_path / "x.tif"])

    def test_content_counts_not_the_name(self, tmp_path):
        array = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
        write_png(tmp_path / "x.png", array).rename(tmp_path / "x.jpg")
        np.testing.assert_array_equal(read_image([tmp_path / "x.jpg"]).array[0], array)


class TestBadFiles:
    def test_missing(self, tmp_path):
        for name in ("x.png", "x.nii.gz", "x"):
            with pytest.raises(ReadError, match="does not exist"):
                read_image([tmp_path / name])

    def test_empty(self, tmp_path):
        (tmp_path / "x.png").touch()
        with pytest.raises(ReadError, match="is empty"):
            read_image([tmp_path / "x.png"])

    @pytest.mark.parametrize("name", ["x.png", "x.nii.gz", "x.dcm", "x.npz"])
    def test_not_what_its_name_says(self, tmp_path, name):
        (tmp_path / name).write_text("<html>404</html>" * 100)
        with pytest.raises(ReadError, match="not what its name says"):
            read_image([tmp_path / name])

    def test_unknown_kind(self, tmp_path):
        (tmp_path / "x.txt").write_text("hello")
        with pytest.raises(ReadError, match="no kind that microtome reads"):
            read_image([tmp_path / "x.txt"])

    def test_folder_without_dicom(self, tmp_path):
        with pytest.raises(ReadError, match="holds no DICOM images"):
            read_image([tmp_path])

    def test_no_files(self):
        with pytest.raises(ReadError):
            read_image([])


class TestNpz:
    @pytest.fixture
    def file(self, tmp_path):
        sets = {"train": 4, "val": 2, "test": 3}
        images = {f"{k}_images": RNG.integers(0, 256, (n, 6, 6), dtype=np.uint8) for k, n in sets.items()}
        np.savez_compressed(tmp_path / "x.npz", **images)
        return tmp_path / "x.npz", images

    def test_index_counts_through_the_splits(self, file):
        path, images = file
        for index, expected in enumerate(np.concatenate(list(images.values()))):
            np.testing.assert_array_equal(read_image([path], index).array, expected[None])

    def test_decompresses_once(self, file, monkeypatch):
        loads = []
        original = np.load
        monkeypatch.setattr(np, "load", lambda *a, **k: loads.append(1) or original(*a, **k))
        for _ in range(3):
            for index in range(4):
                read_image([file[0]], index)
        assert len(loads) == 1

    def test_callers_may_write(self, file):
        read_image([file[0]], 0).array[:] = 0
        assert read_image([file[0]], 0).array.any()

    def test_colour_and_volume(self, tmp_path):
        np.savez(tmp_path / "c.npz", test_images=np.zeros((2, 5, 6, 3), np.uint8))
        np.savez(tmp_path / "v.npz", test_images=np.zeros((2, 5, 5, 5), np.uint8))
        assert read_image([tmp_path / "c.npz"], 1).array.shape == (3, 5, 6)
        assert read_image([tmp_path / "v.npz"], 1).array.shape == (1, 5, 5, 5)

    def test_beyond_the_end(self, file):
        with pytest.raises(ReadError, match="no image number 9"):
            read_image([file[0]], 9)

    def test_without_index(self, file):
        with pytest.raises(ReadError, match="many images"):
            read_image([file[0]])

    @pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
    def test_truncated(self, file, share):
        path, _ = file
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ReadError, match="truncated"):
            read_image([path], 0)

    def test_damaged(self, file):
        path, _ = file
        whole = bytearray(path.read_bytes())
        whole[100:140] = bytes(40)
        path.write_bytes(bytes(whole))
        with pytest.raises(ReadError, match="truncated"):
            read_image([path], 0)

    def test_objects_are_refused(self, tmp_path):
        np.savez(tmp_path / "x.npz", train_images=np.array([[["a", {}]]], dtype=object))
        with pytest.raises(ReadError):
            arrays.load(tmp_path / "x.npz", "train_images")


class TestMask:
    IMAGE = Image(VOLUME[None], AFFINE)
    LABELS = RNG.integers(0, 3, VOLUME.shape).astype(np.uint8)

    def test_volume(self, tmp_path):
        mask = read_mask(write_nifti(tmp_path / "m.nii.gz", self.LABELS), self.IMAGE)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, self.LABELS)

    def test_whole_numbers_in_floats(self, tmp_path):
        mask = read_mask(write_nifti(tmp_path / "m.nii.gz", self.LABELS.astype(np.float32)), self.IMAGE)
        assert mask.dtype == np.uint8

    @pytest.mark.parametrize(("value", "message"), [(0.5, "not whole numbers"), (-1, "negative")])
    def test_values_that_are_no_labels(self, tmp_path, value, message):
        labels = self.LABELS.astype(np.float32)
        labels[0, 0, 0] = value
        with pytest.raises(LabelError, match=message):
            read_mask(write_nifti(tmp_path / "m.nii", labels), self.IMAGE)

    def test_empty_mask_is_no_error(self, tmp_path):
        assert not read_mask(write_nifti(tmp_path / "m.nii", self.LABELS * 0), self.IMAGE).any()

    def test_other_shape(self, tmp_path):
        with pytest.raises(GeometryError, match="shape 5×6×6, its image 5×6×7"):
            read_mask(write_nifti(tmp_path / "m.nii", self.LABELS[..., :6]), self.IMAGE)

    @pytest.mark.parametrize(("axis", "shift"), [(0, 1.0), (2, 2.0)])
    def test_other_affine(self, tmp_path, axis, shift):
        affine = AFFINE.copy()
        affine[axis, 3] += shift  # half a voxel
        with pytest.raises(GeometryError, match=rf"differ by {shift:.2f} mm"):
            read_mask(write_nifti(tmp_path / "m.nii", self.LABELS, affine), self.IMAGE)

    def test_other_spacing(self, tmp_path):
        with pytest.raises(GeometryError, match="lies elsewhere"):
            read_mask(write_nifti(tmp_path / "m.nii", self.LABELS, AFFINE @ np.diag([1, 1, 1.1, 1])), self.IMAGE)

    def test_rounded_affine_is_the_same(self, tmp_path):
        mask = read_mask(write_nifti(tmp_path / "m.nii", self.LABELS, AFFINE + 1e-4), self.IMAGE)
        np.testing.assert_array_equal(mask, self.LABELS)

    @pytest.mark.parametrize("codes", ["RAS", "LPS", "SLP", "AIR"])
    def test_flipped_and_swapped_axes_are_turned(self, tmp_path, codes):
        stored = nibabel.Nifti1Image(self.LABELS, AFFINE)
        turn = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(AFFINE), nibabel.orientations.axcodes2ornt(codes)
        )
        nibabel.save(stored.as_reoriented(turn), tmp_path / "m.nii")
        np.testing.assert_array_equal(read_mask(tmp_path / "m.nii", self.IMAGE), self.LABELS)

    def test_several_channels(self, tmp_path):
        with pytest.raises(ReadError, match="2 channels"):
            read_mask(write_nifti(tmp_path / "m.nii", np.stack([self.LABELS] * 2, axis=-1)), self.IMAGE)

    def test_missing(self, tmp_path):
        with pytest.raises(ReadError, match="does not exist"):
            read_mask(tmp_path / "m.nii", self.IMAGE)


class TestPictureMask:
    INSIDE = RNG.random((6, 8)) > 0.5
    IMAGE = Image(np.zeros((3, 6, 8), np.uint8))

    @pytest.mark.parametrize("suffix", ["png", "gif", "bmp"])
    @pytest.mark.parametrize("white", [1, 255])
    def test_two_values(self, tmp_path, suffix, white):
        path = write_png(tmp_path / f"m.{suffix}", (self.INSIDE * white).astype(np.uint8))
        np.testing.assert_array_equal(read_mask(path, self.IMAGE), self.INSIDE)

    def test_one_bit(self, tmp_path):
        np.testing.assert_array_equal(read_mask(write_png(tmp_path / "m.png", self.INSIDE), self.IMAGE), self.INSIDE)

    def test_sixteen_bits(self, tmp_path):
        path = write_png(tmp_path / "m.png", (self.INSIDE * 65535).astype(np.uint16))
        np.testing.assert_array_equal(read_mask(path, self.IMAGE), self.INSIDE)

    def test_several_labels_are_kept(self, tmp_path):
        labels = RNG.integers(0, 4, (6, 8), dtype=np.uint8)
        np.testing.assert_array_equal(read_mask(write_png(tmp_path / "m.png", labels), self.IMAGE), labels)

    def test_indices_of_a_colour_palette(self, tmp_path):
        labels = RNG.integers(0, 3, (6, 8), dtype=np.uint8)
        picture = PIL.Image.fromarray(labels)
        picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        picture.save(tmp_path / "m.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "m.png", self.IMAGE), labels)

    def test_gray_stored_as_colour(self, tmp_path):
        path = write_png(tmp_path / "m.png", np.repeat(self.INSIDE[..., None] * np.uint8(255), 3, axis=2))
        np.testing.assert_array_equal(read_mask(path, self.IMAGE), self.INSIDE)

    def test_colour_is_no_mask(self, tmp_path):
        path = write_png(tmp_path / "m.png", RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        with pytest.raises(ReadError, match="colour picture"):
            read_mask(path, self.IMAGE)

    def test_empty_and_full(self, tmp_path):
        assert not read_mask(write_png(tmp_path / "e.png", np.zeros((6, 8), np.uint8)), self.IMAGE).any()
        assert (read_mask(write_png(tmp_path / "f.png", np.full((6, 8), 255, np.uint8)), self.IMAGE) == 1).all()

    def test_other_shape(self, tmp_path):
        with pytest.raises(GeometryError, match="shape 8×6, its image 6×8"):
            read_mask(write_png(tmp_path / "m.png", self.INSIDE.T.copy()), self.IMAGE)

    @pytest.mark.data
    def test_real_gif(self, data):
        image = read_image([data / "retina" / "Image_01L.jpg"])
        mask = read_mask(data / "retina" / "fov_masks" / "Image_01L.gif", image)
        assert set(np.unique(mask)) == {0, 1}
        assert 0.4 < mask.mean() < 0.8  # the round field of view
        assert image.array[:, mask == 1].mean() > 3 * image.array[:, mask == 0].mean()
