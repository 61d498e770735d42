"""A cohort: labelled cases under pseudonyms, split by patient into train, tuning and evaluation."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from microtome.errors import DataError, LabelError, OptionError, ReadError
from microtome.medical.formats import find_format
from microtome.medical.formats.table import Row, Table, patient_rule
from microtome.medical.read import mask_and_notes, read_image, read_mask
from microtome.medical.readers.detached import voxel_files
from microtome.medical.remarks import Remarks
from microtome.medical.split import assign_roles
from microtome.types import Array, Case, Image, Role

DIGITS = 4
LOOK_MASKS = 32  # masks that are read to learn how many classes there are, where nothing names them

MANY_LABELS = 128  # unnamed labels beyond this are intensities; the largest public label sets have 117 structures


@dataclass(frozen=True)
class Cohort:
    """Cases of one task, each with a role.

    Attributes:
        path: the file or folder that it was read from.
        format: how that is laid out, such as `decathlon`.
        task: a key of `tasks.TASKS`, such as `segmentation`.
        classes: class names in the order of the label numbers; for segmentation the first is the background. Empty
            where the cohort has no labels.
        cases: in the order of their pseudonyms, which says nothing of the order of the files.
        key: pseudonym of each case → its files. It may identify patients: never store it in a package.
        notes: what a reader of results should know, such as cases that were left out.
        remarks: likewise what turned up when images and masks were read; it grows with them.
    """

    path: Path
    format: str
    task: str
    classes: tuple[str, ...]
    cases: tuple[Case, ...]
    key: Mapping[str, str] = dataclasses.field(repr=False)
    notes: tuple[str, ...] = ()
    remarks: Remarks = dataclasses.field(default_factory=Remarks, repr=False, compare=False)

    @property
    def labelled(self) -> bool:
        """Whether every case has a reference: a mask or a label."""
        return all(case.mask is not None or case.label is not None for case in self.cases)

    @property
    def train(self) -> tuple[Case, ...]:
        """The cases of role train: calibration takes from these."""
        return self._of("train")

    @property
    def tuning(self) -> tuple[Case, ...]:
        """The cases of role tuning; may be empty."""
        return self._of("tuning")

    @property
    def evaluation(self) -> tuple[Case, ...]:
        """The cases of role evaluation."""
        return self._of("evaluation")

    def _of(self, role: Role) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if case.role == role)

    def calibration(self, count: int) -> tuple[Case, ...]:
        """Up to `count` train cases, spread over classes, then over patients; fewer if there are no more.

        Raises:
            OptionError: `count` is below 1.
        """
        if count < 1:
            raise OptionError(f"Calibration needs at least one case, not {count}.", "Ask for more, such as 32.")
        return tuple(_spread(self.train))[:count]

    def image(self, case: Case) -> Image:
        """Read a case's image. Raises what `read_image` raises."""
        image = read_image(case.image, case.index)
        self.remarks.add(case.id, image.notes)
        return image

    def mask(self, case: Case, image: Image) -> Array | None:
        """Read a case's reference segmentation on the image's grid, None where it has none.

        Raises:
            LabelError: a label beyond the cohort's classes; and what `read_mask` raises.
        """
        if case.mask is None:
            return None
        labels, notes = mask_and_notes(case.mask, image)
        self.remarks.add(case.id, notes)
        top = int(labels.max(initial=0))
        if self.classes and top >= len(self.classes):
            raise LabelError(
                f"{case.mask} holds the label {top}, but the cohort has {len(self.classes)} classes, 0 to "
                f"{len(self.classes) - 1}.",
                "Name all labels in a dataset.json beside the images.",
            )
        return labels

    def sha256(self, case: Case) -> str:
        """Hash of what a case was read from, image before mask.

        For one file it is the file's own SHA-256; for several, that of their hashes joined as text; for a case within
        an npz file, that of its pixels.
        """
        if case.index is not None:
            image = self.image(case)
            return hashlib.sha256(np.ascontiguousarray(image.array).tobytes()).hexdigest()
        files = [file for path in (*case.image, case.mask) if path is not None for file in _files_of(path)]
        hashes = [_sha256(file) for file in files]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def load_cohort(
    path: Path,
    *,
    format: str | None = None,
    seed: int = 0,
    tuning: float = 0.1,
    evaluation: float = 0.3,
    patient_pattern: str | None = None,
) -> Cohort:
    """Find the cases of a cohort, split them by patient, and give them pseudonyms. No image is read; masks only
    where nothing names their labels.

    An official split is kept: test becomes evaluation, val tuning, train train; a patient of evaluation leaves the
    other two, a patient of tuning leaves train. Without test the `evaluation` share of the patients is drawn, without
    val the `tuning` share of the patients that are not for evaluation, by a seeded shuffle within each class.

    Args:
        path: a folder, an npz file, a CSV manifest, or one image.
        format: name of the layout; None looks at the folder.
        seed: of the shuffle and the pseudonyms.
        tuning: share of patients for tuning where no official split says it; may be 0.
        evaluation: likewise for evaluation. 1 makes every case an evaluation case, unless there is an official split.
        patient_pattern: regular expression whose first group (or whole match) is the patient, searched in each file's
            path below `path`. By default `personN` or `IM-NNNN` in a file name is the patient, otherwise every file
            is a patient of its own (formats with patients of their own, such as DICOM, use those).

    Raises:
        ReadError: missing or broken files.
        DataError: the folder looks like no cohort, or does not hold together.
        LabelError: one class only, or labels that make no sense.
        SplitError: no patients are left for training or evaluation.
        OptionError: an unknown format, a bad pattern, or shares that make no sense.
    """
    path = Path(path)
    layout = find_format(path, format)
    root = path if path.is_dir() else path.parent
    table = layout.rows(path, None if patient_pattern is None else patient_rule(patient_pattern, root))
    _check_classes(table.rows, table, path)
    roles, notes = assign_roles(table.rows, seed=seed, tuning=tuning, evaluation=evaluation, source=path)
    kept = [(row, role) for row, role in zip(table.rows, roles, strict=True) if role is not None]
    _check_classes([row for row, role in kept if role == "evaluation"], table, path, " for evaluation")
    classes = table.classes
    if not classes and any(row.mask for row, _ in kept):
        classes = _classes_of_masks([row for row, _ in kept])
    cases, key = _pseudonyms(kept, root, seed)
    return Cohort(path, layout.NAME, table.task, classes, cases, key, (*table.notes, *notes))


