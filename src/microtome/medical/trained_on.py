"""What a network was trained on is never evaluated: a list of names, or a folder of images, says what that was."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from microtome.errors import MicrotomeError, OptionError, ReadError, SplitError
from microtome.files import sha256
from microtome.medical.cohort import Cohort
from microtome.medical.fingerprint import fingerprint
from microtome.medical.read import read_image
from microtome.types import Case

SUFFIXES = (".gz", ".nii", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".dcm", ".mha", ".mhd", ".nrrd", ".npy")
HINT = "Give a text file with a name per line, nnU-Net's splits_final.json, or a folder of images."


def without_trained(cohort: Cohort, given: Path) -> Cohort:
    """Give the role train to all cases of patients that the network was trained on.

    Args:
        cohort: with any split.
        given: a text file with one name per line, which is a file's name with or without its endings, its path below
            the cohort's folder, or a patient's pseudonym-free name as its files have it; a JSON file with such names
            under `train` or `training`, however deep (Decathlon's `dataset.json`, nnU-Net's `splits_final.json`, of
            which `splits_final.json#0` is the first fold); or a folder of images, which are compared by content, in
            whatever encoding.

    Returns:
        The cohort, with a note of how many cases changed their role, and of names that stand for no case.

    Raises:
        ReadError: it does not exist, or cannot be read.
        OptionError: none of it is in the cohort, so that nothing would be left out.
        SplitError: nothing is left to evaluate.
    """
    place, fold = _fold(given)
    if not place.exists():
        raise ReadError(f"{place} does not exist.", HINT)
    trained, unknown = _in_folder(cohort, place) if place.is_dir() else _listed(cohort, place, fold)
    if not trained:
        raise OptionError(f"{given} names nothing that is in the cohort.", HINT)
    patients = {case.patient for case in trained}
    moved = [case for case in cohort.cases if case.patient in patients and case.role != "train"]
    cases = _with_role(cohort, patients)
    if not any(case.role == "evaluation" for case in cases):
        raise SplitError("the network was trained on every case of this cohort.", "Evaluate it on other patients.")
    also = {name: replace(one, cases=_moved(one, place, fold), drawn=False) for name, one in cohort.also.items()}
    notes = [
        f"The network was trained on {len(trained)} cases of this cohort: their {len(patients)} patients are for "
        f"training only, and {len(moved)} cases changed their role for it."
    ]
    if unknown:
        notes.append(f"{unknown} of the names in {given.name} stand for no case of the cohort.")
    return replace(cohort, cases=cases, also=also, notes=(*cohort.notes, *notes), drawn=False)


def evaluating_unseen(cohort: Cohort, names: Sequence[str]) -> Cohort:
    """Evaluate the cases that a network says it was not trained on, and train on the others.

    A split that the cohort itself has is kept, but for what was trained on.

    Args:
        cohort: with any split.
        names: of the cases that the network was trained on, as files have them.

    Returns:
        The cohort, with a note; the same one where it has none of these cases.

    Raises:
        SplitError: it has no others.
    """
    trained, _ = _called_so(cohort, {_bare(name) for name in names})
    if not trained:
        note = "None of the cases that the network says it was trained on are in this cohort."
        return replace(cohort, notes=(*cohort.notes, note), drawn=False)
    patients = {case.patient for case in trained}
    cases = _with_role(cohort, patients)
    if cohort.drawn:
        cases = tuple(
            replace(case, role="evaluation") if case.patient not in patients and case.role == "train" else case
            for case in cases
        )
    evaluated = sum(case.role == "evaluation" for case in cases)
    if not evaluated:
        raise SplitError(
            "the network was trained on every case of this cohort.",
            "Evaluate it on other patients; of an nnU-Net folder take one fold, with --fold 0.",
        )
    note = (
        f"The network says what it was trained on: {len(trained)} cases of this cohort, which are for training only; "
        f"{evaluated} that it has not seen are evaluated."
    )
    also = {name: evaluating_unseen(replace(one, notes=()), names) for name, one in cohort.also.items()}
    return replace(cohort, cases=cases, also=also, notes=(*cohort.notes, note), drawn=False)


def _moved(cohort: Cohort, place: Path, fold: int | None) -> tuple[Case, ...]:
    """Return the cases, those of patients that were trained on with the role train."""
    trained, _ = _in_folder(cohort, place) if place.is_dir() else _listed(cohort, place, fold)
    return _with_role(cohort, {case.patient for case in trained})


def _with_role(cohort: Cohort, patients: Collection[str]) -> tuple[Case, ...]:
    return tuple(replace(case, role="train") if case.patient in patients else case for case in cohort.cases)


def _in_folder(cohort: Cohort, folder: Path) -> tuple[list[Case], int]:
    """Return the cases whose file, or whose voxels in whatever encoding, are in a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    known, seen = {sha256(path) for path in files}, set[str]()
    for path in files:
        with contextlib.suppress(MicrotomeError):  # a folder may hold much else
            seen.add(fingerprint(read_image([path])).voxels)
    found = []
    for case in cohort.cases:
        same = any(sha256(file) in known for file in _files(case))
        with contextlib.suppress(MicrotomeError):  # a broken image has its say when its case is used
            same = same or (bool(seen) and fingerprint(cohort.image(case)).voxels in seen)
        if same:
            found.append(case)
    return found, 0


