"""Where the further inputs of a cohort's cases, or of images to predict, come from: columns, folders, tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from microtome.errors import DataError, OptionError, ReadError
from microtome.medical.channel_files import CHANNEL
from microtome.medical.cohort import Cohort
from microtome.medical.declared_inputs import Input
from microtome.medical.formats.csv_table import ENDINGS, read_table
from microtome.medical.formats.table import exists, listing
from microtome.medical.pipeline import Pipeline
from microtome.medical.readers.detached import without_voxel_files
from microtome.medical.readers.kind import stem_of
from microtome.types import Case, Further

KEYS = ("image", "name", "case")  # columns of a table that say which image a line belongs to


@dataclass(frozen=True)
class Asked:
    """One image for which further inputs are looked for.

    Attributes:
        title: for errors: a pseudonym, or the name of a file that the user gave.
        stem: what files and lines of its further inputs are called.
        cells: of its own line in the cohort's table, by column.
    """

    title: str
    stem: str
    cells: Mapping[str, str]


def with_further(cohort: Cohort, pipeline: Pipeline, given: Mapping[str, Path]) -> Cohort:
    """Return a cohort whose cases know what the network takes beside their images; the same one if they do already.

    Files are not read.

    Columns with files are no subgroups any more, nor are those with plain numbers, such as an age.

    Args:
        cohort: its cases' subgroups are the columns of its table.
        pipeline: declares the inputs.
        given: a folder or a table for an input, by name, instead of the cohort's own.

    Raises:
        OptionError: something is given for an input that is not declared.
        DataError: a column or a file is missing, or a cell is empty, no number, or has no code.
    """
    declared = (pipeline.inputs or {}).keys()
    if not (declared or given) or (declared and all(case.inputs.keys() == declared for case in cohort.cases)):
        return cohort
    root = cohort.path if cohort.path.is_dir() else cohort.path.parent
    columns = {name for case in cohort.cases for name in case.subgroups}
    asked = [Asked(case.id, stem_of_files(case.image), case.subgroups) for case in cohort.cases]
    found = further_inputs(asked, pipeline, given, root=root, columns=columns)
    no_groups: set[str | None] = set()
    for one in (pipeline.inputs or {}).values():
        no_groups |= {one.images, one.labels, *(column for column in one.columns if column not in (one.codes or {}))}
    return replace(cohort, cases=tuple(_told(*pair, no_groups) for pair in zip(cohort.cases, found, strict=True)))


def further_inputs(
    asked: Sequence[Asked],
    pipeline: Pipeline,
    given: Mapping[str, Path],
    *,
    root: Path | None = None,
    columns: Iterable[str] = (),
) -> list[dict[str, Further]]:
    """Return for each image what the network takes beside it, by name.

    Args:
        asked: the images.
        pipeline: declares the inputs.
        given: a folder or a table for an input, by name.
        root: folder that the pipeline's folders, and files in cells, are named from; None has none.
        columns: of the table in which the images are.

    Raises:
        OptionError: something is given for an input that is not declared.
        DataError: a column or a file is missing, or a cell is empty, no number, or has no code.
    """
    declared = pipeline.inputs or {}
    unknown = [name for name in given if name not in declared]
    if unknown:
        names = ", ".join(declared) or "none"
        raise OptionError(f"the pipeline declares no input '{unknown[0]}'.", f"It declares {names}.")
    found: list[dict[str, Further]] = [{} for _ in asked]
    for name, one in declared.items():
        there = frozenset(columns)
        if one.columns:
            look = _numbers(name, one, given.get(name), there)
        else:
            look = _files(name, one, given.get(name), root, there)
        for place, image in enumerate(asked):
            found[place][name] = look(image)
    return found


def stem_of_files(files: Sequence[Path]) -> str:
    """Return what an image is called: its file without suffix and nnU-Net's number of a channel, or its folder."""
    stem = stem_of(files[0])
    channel = CHANNEL.fullmatch(stem)
    if channel is None and len(files) > 1:  # slices of a series
        return files[0].parent.name
    return channel.group(1) if channel else stem


Look = Callable[[Asked], Further]


def _told(case: Case, inputs: Mapping[str, Further], no_groups: set[str | None]) -> Case:
    subgroups = {name: value for name, value in case.subgroups.items() if name not in no_groups}
    return replace(case, inputs=inputs, subgroups=subgroups)