def _check_classes(rows: list[Row] | tuple[Row, ...], table: Table, path: Path, what: str = "") -> None:
    """Labels that are classes must be of two, or AUROC is undefined; a cohort without any label may pass."""
    found = {row.label for row in rows}
    if found == {None} or not table.classes:
        return
    if None in found:
        raise LabelError(f"Some images of {path} have a label and some have none.", "Label all of them, or none.")
    if len(found) == 1:
        name = table.classes[int(next(iter(label for label in found if label is not None)))]
        raise LabelError(f"{path} has one class only{what}, '{name}'.", "Classification needs at least two.")


def _pseudonyms(kept: list[tuple[Row, Role]], root: Path, seed: int) -> tuple[tuple[Case, ...], dict[str, str]]:
    rng = np.random.default_rng([seed, 1])  # apart from the stream that splits
    patients = sorted({row.patient for row, _ in kept})
    numbers = dict(zip(patients, rng.permutation(len(patients)) + 1, strict=True))
    cases, key = [], {}
    width = max(DIGITS, len(str(len(kept))))
    for number, position in enumerate(rng.permutation(len(kept)), start=1):
        row, role = kept[position]
        case = Case(
            id=f"case-{number:0{width}d}",
            patient=f"patient-{numbers[row.patient]:0{width}d}",
            image=row.image,
            mask=row.mask,
            label=row.label,
            index=row.index,
            role=role,
            subgroups=dict(row.subgroups),
        )
        cases.append(case)
        key[case.id] = _real_name(row, root)
    return tuple(cases), key


def _real_name(row: Row, root: Path) -> str:
    names = [file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file) for file in row.image]
    return ";".join(names) + (f"#{row.index}" if row.index is not None else "")


def _classes_of_masks(rows: list[Row]) -> tuple[str, ...]:
    """Class names where nothing names them, from masks spread over the cohort."""
    masks = [row.mask for row in rows if row.mask is not None]
    step = max(1, len(masks) // LOOK_MASKS)
    top = 1
    for mask in masks[::step]:
        found = _top_label(mask)
        if found > MANY_LABELS:
            raise LabelError(
                f"{mask} holds values up to {found}, which are hardly labels.",
                "Masks hold 0 and 255, or label numbers; JPEG spoils them. Name many labels in a dataset.json.",
            )
        top = max(top, found)
    return ("background", "foreground") if top == 1 else ("background", *(f"label {k}" for k in range(1, top + 1)))


def _top_label(mask: Path) -> int:
    """The largest label of a mask; a mask that cannot be read has its say when its case is used."""
    try:
        return int(read_mask(mask, None).max(initial=0))
    except DataError:
        return 0


def _spread(cases: tuple[Case, ...]) -> Iterator[Case]:
    """Cases class by class in turn, and within a class patient by patient in turn."""
    classes: dict[int | None, dict[str, list[Case]]] = {}
    for case in cases:
        label = case.label if isinstance(case.label, int) else None  # a reference that is a number makes no classes
        classes.setdefault(label, {}).setdefault(case.patient, []).append(case)
    labels = sorted(classes, key=lambda label: label or 0)
    queues = [_in_turn(list(classes[label].values())) for label in labels]
    return iter(_in_turn(queues))


def _in_turn(lists: list[list[Case]]) -> list[Case]:
    longest = max((len(one) for one in lists), default=0)
    return [one[k] for k in range(longest) for one in lists if k < len(one)]


def _files_of(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path, *voxel_files(path)]


def _sha256(file: Path) -> str:
    try:
        status = file.stat()
        return _digest(file, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise ReadError(f"{file} cannot be read: {error.strerror}.", "Check the path.") from error


@functools.lru_cache(maxsize=1024)
def _digest(file: Path, modified: int, size: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
