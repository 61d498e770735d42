"""Breaks small files in many ways and reads them: only `MicrotomeError` may come out.

    python tests/odd/fuzz.py --mutations 20000 --seed 1

Each format of `FORMATS` writes a good file or folder, says which of its files are broken, and how they are read. A
format of your own is one more line there. Memory is bounded (`MEMORY`), so that a header that promises terabytes is
met as on a small computer. Each reading may take `SECONDS`. Decoders are other people's programs, and one of them might
end the process: then the last line that was printed names format, seed and number.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import gzip
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGExtended12Bit

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "medical"))
from dicom_files import functional_groups, write_series, write_slice
from tiff_files import write_jpeg, write_tiff

from microtome.errors import MicrotomeError
from microtome.inference.jobs import jobs_of
from microtome.medical.cohort import load_cohort
from microtome.medical.read import read_image, read_mask

MEMORY = 3 << 30  # bytes of address space beyond what is in use when it begins
SECONDS = 20
RNG = np.random.default_rng(0)
VOLUME = RNG.integers(-500, 500, (6, 7, 5)).astype(np.int16)
PICTURE = RNG.integers(0, 256, (12, 9, 3), dtype=np.uint8)
# Numbers that break what counts, allocates or divides by them.
ODD = (0, 1, -1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True)
class Format:
    """What is broken.

    Attributes:
        write: writes into an empty folder, and returns the path that `read` gets.
        read: reads it in every way that a user can.
        broken: the pattern of the files that are broken, one of them at a time.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], object]
    broken: str = "*"


def read_file(path: Path) -> None:
    """As image, as mask, as input of `predict`, as a cohort of one image."""
    for how in (
        lambda: read_image([path]),
        lambda: read_mask(path, None),
        lambda: [read_image(job.files, job.index) for job in jobs_of([path])[:3]],
        lambda: load_cohort(path, evaluation=1.0, tuning=0.0),
    ):
        with contextlib.suppress(MicrotomeError):
            how()


def read_once(path: Path) -> None:
    """As image only, where each reading starts a process."""
    with contextlib.suppress(MicrotomeError):
        read_image([path])


def read_cohort(path: Path) -> None:
    """Every case: image, mask, hash."""
    with contextlib.suppress(MicrotomeError):
        cohort = load_cohort(path)
        for case in cohort.cases[:4]:
            with contextlib.suppress(MicrotomeError):
                cohort.mask(case, cohort.image(case))
            cohort.sha256(case)


def read_folder(path: Path) -> None:
    """A folder with one DICOM series."""
    for how in (lambda: read_image([path]), lambda: read_image(sorted(path.iterdir()))):
        with contextlib.suppress(MicrotomeError):
            how()
    read_cohort(path)


def _nifti(name: str, kind=nibabel.Nifti1Image, **header: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        image = kind(VOLUME, np.diag([2.0, 3, 4, 1]))
        image.header.set_xyzt_units("mm")
        image.header.set_qform(image.affine, 1)
        nibabel.save(image, folder / name)
        return folder / name

    return write


def _itk(name: str, *, packed: bool = False) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        image = sitk.GetImageFromArray(VOLUME)
        image.SetSpacing((2.0, 3, 4))
        sitk.WriteImage(image, str(folder / name), packed)
        return folder / name

    return write


def _picture(name: str, mode: str = "RGB") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        PIL.Image.fromarray(PICTURE).convert(mode).save(folder / name)
        return folder / name

    return write


def _deep(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        image = sitk.GetImageFromArray(PICTURE.astype(np.uint16) * 250, isVector=True)
        sitk.WriteImage(image, str(folder / name))
        return folder / name

    return write


def _dicom(folder: Path) -> Path:
    return write_slice(
        folder / "x.dcm",
        VOLUME[0],
        position=None,
        PhotometricInterpretation="MONOCHROME1",
        PixelPaddingValue=-5,
        RescaleSlope=2,
        RescaleIntercept=-3,
    )


def _dicom_jpeg(folder: Path) -> Path:
    """JPEG of 12 bits in DICOM, for which a decoder runs in a process of its own."""
    frame = write_jpeg(folder / "frame", np.array([[0, 4095], [100, 7]])).read_bytes()
    (folder / "frame").unlink()
    path = write_slice(folder / "x.dcm", np.zeros((16, 16), np.uint16), position=None, BitsStored=12, HighBit=11)
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path)
    return path


def _frames(folder: Path) -> Path:
    return write_slice(folder / "x.dcm", VOLUME, position=None, **functional_groups(range(6)))


def _series(folder: Path) -> Path:
    write_series(folder / "series", VOLUME[:4])
    return folder / "series"


def _npz(folder: Path, **more: np.ndarray) -> Path:
    arrays = dict(more)
    for split, count in (("train", 6), ("val", 4), ("test", 5)):
        arrays[f"{split}_images"] = RNG.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2)[:, None].astype(np.uint8)
    np.savez_compressed(folder / "x.npz", **arrays)
    return folder / "x.npz"


