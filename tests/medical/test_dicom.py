import shutil

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_files import functional_groups, write_series, write_slice
from pydicom.pixels.decoders.base import get_decoder

from microtome.errors import DataError, GeometryError, MicrotomeError, MissingExtraError, ReadError
from microtome.medical.read import read_image, read_mask
from microtome.medical.readers import decoders
from microtome.medical.readers.elements import load, split_series

RNG = np.random.default_rng(0)
VOLUME = RNG.integers(-1000, 1000, (5, 6, 4)).astype(np.int16)  # slices, rows, columns


def test_series_is_sorted_and_placed_by_position(tmp_path):
    image = read_image(write_series(tmp_path, VOLUME))
    assert image.array.dtype == np.int16
    np.testing.assert_array_equal(image.array[0], VOLUME.transpose(2, 1, 0))
    # Column 3, row 5, slice 4 in LPS: 10 + 3·0.25, 20 + 5·0.5, 8 → RAS turns the signs of x and y.
    np.testing.assert_allclose(image.affine @ [3, 5, 4, 1], [-10.75, -22.5, 8, 1])
    assert image.spacing == pytest.approx((0.25, 0.5, 2.0))


def test_order_of_paths_does_not_matter_and_a_folder_will_do(tmp_path):
    paths = write_series(tmp_path, VOLUME)
    (tmp_path / "notes.txt").write_text("not DICOM")
    for given in (paths[::-1], [tmp_path]):
        image = read_image(given)
        np.testing.assert_array_equal(image.array[0], VOLUME.transpose(2, 1, 0))


def test_sagittal_slices_run_along_their_normal(tmp_path):
    orientation = (0, 1, 0, 0, 0, -1)  # rows to the back, columns down: normal = −x in LPS
    for k, pixels in enumerate(VOLUME):
        write_slice(tmp_path / str(k), pixels, position=(3.0 * k, 0, 0), orientation=orientation)
    image = read_image([tmp_path])
    assert nibabel.aff2axcodes(image.affine) == ("P", "I", "R")
    np.testing.assert_array_equal(image.array[0], VOLUME[::-1].transpose(2, 1, 0))
    np.testing.assert_allclose(image.affine[:3, 3], [-12, 0, 0])


def test_rescale_gives_hounsfield_units(tmp_path):
    image = read_image(write_series(tmp_path, VOLUME, RescaleSlope="2", RescaleIntercept="-1024"))
    assert image.array.dtype == np.float32
    np.testing.assert_array_equal(image.array[0], 2.0 * VOLUME.transpose(2, 1, 0) - 1024)


@pytest.mark.parametrize(
    ("bits", "stored", "bright"),
    [
        (12, np.array([[0, 4095], [100, 1]], np.uint16), [[4095, 0], [3995, 4094]]),
        (16, np.array([[-32768, 32767], [0, 1]], np.int16), [[32767, -32768], [-1, -2]]),
    ],
)
def test_monochrome1_is_inverted(tmp_path, bits, stored, bright):
    path = write_slice(
        tmp_path / "x",
        stored,
        position=None,
        PhotometricInterpretation="MONOCHROME1",
        BitsStored=bits,
        HighBit=bits - 1,
    )
    image = read_image([path])
    assert image.affine is None
    np.testing.assert_array_equal(image.array[0], bright)


def test_one_file_is_a_picture(tmp_path):
    image = read_image([write_slice(tmp_path / "x", VOLUME[0])])
    assert image.affine is None
    np.testing.assert_array_equal(image.array[0], VOLUME[0])  # (H, W): rows first


def test_colour_is_rgb_channels_first(tmp_path):
    pixels = RNG.integers(0, 256, (6, 4, 3), dtype=np.uint8)
    image = read_image([write_slice(tmp_path / "x", pixels, position=None)])
    np.testing.assert_array_equal(image.array, pixels.transpose(2, 0, 1))


def test_missing_slice_names_the_gap_and_the_place_but_no_patient(tmp_path):
    with pytest.raises(
        GeometryError, match=r"misses a slice: there are 4\.00 mm between slices 2 and 3 of 5"
    ) as caught:
        read_image(write_series(tmp_path, VOLUME, heights=[0, 2, 6, 8, 10]))
    assert "Secret" not in str(caught.value)
    assert "2.00 and 6.00 mm" in caught.value.problem


def test_missing_slice_of_three(tmp_path):
    with pytest.raises(GeometryError, match=r"4\.00 mm between slices 1 and 2 of 3"):
        read_image(write_series(tmp_path, VOLUME[:3], heights=[0, 4, 6]))


def test_uneven_spacing(tmp_path):
    with pytest.raises(GeometryError, match="unevenly spaced"):
        read_image(write_series(tmp_path, VOLUME, heights=[0, 2, 4, 5, 7]))


def test_rounded_positions_are_even_enough(tmp_path):
    image = read_image(write_series(tmp_path, VOLUME, heights=[0, 0.333, 0.667, 1.0, 1.333]))
    assert image.spacing[2] == pytest.approx(0.333, abs=1e-3)


