"""What the command line names as inputs → one job per image."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from microtome.errors import ReadError
from microtome.medical.channel_files import CHANNEL, is_gray
from microtome.medical.further import Asked, further_inputs
from microtome.medical.pipeline import Pipeline
from microtome.medical.readers import arrays
from microtome.medical.readers.detached import voxel_files, without_voxel_files
from microtome.medical.readers.elements import split_series
from microtome.medical.readers.kind import SUFFIXES, kind_of_head, read_head, stem_of, suffix_of
from microtome.types import Further


@dataclass(frozen=True)
class Job:
    """One image to predict.

    Attributes:
        name: of its output, without a suffix. It comes from a file's or folder's name and may identify a patient.
        files: what `read_image` gets.
        index: as `read_image` wants it, for files that hold many images.
        inputs: what the network takes beside the image, by name.
    """

    name: str
    files: tuple[Path, ...]
    index: int | None = None
    inputs: Mapping[str, Further] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Tells whether another job is of the same image: a hash of the files' names, sizes and times of change.

        Folders are left out, so that data may be moved, and so is what the files hold, since reading takes time.
        """
        text = repr(self.index)
        for name, one in self.inputs.items():
            text += f"\n{name}\t{one.numbers}"
        given = [*self.files, *(file for one in self.inputs.values() for file in one.files)]
        voxels = [path for header in given for path in voxel_files(header)]
        for file in (*given, *voxels):
            text += f"\n{file.name}"
            with contextlib.suppress(OSError):  # what is gone is told when it is read
                found = file.stat()
                text += f"\t{found.st_size}\t{found.st_mtime_ns}"
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Given:
    """Images to predict, with what the network takes beside them.

    Attributes:
        images: files and folders.
        further: for each other input by its name a folder of files that are called like the images, or a CSV table
            whose column `image` names them.
    """

    images: Sequence[str | Path]
    further: Mapping[str, Path] = field(default_factory=dict)


def jobs_of(inputs: Sequence[str | Path], channels: int = 1) -> list[Job]:
    """Find the images that inputs stand for.

    A file is one image (an npz file holds many). The DICOM files of a folder are one image per series; its other image
    files are one each, and what is no image is passed over. In the folders within a folder only DICOM series are looked
    for. Whether an image can be read is found out when it is.

    nnU-Net's files of single channels, `case_0000`, `case_0001`, …, are one image, `case`, if they are as many as the
    network has channels and lie in one folder; `case_0000` without others is `case`, too.

    Args:
        inputs: files and folders.
        channels: of the network.

    Returns:
        In the order of the inputs, and by name within a folder. Names are those of the files without suffix, for series
        those of their folders; the second of a name gets `-2`.

    Raises:
        ReadError: an input does not exist, or there is no image.
    """
    found: list[Job] = []
    for path in map(Path, inputs):
        if not path.exists():
            raise ReadError(f"{path} does not exist.", "Check the path.")
        found += _in_folder(path) if path.is_dir() else _in_file(path)
    if not found:
        places = ", ".join(map(str, inputs)) or "Nothing"
        raise ReadError(f"{places}: no images found.", "Give image files, DICOM series, or folders that hold them.")
    return list(_distinct(_joined(found, channels)))


def with_further(jobs: Sequence[Job], pipeline: Pipeline, given: Mapping[str, Path]) -> list[Job]:
    """Return jobs that know what the network takes beside their images: files and lines of a table called like them.

    Args:
        jobs: the images.
        pipeline: declares the inputs.
        given: a folder or a table for each, by name.

    Raises:
        OptionError: something is given for an input that is not declared.
        DataError: something is missing, or a cell is empty, no number, or has no code.
    """
    if not pipeline.inputs and not given:
        return list(jobs)
    asked = [Asked(job.name, job.name, {}) for job in jobs]
    found = further_inputs(asked, pipeline, given)
    return [replace(job, inputs=inputs) for job, inputs in zip(jobs, found, strict=True)]


def _joined(jobs: Sequence[Job], channels: int) -> Iterator[Job]:
    """The same jobs, those of the channels of one image made one, in the place of the first."""
    groups: dict[tuple[Path, str], dict[int, Job]] = {}
    for job in jobs:
        place = _channel(job)
        if place is not None:
            groups.setdefault(place[0], {})[place[1]] = job
    for job in jobs:
        place = _channel(job)
        group = {} if place is None else groups[place[0]]
        alone, whole = set(group) == {0}, channels > 1 and set(group) == set(range(channels))
        if place is None or not (alone or (whole and all(is_gray(one.files[0]) for one in group.values()))):
            yield job
        elif place[1] == 0:
            yield Job(place[0][1], tuple(group[k].files[0] for k in range(len(group))))


def _channel(job: Job) -> tuple[tuple[Path, str], int] | None:
    """The folder and case, and the number of the channel, that the name of a job's only file says."""
    found = CHANNEL.fullmatch(job.name) if len(job.files) == 1 and job.index is None else None
    return None if found is None else ((job.files[0].resolve().parent, found.group(1)), int(found.group(2)))


def _in_file(path: Path) -> list[Job]:
    name = stem_of(path)
    if suffix_of(path) != ".npz":
        return [Job(name, (path,))]
    try:
        sizes = arrays.shapes(path)
    except ReadError:
        return [Job(name, (path,))]  # is told when it is read
    count = sum((sizes.get(f"{split}_images") or (0,))[0] for split in arrays.SPLITS)
    return [Job(f"{name}-{index:05d}", (path,), index) for index in range(count)]


def _in_folder(folder: Path) -> list[Job]:
    jobs, dicom = [], []
    for path in without_voxel_files(_visible(folder)):
        if path.is_dir():
            jobs += _series(path, [file for file in _visible(path) if _kind(file) == "dicom"])
        elif (kind := _kind(path)) == "dicom":
            dicom.append(path)
        elif kind is not None:
            jobs += _in_file(path)
    return [*_series(folder, dicom), *jobs]


def _series(folder: Path, files: Sequence[Path]) -> list[Job]:
    """One job per DICOM series of a folder; a series of one file among others is named after its file."""
    if not files:
        return []
    name = folder.resolve().name
    try:
        series, _ = split_series(files)
    except ReadError:
        return [Job(name, tuple(files))]  # is told when it is read
    alone = len(series) == 1
    return [Job(name if alone or len(one) > 1 else stem_of(one[0]), tuple(one)) for one in series]


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _kind(path: Path) -> str | None:
    """What a file is, or ought to be by its name: a broken image must not be passed over."""
    if path.is_dir():
        return None
    named = SUFFIXES.get(suffix_of(path))
    try:
        return kind_of_head(read_head(path)) or named
    except ReadError:
        return named


def _distinct(jobs: Iterable[Job]) -> Iterator[Job]:
    """Names that differ, also where upper and lower case are one, as on some file systems."""
    taken: set[str] = set()
    for job in jobs:
        name, number = job.name, 1
        while name.casefold() in taken:
            number += 1
            name = f"{job.name}-{number}"
        taken.add(name.casefold())
        yield replace(job, name=name)