def _npz_plain(folder: Path) -> Path:
    np.savez(folder / "x.npz", train_images=VOLUME, train_labels=np.arange(6) % 2, test_images=VOLUME)
    return folder / "x.npz"


def _masks(folder: Path) -> Path:
    """Images and masks, of which the masks are broken."""
    for k in range(3):
        for part, array in (("images", VOLUME), ("masks", (VOLUME > 0).astype(np.float32))):
            (folder / part).mkdir(exist_ok=True)
            image = nibabel.Nifti1Image(array, np.diag([2.0, 3, 4, 1]))
            nibabel.save(image, folder / part / f"{k}.nii")
    return folder


FORMATS: dict[str, Format] = {
    "nifti": Format(_nifti("x.nii"), read_file),
    "nifti.gz": Format(_nifti("x.nii.gz"), read_file),
    "nifti2": Format(_nifti("x.nii", nibabel.Nifti2Image), read_file),
    "nifti pair": Format(_nifti("x.hdr", nibabel.Nifti1Pair), read_file),
    "nifti masks": Format(_masks, read_cohort, "masks/*.nii"),
    "nrrd": Format(_itk("x.nrrd"), read_file),
    "nrrd packed": Format(_itk("x.nrrd", packed=True), read_file),
    "nhdr": Format(_itk("x.nhdr"), read_file),
    "mha": Format(_itk("x.mha"), read_file),
    "mha packed": Format(_itk("x.mha", packed=True), read_file),
    "mhd": Format(_itk("x.mhd"), read_file),
    "dicom": Format(_dicom, read_file),
    "dicom jpeg": Format(_dicom_jpeg, read_once),
    "dicom frames": Format(_frames, read_file),
    "dicom series": Format(_series, read_folder, "series/*"),
    "png": Format(_picture("x.png"), read_file),
    "png palette": Format(_picture("x.png", "P"), read_file),
    "png 16": Format(_deep("x.png"), read_file),
    "tiff": Format(_picture("x.tif"), read_file),
    "tiff 16": Format(lambda folder: write_tiff(folder / "x.tif", VOLUME[0]), read_file),
    "tiff 16 packed": Format(
        lambda folder: write_tiff(folder / "x.tif", PICTURE.astype(np.uint16) * 250, photometric=2, packed=True),
        read_file,
    ),
    "jpeg": Format(_picture("x.jpg"), read_file),
    "jpeg 12": Format(lambda folder: write_jpeg(folder / "x.jpg", np.array([[0, 4095], [100, 7]])), read_once),
    "gif": Format(_picture("x.gif", "P"), read_file),
    "bmp": Format(_picture("x.bmp"), read_file),
    "npz": Format(_npz, read_file),
    "npz plain": Format(_npz_plain, read_file),
}


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Break a file: bits, bytes, numbers, cut, repeat, swap; more often at its beginning, where headers are."""
    if content.startswith(b"\x1f\x8b") and rng.random() < 0.5:  # packed: what is inside is broken
        with contextlib.suppress(OSError, EOFError):
            return gzip.compress(mutate(gzip.decompress(content), rng))
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        if not data:
            break
        reach = min(len(data), 400) if rng.random() < 0.7 else len(data)
        at, kind = int(rng.integers(reach)), int(rng.integers(8))
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at] = int(rng.integers(256))
        elif kind in (2, 3):
            width = int(rng.choice([1, 2, 4, 8]))
            number = int(rng.choice(ODD)) % (1 << 8 * width)
            data[at : at + width] = number.to_bytes(width, "little" if kind == 2 else "big")
        elif kind == 4:
            del data[at : at + int(rng.integers(1, 40)) if rng.random() < 0.5 else len(data)]
        elif kind == 5:
            length = int(rng.integers(1, 40))
            data[at:at] = data[at : at + length]
        elif kind == 6:
            data[at : at + 8] = rng.bytes(8)
        else:
            _other_digit(data, at, rng)
    return bytes(data)


def _other_digit(data: bytearray, at: int, rng: np.random.Generator) -> None:
    """In headers that are text: another number, or a sign."""
    for k in range(at, min(at + 60, len(data))):
        if chr(data[k]).isdigit():
            data[k : k + 1] = str(rng.choice(["-1", "0", "9", "99999", "1e9", "nan", "", "0.0", " "])).encode()
            return


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """At most `MEMORY` more than now, within the block."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _too_long(*_: object) -> None:
    raise TimeoutError(f"longer than {SECONDS} s")