def test_two_slices_at_one_place(tmp_path):
    with pytest.raises(GeometryError, match=r"two slices at one place, 2\.00 mm"):
        read_image(write_series(tmp_path, VOLUME, heights=[0, 2, 2, 4, 6]))


def test_slices_shifted_sideways(tmp_path):
    paths = write_series(tmp_path, VOLUME)
    write_slice(paths[2], VOLUME[2], position=(13.0, 20.0, 4.0))
    with pytest.raises(GeometryError, match="shifted sideways"):
        read_image(paths)


def test_tilted_gantry_is_a_slanted_stack(tmp_path):
    paths = [write_slice(tmp_path / str(k), VOLUME[k], position=(0, 0.5 * k, 2.0 * k)) for k in range(5)]
    np.testing.assert_allclose(read_image(paths).affine[:3, 2], [0, -0.5, 2])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"orientation": (0, 1, 0, 0, 0, -1)}, "different directions"),
        ({"PixelSpacing": [1.0, 1.0]}, "different pixel sizes"),
        ({"position": None}, "does not say where the slice lies"),
    ],
)
def test_slices_that_do_not_belong_together(tmp_path, other, message):
    paths = write_series(tmp_path, VOLUME)
    write_slice(paths[1], VOLUME[1], **({"position": (10, 20, 2)} | other))
    with pytest.raises(GeometryError, match=message):
        read_image(paths)


def test_slices_of_different_size(tmp_path):
    paths = write_series(tmp_path, VOLUME)
    write_slice(paths[1], VOLUME[1, :4], position=(10, 20, 2))
    with pytest.raises(GeometryError, match="different size"):
        read_image(paths)


def test_two_series_in_one_folder_are_split_by_uid(tmp_path):
    one = write_series(tmp_path / "a", VOLUME, SeriesInstanceUID="1.1")
    two = write_series(tmp_path / "b", VOLUME[:3], SeriesInstanceUID="1.2")
    series, others = split_series([*one, *two])
    assert sorted(map(len, series)) == [3, 5]
    assert others == []


@pytest.mark.parametrize(
    "difference",
    [{"StudyInstanceUID": "1.9"}, {"FrameOfReferenceUID": "1.9"}, {"orientation": (0, 1, 0, 0, 0, -1)}],
)
def test_without_uid_study_frame_and_direction_tell_series_apart(tmp_path, difference):
    one = write_series(tmp_path / "a", VOLUME, SeriesInstanceUID="")
    two = write_series(tmp_path / "b", VOLUME, **({"SeriesInstanceUID": ""} | difference))
    assert len(split_series([*one, *two])[0]) == 2
    assert len(split_series(one)[0]) == 1


def test_folder_with_two_series_is_refused(tmp_path):
    write_series(tmp_path, VOLUME)
    for k in range(3):
        write_slice(tmp_path / f"other{k}", VOLUME[k], position=(0, 0, k), SeriesInstanceUID="1.9")
    with pytest.raises(DataError, match="holds 2 series"):
        read_image([tmp_path])


def test_enhanced_multi_frame_is_a_volume(tmp_path):
    path = write_slice(tmp_path / "x", VOLUME, position=None, **functional_groups([8, 6, 4, 2, 0]))
    image = read_image([path])
    np.testing.assert_array_equal(image.array[0], 2.0 * VOLUME[::-1].transpose(2, 1, 0) - 1)
    assert image.spacing == pytest.approx((0.25, 0.5, 2.0))


def test_frames_without_place_are_a_film(tmp_path):
    path = write_slice(tmp_path / "x", VOLUME, position=None, NumberOfFrames=5)
    with pytest.raises(ReadError, match="film of 5 frames"):
        read_image([path])


def test_missing_decoder_names_the_extra(tmp_path, monkeypatch):
    def refuse(_):
        raise RuntimeError("Unable to decompress 'JPEG 2000' pixel data because all plugins are missing dependencies:")

    path = write_slice(tmp_path / "x", VOLUME[0])
    monkeypatch.setattr(pydicom.Dataset, "pixel_array", property(refuse))
    with pytest.raises(MissingExtraError, match=r"microtome\[jpeg\]"):
        read_image([path])


@pytest.mark.data
@pytest.mark.parametrize("decoder", ["gdcm", "pylibjpeg"])
@pytest.mark.parametrize("name", ["jp2klossless", "jpeg_ls_lossless"])
def test_any_decoder_will_do(data, monkeypatch, decoder, name):
    pytest.importorskip({"gdcm": "gdcm", "pylibjpeg": "openjpeg"}[decoder])
    if (decoder, name) == ("pylibjpeg", "jpeg_ls_lossless"):
        pytest.importorskip("libjpeg")
    monkeypatch.setattr(decoders, "DECODERS", (decoder,))
    folder = data / "odd" / "dicom"
    plain, packed = (read_image([folder / f"MR_small{end}.dcm"]) for end in ("", f"_{name}"))
    np.testing.assert_array_equal(packed.array, plain.array)


