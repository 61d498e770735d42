"""Pixel values that decoders narrow, swap or stretch; padding of DICOM files. The judges: SimpleITK, Pillow, numpy."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.dataset import Dataset
from tiff_files import write_jpeg, write_tiff

from microtome.errors import DataError, LabelError, MissingExtraError, ReadError
from microtome.medical.read import read_image, read_mask
from microtome.medical.readers import apart, apart_program

sys.path.append(str(Path(__file__).parents[1] / "medical"))
from dicom_files import functional_groups, write_series, write_slice

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 65536, (6, 9, 4)).astype(np.uint16)
GRAY = COLOURS[..., 0]
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def read(path: Path) -> np.ndarray:
    """(H, W) or (H, W, C)."""
    array = read_image([path]).array
    return array[0] if array.shape[0] == 1 else np.moveaxis(array, 0, 2)


def assert_same(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def filtered(array: np.ndarray) -> bytes:
    """The rows of a picture of 16 bits as PNG has them, each behind one of the five filters in turn."""
    rows, _, channels = array.shape
    width = 2 * channels
    plain = array.astype(">u2").reshape(rows, -1).view(np.uint8).astype(int)
    text = b""
    for row in range(rows):
        up = plain[row - 1] if row else np.zeros_like(plain[0])
        left, corner = (np.concatenate([np.zeros(width, int), line[:-width]]) for line in (plain[row], up))
        guess = left + up - corner
        nearest = np.argmin([abs(guess - left), abs(guess - up), abs(guess - corner)], axis=0)
        paeth = np.choose(nearest, [left, up, corner])
        predicted = [0, left, up, (left + up) // 2, paeth][row % 5]
        text += bytes([row % 5]) + ((plain[row] - predicted) % 256).astype(np.uint8).tobytes()
    return text


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))


def write_png(
    path: Path, array: np.ndarray, colour_type: int, *, orientation: int | None = None, interlaced: bool = False
) -> Path:
    """16 bits."""
    rows, columns, _ = array.shape
    head = struct.pack(">LLBBBBB", columns, rows, 16, colour_type, 0, 0, interlaced)
    passes = [array[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [array]
    text = b"".join(filtered(np.ascontiguousarray(one)) for one in passes if one.size)
    exif = PIL.Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    more = chunk(b"eXIf", exif.tobytes()[6:]) if orientation else b""
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", zlib.compress(text)) + chunk(b"IEND", b"")
    )
    return path


class TestSixteenBitPng:
    @pytest.mark.parametrize(("kind", "channels", "kept"), [(2, 3, 3), (6, 4, 3), (4, 2, 1), (0, 1, 1)])
    def test_no_bit_is_lost(self, tmp_path, kind, channels, kept):
        path = write_png(tmp_path / "x.png", COLOURS[..., :channels], kind)
        assert_same(read(path), COLOURS[..., 0] if kept == 1 else COLOURS[..., :3])
        if kind != 4:  # SimpleITK has no gray with alpha
            judge = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).reshape(6, 9, -1)
            np.testing.assert_array_equal(judge[..., :kept], COLOURS[..., :kept])

    def test_the_number_of_the_report(self, tmp_path):
        image = sitk.GetImageFromArray(np.full((4, 4, 3), 28004, np.uint16), isVector=True)
        sitk.WriteImage(image, str(tmp_path / "x.png"))
        assert (read(tmp_path / "x.png") == 28004).all()

    @pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4), (4, 2)])
    def test_interlaced(self, tmp_path, kind, channels):
        array = COLOURS[..., :channels]
        path = write_png(tmp_path / "x.png", array, kind, interlaced=True)
        assert_same(read(path), array[..., 0] if kind == 4 else array[..., :3])

    @pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2)])
    def test_turned(self, tmp_path, kind, channels):
        array = COLOURS[..., :channels]
        path = write_png(tmp_path / "x.png", array, kind, orientation=6)
        turned = np.rot90(array, -1)
        assert_same(read(path), turned if kind == 2 else turned[..., 0])

    def test_a_mask_stored_as_colour(self, tmp_path):
        labels = RNG.integers(0, 700, (6, 9)).astype(np.uint16)
        path = write_png(tmp_path / "x.png", np.stack([labels] * 3, axis=-1), 2)
        np.testing.assert_array_equal(read_mask(path, None), labels)

    def test_truncated(self, tmp_path):
        path = write_png(tmp_path / "x.png", RNG.integers(0, 65536, (64, 64, 3)).astype(np.uint16), 2)
        path.write_bytes(path.read_bytes()[:9000])
        with pytest.raises(ReadError, match="truncated"):
            read(path)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
class TestTiff:
    @pytest.mark.parametrize("extra", [None, 0, 2])
    def test_colours_of_sixteen_bits(self, tmp_path, order, packed, extra):
        array = COLOURS if extra is not None else COLOURS[..., :3]
        path = write_tiff(tmp_path / "x.tif", array, photometric=2, order=order, packed=packed, extra=extra)
        assert_same(read(path), COLOURS[..., :3])

    def test_alpha_that_was_multiplied(self, tmp_path, order, packed):
        alpha = np.array([[65535, 32768, 100, 0]], np.uint16)
        colour = np.array([[[60000, 1, 2], [28004, 3, 300], [99, 50, 1], [0, 0, 0]]], np.uint16)
        array = np.concatenate([colour, alpha[..., None]], axis=-1)
        path = write_tiff(tmp_path / "x.tif", array, photometric=2, order=order, packed=packed, extra=1)
        with np.errstate(invalid="ignore"):
            wanted = np.nan_to_num(np.rint(colour * 65535.0 / alpha[..., None])).astype(np.uint16)
        assert_same(read(path), wanted)

    def test_separate_planes(self, tmp_path, order, packed):
        array = COLOURS[..., :3]
        path = write_tiff(tmp_path / "x.tif", array, photometric=2, order=order, packed=packed, planar=True)
        if packed:
            with pytest.raises(ReadError, match="separate planes"):
                read(path)
        else:
            assert_same(read(path), array)

    def test_inks_of_sixteen_bits(self, tmp_path, order, packed):
        path = write_tiff(tmp_path / "x.tif", COLOURS, photometric=5, order=order, packed=packed)
        ink = COLOURS / 65535
        assert_same(read(path), np.rint(65535 * (1 - ink[..., :3]) * (1 - ink[..., 3:])).astype(np.uint16))

    @pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "i4", "f4"])
    def test_gray_keeps_type_and_sign(self, tmp_path, order, packed, kind):
        values = np.array([[0, 1, 100, 127], [-1, -100, -128, 5]]) if kind[0] != "u" else np.array([[0, 1, 200, 255]])
        array = (values * (250 if kind[1] != "1" else 1)).astype(kind)
        assert_same(read(write_tiff(tmp_path / "x.tif", array, order=order, packed=packed)), array)

    def test_signed_values_that_are_all_positive(self, tmp_path, order, packed):
        """The type must not depend on what a picture holds: a network's input is scaled by it."""
        array = np.array([[0, 1, 30000]], np.int16)
        assert_same(read(write_tiff(tmp_path / "x.tif", array, order=order, packed=packed)), array)

    def test_a_palette_of_sixteen_bits(self, tmp_path, order, packed):
        palette = RNG.integers(0, 65536, (3, 256))
        indices = RNG.integers(0, 256, (6, 9)).astype(np.uint8)
        path = write_tiff(
            tmp_path / "x.tif", indices, photometric=3, order=order, packed=packed, palette=palette.ravel().tolist()
        )
        assert_same(read(path), palette.T[indices].astype(np.uint16))
        np.testing.assert_array_equal(read_mask(path, None), indices)

    @pytest.mark.parametrize("factor", [1, 256, 257])
    def test_a_palette_that_fits_eight_bits(self, tmp_path, order, packed, factor):
        palette = RNG.integers(0, 256, (3, 256))
        indices = RNG.integers(0, 256, (6, 9)).astype(np.uint8)
        path = write_tiff(
            tmp_path / "x.tif",
            indices,
            photometric=3,
            order=order,
            packed=packed,
            palette=(palette * factor).ravel().tolist(),
        )
        assert_same(read(path), palette.T[indices].astype(np.uint8))