@contextlib.contextmanager
def _quiet_decoders() -> Iterator[None]:
    """Decoders in C write to standard error; it is put away, so that a report can be read."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 — a descriptor is wanted
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def fuzz(name: str, mutations: int, seed: int, folder: Path) -> list[str]:
    """Break one format so often; returns what came out that is no `MicrotomeError`, with the number of the mutation.

    Args:
        name: a key of `FORMATS`.
        mutations: how many.
        seed: of all of them; number k of a seed is always the same.
        folder: empty; files that broke something are left there.
    """
    one, found = FORMATS[name], []
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    target = one.write(folder)
    files = sorted(path for path in folder.glob(one.broken) if path.is_file())
    good = [path.read_bytes() for path in files]
    one.read(target)
    before = signal.signal(signal.SIGALRM, _too_long)
    for number in range(mutations):
        rng = np.random.default_rng([seed, number])
        chosen = int(rng.integers(len(files)))
        files[chosen].write_bytes(mutate(good[chosen], rng))
        signal.alarm(SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                one.read(target)
        except Exception as error:
            kept = folder.parent / f"{name.replace(' ', '-')}-{seed}-{number}{files[chosen].suffix}"
            shutil.copy(files[chosen], kept)
            where = traceback.extract_tb(error.__traceback__)[-1]
            found.append(
                f"{name} seed {seed} number {number}: {type(error).__name__}: {error} ({where.filename}:{where.lineno})"
            )
        finally:
            signal.alarm(0)
        files[chosen].write_bytes(good[chosen])
    signal.signal(signal.SIGALRM, before)
    return found


def main() -> int:
    """Fuzz the formats in turn; the exit code is 1 if anything but `MicrotomeError` came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=2000, help="of all formats together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", action="append", choices=FORMATS, help="only this one; may be repeated")
    parser.add_argument("--keep", type=Path, help="folder for files that broke something")
    options = parser.parse_args()
    faulthandler.enable(os.fdopen(os.dup(2), "w"))  # also while standard error is put away
    names = options.format or list(FORMATS)
    each = -(-options.mutations // len(names))
    folder = options.keep or Path(tempfile.mkdtemp())
    every: list[str] = []
    with bounded_memory():
        for name in names:
            print(f"{name}: {each} mutations, seed {options.seed}", flush=True)
            with _quiet_decoders():
                found = fuzz(name, each, options.seed, folder / "work")
            every += found
            for line, count in collections.Counter(found).items():
                print(f"  {line}" + (f" ({count} times)" if count > 1 else ""), flush=True)
    print(json.dumps({"mutations": each * len(names), "formats": len(names), "broke": len(every)}))
    if options.keep is None:
        shutil.rmtree(folder)
    return 1 if every else 0


if __name__ == "__main__":
    sys.exit(main())