def _numbers(name: str, one: Input, given: Path | None, columns: frozenset[str]) -> Look:
    """Return what finds an input's numbers, in the cohort's own table or in another one."""
    lines = None if given is None else _lines(given)
    there = columns if lines is None else frozenset(column for cells in lines.values() for column in cells)
    missing = [column for column in one.columns if column not in there]
    if not there:
        raise DataError(
            f"nothing says what '{name}' is ({', '.join(one.columns)}), which the network takes beside the image.",
            f"Give a table with the columns image, {', '.join(one.columns)}: --input {name}=TABLE.csv.",
        )
    if missing:
        where = "the cohort has" if given is None else f"{given} has"
        raise DataError(
            f"{where} no column '{missing[0]}', which the network's input '{name}' needs.",
            f"It has {', '.join(sorted(there))}. Give a table that has it: --input {name}=TABLE.csv.",
        )

    def look(image: Asked) -> Further:
        cells = image.cells if lines is None else lines.get(image.stem)
        if cells is None:
            raise DataError(f"{given} has no line for {image.title}.", f"Add one: {KEYS[0]} is the file's name.")
        values = [_number(image, column, cells.get(column, ""), one) for column in one.columns]
        mean, std = one.mean or (0.0,) * len(values), one.std or (1.0,) * len(values)
        return Further(numbers=tuple((v - m) / s for v, m, s in zip(values, mean, std, strict=True)))

    return look


def _number(image: Asked, column: str, cell: str, one: Input) -> float:
    """Return what a cell stands for. What it holds is not told: a table may hold anything."""
    if not cell.strip():
        raise DataError(f"{image.title} has no value in the column '{column}'.", "Fill it in, or leave the case out.")
    codes = (one.codes or {}).get(column)
    if codes is not None:
        if cell.strip() not in codes:
            raise DataError(
                f"{image.title}: the value in the column '{column}' is none of {', '.join(codes)}.",
                "Correct it, or add its code to 'codes' in pipeline.json.",
            )
        return float(codes[cell.strip()])
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"{image.title}: the column '{column}' holds text where a number is due.",
            'Correct it; or say what each text stands for, such as "codes": {"sex": {"F": 0, "M": 1}}.',
        )
    return value


def _lines(table: Path) -> dict[str, Mapping[str, str]]:
    """Return the lines of a table by the image that they belong to."""
    if not table.is_file() or table.suffix.lower() not in (*ENDINGS, ".txt"):
        raise ReadError(f"{table} is no table.", "Give a CSV file.")
    names, lines = read_table(table, KEYS[0])
    key = next((name for wanted in KEYS for name in names if name.lower() == wanted), None)
    if key is None:
        raise DataError(f"{table} does not say which image a line belongs to.", f"Add a column '{KEYS[0]}'.")
    found: dict[str, Mapping[str, str]] = {}
    for line in lines:
        stem = stem_of_files([Path(line.cells[key].split(";")[0].strip().replace("\\", "/"))])
        if stem in found:
            raise DataError(f"{line.place} is about the same image as another line.", "Leave one line per image.")
        found[stem] = line.cells
    return found


def _files(name: str, one: Input, given: Path | None, root: Path | None, columns: frozenset[str]) -> Look:
    """Return what finds the files of an input: in a column of the cohort's table, or in a folder by their names."""
    place = one.images or one.labels or ""
    if given is None and place in columns and root is not None:

        def look(image: Asked) -> Further:
            cell = image.cells.get(place, "")
            if not cell.strip():
                raise DataError(f"{image.title} has no file in the column '{place}'.", "Fill it in, or leave it out.")
            parts = [part.strip() for part in cell.replace("\\", "/").split(";") if part.strip()]
            return _further(one, [_existing(root / part, image, place) for part in parts])

        return look
    folder = given or (root / place if root is not None else None)
    if folder is None or not folder.is_dir():
        where = f"{folder} is no folder" if folder is not None else f"nothing says where '{name}' is"
        raise DataError(
            f"{where}, and the network takes '{name}' beside the image.",
            f"Give the folder of its files, called like the images: --input {name}=FOLDER.",
        )
    return _in_folder(name, one, folder)


def _in_folder(name: str, one: Input, folder: Path) -> Look:
    by_stem: dict[str, list[Path]] = {}
    for path in without_voxel_files(listing(folder)):
        by_stem.setdefault(path.name if path.is_dir() else stem_of_files([path]), []).append(path)

    def look(image: Asked) -> Further:
        files = by_stem.get(image.stem, [])
        channels = [path for path in files if CHANNEL.fullmatch(stem_of(path))]
        if not files or (len(files) > 1 and channels != files):
            what = f"{len(files)} files" if files else "no file"
            raise DataError(
                f"{folder} holds {what} for {image.title}, and the network takes '{name}' beside the image.",
                "Give one that is called like the image.",
            )
        return _further(one, files)

    return look


def _further(one: Input, files: Sequence[Path]) -> Further:
    if one.labels is None:
        return Further(images=tuple(files))
    if len(files) > 1:
        raise DataError(f"a label map has one file, not {len(files)}.", "Merge them.")
    return Further(labels=files[0])


def _existing(path: Path, image: Asked, column: str) -> Path:
    if not exists(path):
        raise ReadError(f"{image.title}: the file in the column '{column}' does not exist.", "Correct the path.")
    return path