def test_gdcm_is_the_last_resort(tmp_path, monkeypatch):
    dataset = load(write_slice(tmp_path / "x", VOLUME[0]))
    assert decoders.plugin_of(dataset) == ""
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    monkeypatch.setattr(type(get_decoder(pydicom.uid.JPEG2000Lossless)), "available_plugins", ("gdcm", "pylibjpeg"))
    assert decoders.plugin_of(dataset) == "pylibjpeg"


@pytest.mark.parametrize("keep", [0, 100, 200, 400, -10])
def test_truncated(tmp_path, keep):
    path = write_slice(tmp_path / "x.dcm", VOLUME[0])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ReadError, match=r"x\.dcm"):
        read_image([path])


def test_without_preamble_and_meta_header(tmp_path):
    path = write_slice(tmp_path / "x", VOLUME[0])
    whole = path.read_bytes()
    length = int.from_bytes(whole[140:144], "little")
    path.write_bytes(whole[144 + length :])
    np.testing.assert_array_equal(read_image([path]).array[0], VOLUME[0])


@pytest.mark.data
def test_every_odd_file_is_an_image_or_a_clear_error(data):
    for path in sorted((data / "odd").rglob("*.*")):
        found = _image_or_error(path)
        if isinstance(found, MicrotomeError):
            assert path.name in found.problem
            assert found.hint
        else:
            assert found.array.ndim in (3, 4)
            assert np.isfinite(found.array).all()


def _image_or_error(path):
    try:
        return read_image([path])
    except MicrotomeError as error:
        return error


@pytest.mark.data
@pytest.mark.parametrize("name", ["bigendian", "implicit", "RLE", "jp2klossless", "jpeg_ls_lossless", "padded"])
def test_one_image_in_many_encodings(data, name):
    folder = data / "odd" / "dicom"
    plain = read_image([folder / "MR_small.dcm"])
    same = read_image([folder / f"MR_small_{name}.dcm"])
    assert same.array.dtype == plain.array.dtype
    np.testing.assert_array_equal(same.array, plain.array)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rtplan", "holds no image but RT Plan"),
        ("rtstruct", "holds no image"),
        ("waveform_ecg", "holds no image"),
        ("liver_1frame", "Segmentation"),
        ("MR_truncated", "is truncated"),
        ("badVR", "broken DICOM element NumberOfFrames"),
        ("examples_ybr_color", "film of 30 frames"),
        ("no_meta", "not what its name says"),
    ],
)
def test_odd_files_say_what_is_wrong(data, name, message):
    with pytest.raises(ReadError, match=message):
        read_image([data / "odd" / "dicom" / f"{name}.dcm"])


@pytest.mark.data
def test_jpeg_of_twelve_bits(data):
    """pydicom's own tests give these values, as libjpeg decodes them."""
    array = read_image([data / "odd" / "dicom" / "JPEG-lossy.dcm"]).array[0]
    assert (array[420, 140], array[230, 120]) == (244, 95)


@pytest.mark.data
def test_ct_agrees_with_its_labels_in_the_world(data):
    """The labels were made by another program: only right orientation puts organs where their density is."""
    image = read_image([data / "dicom" / "ct_abdomen"])
    stored = nibabel.load(data / "dicom" / "ct_abdomen_labels.nii.gz")
    labels = read_mask(data / "dicom" / "ct_abdomen_labels.nii.gz", image)
    assert image.spacing == pytest.approx((0.9765625, 0.9765625, 2.0))
    voxel = np.argwhere(labels == 1)[0]
    there = np.linalg.inv(stored.affine) @ image.affine @ [*voxel, 1]
    assert np.asarray(stored.dataobj)[tuple(np.rint(there[:3]).astype(int))] == 1
    density = {label: float(image.array[0][labels == label].mean()) for label in (0, 1, 5)}
    assert density[0] < -500  # mostly air
    assert 40 < density[1] < 150  # spleen and liver with contrast, HU
    assert 40 < density[5] < 150


@pytest.mark.data
def test_flipped_labels_would_be_noticed(data):
    image = read_image([data / "dicom" / "ct_abdomen"])
    labels = np.asarray(nibabel.load(data / "dicom" / "ct_abdomen_labels.nii.gz").dataobj)
    assert image.array[0][labels == 1].mean() < 0  # the stored order without its affine misses the organ


@pytest.mark.data
def test_mr_series_is_signed_16_bit(data):
    image = read_image([data / "dicom" / "mr_hippocampus"])
    assert image.array.shape == (1, 34, 50, 40)
    assert image.array.dtype == np.int16
    assert image.spacing == pytest.approx((1, 1, 1))


@pytest.mark.data
def test_real_series_with_a_missing_slice(data, tmp_path):
    for path in sorted((data / "dicom" / "ct_abdomen").iterdir()):
        shutil.copy(path, tmp_path)
    sorted(tmp_path.iterdir())[8].unlink()
    with pytest.raises(GeometryError, match=r"4\.00 mm"):
        read_image([tmp_path])


@pytest.mark.data
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_jpeg2000(data, tmp_path, share):
    whole = next((data / "dicom" / "ct_abdomen").iterdir()).read_bytes()
    path = tmp_path / "slice"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ReadError, match="slice"):
        read_image([path])