TURNS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("packed", [None, "tiff_adobe_deflate"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_tiff_with_an_orientation(tmp_path, orientation, packed, kind):
    exif, array = PIL.Image.Exif(), (GRAY // 300).astype(kind)
    exif[0x0112] = orientation
    PIL.Image.fromarray(array).save(tmp_path / "x.tif", exif=exif, compression=packed)
    assert_same(read(tmp_path / "x.tif"), TURNS[orientation](array))


class TestFewerBits:
    def test_unsigned_of_32_bits(self, tmp_path):
        array = np.array([[0, 1, 3_000_000_000, 65535]], np.uint32)
        assert_same(read(write_tiff(tmp_path / "x.tif", array)), array)

    def test_white_that_is_zero(self, tmp_path):
        for array, top in ((GRAY, 65535), ((GRAY >> 8).astype(np.uint8), 255)):
            assert_same(read(write_tiff(tmp_path / "x.tif", array, photometric=0)), top - array)

    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_labels_in_few_bits(self, tmp_path, bits):
        labels = RNG.integers(0, 1 << bits, (4, 8)).astype(np.uint8)
        packed = np.packbits(((labels[..., None] >> np.arange(bits)[::-1]) & 1).reshape(4, -1).astype(np.uint8), axis=1)
        rows = b"".join(b"\0" + row.tobytes() for row in packed)
        (tmp_path / "x.png").write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">LLBBBBB", 8, 4, bits, 0, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b"")
        )
        np.testing.assert_array_equal(read_mask(tmp_path / "x.png", None), labels)
        assert_same(read(tmp_path / "x.png"), labels * {1: 1, 2: 85, 4: 17}[bits])

    def test_gray_with_alpha_and_inks_of_eight_bits(self, tmp_path):
        pair = RNG.integers(0, 256, (6, 9, 2), dtype=np.uint8)
        picture = PIL.Image.merge("LA", [PIL.Image.fromarray(np.ascontiguousarray(pair[..., k])) for k in range(2)])
        picture.save(tmp_path / "x.png")
        assert_same(read(tmp_path / "x.png"), pair[..., 0])
        ink = PIL.Image.fromarray(RNG.integers(0, 256, (6, 9, 4), dtype=np.uint8), None).convert("CMYK")
        ink.save(tmp_path / "y.tif")
        assert_same(read(tmp_path / "y.tif"), np.asarray(ink.convert("RGB")))


class TestJpeg:
    BLOCKS = np.array([[0, 1, 4095], [2048, 17, 3000]])

    def test_twelve_bits(self, tmp_path):
        pytest.importorskip("gdcm")
        path = write_jpeg(tmp_path / "x.jpg", self.BLOCKS)
        assert_same(read(path), np.kron(self.BLOCKS, np.ones((8, 8))).astype(np.uint16))

    def test_eight_bits_are_left_to_pillow(self, tmp_path):
        blocks = self.BLOCKS // 16
        assert_same(
            read(write_jpeg(tmp_path / "x.jpg", blocks, bits=8)), np.kron(blocks, np.ones((8, 8))).astype(np.uint8)
        )

    def test_without_the_extra(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "gdcm", None)
        with pytest.raises(MissingExtraError, match=r"JPEG of 12 bits.*microtome\[jpeg\]"):
            read(write_jpeg(tmp_path / "x.jpg", self.BLOCKS))

    @pytest.mark.parametrize(
        ("change", "kind"),
        [({"process": 0xC2}, "progressive"), ({"colours": 3}, "3 colours"), ({"bits": 14}, "14 bits")],
    )
    def test_what_nothing_decodes_is_named(self, tmp_path, change, kind):
        with pytest.raises(ReadError, match=rf"{kind}.*Save it as PNG or TIFF"):
            read(write_jpeg(tmp_path / "x.jpg", self.BLOCKS, **change))

    def test_a_decoder_that_ends_its_process(self, tmp_path, monkeypatch):
        pytest.importorskip("gdcm")
        (tmp_path / "child.py").write_text("import os, sys\nsys.stdin.readline()\nos.abort()\n")
        monkeypatch.setattr(apart_program, "__file__", str(tmp_path / "child.py"))
        path = write_jpeg(tmp_path / "x.jpg", self.BLOCKS)
        apart._kept.cache_clear()
        with pytest.raises(ReadError, match="damaged"):
            read(path)
        monkeypatch.undo()
        assert read(path).max() == 4095  # by another one

    def test_one_that_breaks_off(self, tmp_path):
        path = write_jpeg(tmp_path / "x.jpg", self.BLOCKS)
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(ReadError, match="damaged"):
            read(path)


INSIDE = np.array([[0, 0, 100, 200], [0, 300, 400, 500]], np.uint16)
PAD = INSIDE == 0


class TestPadding:
    """Padding never comes out brighter than the darkest pixel that was imaged; what was imaged is not touched."""

    def check(self, array: np.ndarray, wanted: np.ndarray, pad: np.ndarray = PAD) -> None:
        np.testing.assert_allclose(array[~pad], wanted[~pad])
        assert array[pad].max() <= array[~pad].min()

    def test_of_an_inverted_picture(self, tmp_path):
        path = write_slice(
            tmp_path / "x",
            INSIDE,
            position=None,
            PhotometricInterpretation="MONOCHROME1",
            BitsStored=12,
            HighBit=11,
            PixelPaddingValue=0,
        )
        array = read_image([path]).array[0]
        self.check(array, 4095 - INSIDE)
        assert (array[PAD] == 4095 - 500).all()

    @pytest.mark.parametrize(("first", "limit"), [(0, 20), (20, 0)])
    def test_a_range(self, tmp_path, first, limit):
        stored = INSIDE + PAD * np.array([[5, 0, 0, 0], [20, 0, 0, 0]], np.uint16)
        elements = {"PixelPaddingValue": first, "PixelPaddingRangeLimit": limit}
        path = write_slice(tmp_path / "x", stored, position=None, PhotometricInterpretation="MONOCHROME1", **elements)
        self.check(read_image([path]).array[0], 65535 - stored.astype(float))

    def test_under_a_falling_scale(self, tmp_path):
        path = write_slice(
            tmp_path / "x", INSIDE, position=None, RescaleSlope=-2, RescaleIntercept=10, PixelPaddingValue=0
        )
        self.check(read_image([path]).array[0], 10 - 2.0 * INSIDE)

    def test_below_everything_it_stays(self, tmp_path):
        stored = np.where(PAD, -2000, INSIDE.astype(int)).astype(np.int16)
        path = write_slice(
            tmp_path / "x", stored, position=None, RescaleSlope=1, RescaleIntercept=-1024, PixelPaddingValue=-2000
        )
        judge = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0]
        np.testing.assert_array_equal(read_image([path]).array[0], judge)
        assert judge.min() == -3024

    @pytest.mark.parametrize(("bits", "number"), [(16, -2000), (16, 32767), (12, -2000), (12, 2047)])
    def test_of_signed_pixels_given_as_unsigned(self, tmp_path, bits, number):
        stored = np.where(PAD, number, INSIDE.astype(int)).astype(np.int16)
        path = write_slice(
            tmp_path / "x",
            stored,
            position=None,
            BitsStored=bits,
            HighBit=bits - 1,
            PhotometricInterpretation="MONOCHROME1" if number < 0 else "MONOCHROME2",
        )
        whole = path.read_bytes()
        at = whole.index(b"\x28\0\x03\x01US")  # an element of unsigned representation behind this one
        element = struct.pack("<HH2sHH", 0x0028, 0x0120, b"US", 2, number % 65536)
        path.write_bytes(whole[: at + 10] + element + whole[at + 10 :])
        self.check(read_image([path]).array[0], -1 - stored.astype(float) if number < 0 else stored)

    @pytest.mark.parametrize("inverted", [False, True])
    def test_under_a_table(self, tmp_path, inverted):
        entries = np.array([60000, 10, 20, 30, 40, 50], "<u2")
        table = Dataset()
        table.LUTDescriptor, table.ModalityLUTType = [6, 0, 16], "US"
        table.LUTData = entries.tobytes()
        stored = INSIDE // 100
        path = write_slice(
            tmp_path / "x",
            stored,
            position=None,
            ModalityLUTSequence=[table],
            PhotometricInterpretation="MONOCHROME1" if inverted else "MONOCHROME2",
            PixelPaddingValue=0,
        )
        looked_up = entries.astype(float)[stored]
        self.check(read_image([path]).array[0], 65535 - looked_up if inverted else looked_up)

    def test_of_a_series_is_one_value(self, tmp_path):
        volume = np.stack([INSIDE, INSIDE * 2, INSIDE * 3]).astype(np.int16)
        files = write_series(tmp_path / "s", volume, RescaleSlope=-1, RescaleIntercept=0, PixelPaddingValue=0)
        array = read_image(files).array[0].transpose(2, 1, 0)
        pad = np.stack([PAD] * 3)
        self.check(array, -volume.astype(float), pad)
        assert (array[pad] == -1500).all()

    def test_of_frames(self, tmp_path):
        volume = np.stack([INSIDE, INSIDE * 2]).astype(np.int16)
        groups = functional_groups((0.0, 1.0))
        for item in groups["SharedFunctionalGroupsSequence"]:
            item.PixelValueTransformationSequence[0].RescaleSlope = -2
        path = write_slice(tmp_path / "x", volume, position=None, PixelPaddingValue=0, **groups)
        array = read_image([path]).array[0].transpose(2, 1, 0)
        self.check(array, -2.0 * volume - 1, np.stack([PAD] * 2))

    def test_nothing_but_padding(self, tmp_path):
        path = write_slice(tmp_path / "x", INSIDE * 0, position=None, PixelPaddingValue=0)
        assert not read_image([path]).array.any()

    def test_of_real_numbers(self, tmp_path):
        values = np.where(PAD, np.nan, INSIDE).astype(np.float32)
        path = write_slice(tmp_path / "x", INSIDE, position=None, FloatPixelPaddingValue=float("nan"))
        dataset = dcmread(path)
        del dataset.PixelData
        dataset.BitsAllocated = 32
        for keyword in ("BitsStored", "HighBit", "PixelRepresentation"):
            delattr(dataset, keyword)
        dataset.FloatPixelData = values.tobytes()
        dataset.save_as(path)
        array = read_image([path]).array[0]
        assert array.dtype == np.float32
        self.check(array, INSIDE)


