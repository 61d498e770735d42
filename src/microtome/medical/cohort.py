"""A cohort: labelled cases under pseudonyms, split by patient into train, tuning and evaluation."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from microtome.errors import DataError, LabelError, OptionError, ReadError, SplitError
from microtome.medical.formats import find_format
from microtome.medical.formats.columns import referenced
from microtome.medical.formats.leftover import passed_over
from microtome.medical.formats.patients import PatientsByPattern
from microtome.medical.formats.table import Row, Table
from microtome.medical.mask_labels import classes_of_masks, counted_as, joined
from microtome.medical.pseudonyms import Key, Name, by_key, case_of, named, real_name
from microtome.medical.read import read_image, with_further
from microtome.medical.readers.detached import voxel_files
from microtome.medical.remarks import Remarks
from microtome.medical.split import assign_roles
from microtome.types import Array, Case, Image, Role


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
        patients: pseudonym of each patient → name or number as it was found. The same holds for it.
        patient_rule: how it was told who is a patient, in words and without any name.
        also: task → the same examinations as a cohort for that task, where they have references for both.
        notes: what a reader of results should know, such as cases that were left out.
        drawn: whether the evaluation patients were drawn at random, so that a network may have been trained on them.
        unnamed: numbers of classes that nobody named: their names are made of the number.
        numbers: label in the masks → number of its class, where they differ; None where they are the same.
        remarks: likewise what turned up when images and masks were read; it grows with them.
        regions: regions that overlap and the labels of each, where the cohort is labelled for such; see `Pipeline`.
        regions_order: likewise.
    """

    path: Path
    format: str
    task: str
    classes: tuple[str, ...]
    cases: tuple[Case, ...]
    key: Mapping[str, str] = dataclasses.field(repr=False)
    notes: tuple[str, ...] = ()
    unnamed: frozenset[int] = frozenset()
    numbers: Mapping[int, int] | None = None
    regions: Mapping[str, tuple[int, ...]] | None = None
    regions_order: tuple[int, ...] | None = None
    patients: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    patient_rule: str = ""
    also: Mapping[str, Cohort] = dataclasses.field(default_factory=dict, repr=False)
    drawn: bool = False
    remarks: Remarks = dataclasses.field(default_factory=Remarks, repr=False, compare=False)

    def of_task(self, task: str) -> Cohort:
        """The same examinations for a task; the cohort itself where there are no references for it."""
        return self.also.get(task, self)

    def patient_examples(self, count: int = 3) -> list[tuple[str, str]]:
        """Files, and who their patient is by the rule. For the user's own screen: they may identify patients."""
        return [(self.key[case.id].split(";")[0], self.patients[case.patient]) for case in self.cases[:count]]

    @property
    def labelled(self) -> bool:
        """Whether every case has a reference: a mask or a label."""
        return all(case.labelled for case in self.cases)

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
        """Read a case's image, with what the network takes beside it. Raises what `read.with_further` raises."""
        image = with_further(read_image(case.image, case.index), case.inputs)
        self.remarks.add(case.id, image.notes)
        return image

    def mask(self, case: Case, image: Image | None) -> Array | None:
        """Read a case's reference segmentation on the image's grid, None where it has none.

        Without an image it is on its own grid. Labels are the numbers of the cohort's classes.

        Raises:
            LabelError: a label beyond the cohort's classes; and what `read_mask` raises.
        """
        if case.mask is None:
            return None
        labels, notes = joined((case.mask, *case.further_masks), image)
        self.remarks.add(case.id, notes)
        if self.numbers is not None:
            return counted_as(labels, self.numbers, case.mask, self.classes)
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
        files = [file for path in (*case.image, *case.reference_files) for file in _files_of(path)]
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
    columns: tuple[str, Sequence[str]] | None = None,
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
            path below `path`. By default a well-known pattern such as `personN` or `sub-01` in the name of a file or
            folder is the patient, otherwise every file is a patient of its own (formats with patients of their own,
            such as DICOM, use those).
        columns: a task, and the names of columns that hold its references, where the cohort does not say by itself
            that they do (see `formats.columns`).

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
    rule = None if patient_pattern is None else PatientsByPattern(patient_pattern, root)
    table = layout.rows(path, rule)
    if columns is not None:
        table = referenced(table, *columns, path)
    if rule is not None:
        table = replace(table, patients=rule.text)
    tables = [table, *([] if table.also is None else [replace(table.also, patients=table.patients)])]
    _check_classes(table.rows, table, path)
    rows = by_key(table.rows)
    for one in tables[1:]:
        rows |= {key: row for key, row in by_key(one.rows).items() if key not in rows}
    roles, notes = assign_roles(list(rows.values()), seed=seed, tuning=tuning, evaluation=evaluation, source=path)
    kept = {key: role for key, role in zip(rows, roles, strict=True) if role is not None}
    build = functools.partial(_cohort, names=named(rows, kept, seed), notes=notes, path=path, layout=layout.NAME)
    drawn = evaluation < 1 and not any(row.split == "test" for row in rows.values())
    try:
        cohort = build(table)
    except SplitError:
        if len(tables) == 1:
            raise
        return replace(build(tables[1]), drawn=drawn)  # masks for training only: the other task goes without
    for also in tables[1:]:
        with contextlib.suppress(DataError):  # one class only, or too few cases: it is not for that task then
            cohort = replace(cohort, also={also.task: replace(build(also), drawn=drawn)})
    return replace(cohort, drawn=drawn)


def _cohort(table: Table, *, names: Mapping[Key, Name], notes: tuple[str, ...], path: Path, layout: str) -> Cohort:
    """The cohort of one task."""
    _check_classes(table.rows, table, path)
    rows, root = by_key(table.rows), path if path.is_dir() else path.parent
    kept = {name: rows[key] for key, name in names.items() if key in rows}
    evaluated = [row for name, row in kept.items() if name.role == "evaluation"]
    if not evaluated:
        raise SplitError(f"{path}: none of the cases for evaluation has a reference for {table.task}.", "Add some.")
    _check_classes(evaluated, table, path, " for evaluation")
    classes, unnamed = table.classes, table.unnamed
    masks = [mask for key, row in rows.items() if key in names and row.mask for mask in (row.mask, *row.further_masks)]
    if not classes and masks:
        classes = classes_of_masks(masks)
        unnamed = frozenset(range(len(classes)))
    return Cohort(
        path,
        layout,
        table.task,
        classes,
        tuple(case_of(row, name) for name, row in kept.items()),
        {name.case: real_name(row, root) for name, row in kept.items()},
        (*table.notes, *passed_over(path, table), *notes),
        unnamed,
        regions=table.regions,
        regions_order=table.regions_order,
        patients={name.patient: row.patient for name, row in kept.items()},
        patient_rule=table.patients,
    )


def _check_classes(rows: list[Row] | tuple[Row, ...], table: Table, path: Path, what: str = "") -> None:
    """Labels that are classes must be of two, or AUROC is undefined; a cohort without any label may pass."""
    found = {row.label for row in rows}
    if found == {None} or not table.classes or not all(row.label is None or isinstance(row.label, int) for row in rows):
        return
    if any(row.mask for row in rows):
        return
    if None in found:
        raise LabelError(f"Some images of {path} have a label and some have none.", "Label all of them, or none.")
    if len(found) == 1:
        name = table.classes[next(label for label in found if isinstance(label, int))]
        raise LabelError(f"{path} has one class only{what}, '{name}'.", "Classification needs at least two.")


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