def _fold(given: Path) -> tuple[Path, int | None]:
    """Return the file, and the fold behind a `#`."""
    name, mark, number = given.name.rpartition("#")
    if given.exists() or not mark or not number.isdigit():
        return given, None
    return given.with_name(name), int(number)


def _listed(cohort: Cohort, path: Path, fold: int | None) -> tuple[list[Case], int]:
    return _called_so(cohort, {_bare(name) for name in _names(path, fold)})


def _called_so(cohort: Cohort, names: set[str]) -> tuple[list[Case], int]:
    """Return the cases of these names, and how many names are of none."""
    found, used = [], set[str]()
    for case in cohort.cases:
        mine = {name for file in _files(case) for name in _called(file, cohort.path)} & names
        if mine:
            found.append(case)
            used |= mine
    return found, len(names - used)


def _names(path: Path, fold: int | None) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if path.suffix == ".json" else None
    except (OSError, ValueError) as error:
        raise ReadError(f"{path} cannot be read ({error}).", HINT) from error
    if isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
        if fold is None and len(content) > 1:
            raise OptionError(
                f"{path} holds {len(content)} folds.", f"Say which the network was trained on: {path.name}#0."
            )
        if (fold or 0) >= len(content):
            raise OptionError(f"{path} has no fold {fold}.", f"It has 0 to {len(content) - 1}.")
        content = content[fold or 0]
    if content is not None:
        return list(_training_names(content, inside=isinstance(content, list)))
    lines = (line.strip().strip('"') for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _training_names(content: Any, *, inside: bool) -> Iterable[str]:
    """Yield all texts under a key `train` or `training`."""
    if isinstance(content, str):
        if inside:
            yield content
    elif isinstance(content, dict):
        for key, value in content.items():
            known = str(key).lower() in ("train", "training")
            wanted = inside and str(key) == "image"
            yield from _training_names(value, inside=known or wanted)
    elif isinstance(content, list):
        for entry in content:
            yield from _training_names(entry, inside=inside)


def _files(case: Case) -> tuple[Path, ...]:
    """Return the files of a case's image; none where it is a part of a larger file."""
    return case.image if case.index is None else ()


def _called(file: Path, root: Path) -> set[str]:
    """Return the names under which a file may be listed."""
    names = {_bare(file.name), _bare(file.as_posix())}
    if file.is_relative_to(root):
        names.add(_bare(file.relative_to(root).as_posix()))
    return names


def _bare(name: str) -> str:
    """Return a name without endings of image files and without nnU-Net's number of the channel."""
    path = PurePosixPath(name.replace("\\", "/").removeprefix("./"))
    while path.suffix.lower() in SUFFIXES:
        path = path.with_suffix("")
    stem, underscore, channel = path.name.rpartition("_")
    if underscore and stem and len(channel) == 4 and channel.isdigit():
        path = path.with_name(stem)
    return path.as_posix()