class TestDicomPalette:
    def write(self, path: Path, entries: np.ndarray) -> Path:
        tables = {
            f"{colour}PaletteColorLookupTable{part}": value
            for k, colour in enumerate(("Red", "Green", "Blue"))
            for part, value in (("Descriptor", [4, 0, 16]), ("Data", entries[:, k].astype("<u2").tobytes()))
        }
        pixels = np.array([[0, 1], [2, 3]], np.uint8)
        return write_slice(path, pixels, position=None, PhotometricInterpretation="PALETTE COLOR", **tables)

    def test_sixteen_bits_are_kept(self, tmp_path):
        entries = RNG.integers(0, 65536, (4, 3))
        assert_same(read(self.write(tmp_path / "x", entries)), entries.reshape(2, 2, 3).astype(np.uint16))

    @pytest.mark.parametrize("factor", [256, 257])
    def test_eight_bits_in_sixteen(self, tmp_path, factor):
        entries = RNG.integers(0, 256, (4, 3))
        assert_same(read(self.write(tmp_path / "x", entries * factor)), entries.reshape(2, 2, 3).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_picture_that_is_all_in_its_transparency(tmp_path, mode):
    """Alpha is dropped: a mask that is drawn so would be read as empty."""
    picture = PIL.Image.new(mode, (9, 6))
    picture.save(tmp_path / "empty.png")
    assert not read_mask(tmp_path / "empty.png", None).any()
    picture.putalpha(PIL.Image.fromarray((GRAY >> 8).astype(np.uint8)))
    picture.save(tmp_path / "x.png")
    for reader in (read, lambda path: read_mask(path, None)):
        with pytest.raises(ReadError, match="transparency only"):
            reader(tmp_path / "x.png")


def test_a_mask_with_holes_is_refused(tmp_path):
    path = write_tiff(tmp_path / "m.tif", np.array([[0, 1, np.nan]], np.float32))
    with pytest.raises(DataError, match="1 values that are NaN"):
        read_mask(path, None)


def test_a_mask_of_huge_numbers_is_refused(tmp_path):
    path = write_tiff(tmp_path / "m.tif", np.array([[0, 3_000_000_000]], np.uint32))
    with pytest.raises(LabelError, match="no labels"):
        read_mask(path, None)
