"""A table of text: CSV with commas, semicolons, tabs or bars, as editors, spreadsheets, R and pandas write it."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from microtome.errors import DataError, ReadError

ENDINGS = (".csv", ".tsv")
DELIMITERS = ",;\t|"
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# What may stand above the names of the columns: empty lines, and Excel's own first line.
EMPTY = r"(?:[ ]*(?:\r\n|\r|\n))*"
SAID = re.compile(rf'{EMPTY}(?:"?sep=[^"\r\n]"?[ ]*(?:\r\n|\r|\n))?{EMPTY}', re.IGNORECASE)
AFTER_QUOTES = re.compile(r'"[ ]+(?=[,;\t|\r\n])')
WINDOWS = "cp1252"  # what Excel saves as plain CSV in Western Europe
AGAIN = "Save it again as CSV."


@dataclass(frozen=True)
class Line:
    """A line of a table: its file and number for messages, its cells by column."""

    file: Path
    number: int
    cells: Mapping[str, str]

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return f"{self.file}, line {self.number}"


def read_table(file: Path, wanted: str) -> tuple[tuple[str, ...], list[Line]]:
    """The column names of a table, and its lines. Columns without a name, such as a running number, are dropped.

    Args:
        file: the table.
        wanted: a column that it ought to have: cells are separated by whatever makes one of that name.

    Raises:
        ReadError: not text, no CSV, or empty.
        DataError: a line too long or too short.
    """
    rows = _rows(file, wanted)
    if not rows:
        raise ReadError(f"{file} is empty.", "Its first line must name the columns.")
    names = [cell.strip() for cell in rows[0][1]]
    lines = []
    for number, cells in rows[1:]:
        values = [cell.strip() for cell in cells]
        if not any(values):
            continue
        while len(values) > len(names) and not values[-1]:
            values.pop()
        if len(values) != len(names):
            raise DataError(f"{file}, line {number}, has {len(values)} cells, not {len(names)}.", "Correct the line.")
        named = {name: value for name, value in zip(names, values, strict=True) if name}
        lines.append(Line(file, number, named))
    return tuple(name for name in names if name), lines


def why_not(file: Path, wanted: str) -> str:
    """Why a table cannot be read as one with that column; empty if it can. No cell of it is told."""
    try:
        rows = _rows(file, wanted)
    except ReadError:
        return "it cannot be read as CSV in UTF-8"
    if not rows:
        return "it is empty"
    return "" if _has(rows[0][1], wanted) else f"the first line has no column '{wanted}'"


def _rows(file: Path, wanted: str) -> list[tuple[int, list[str]]]:
    """The cells of each line, with its number."""
    text = _text(file)
    said = SAID.match(text)
    start = said.end() if said else 0
    above = len(text[:start].splitlines())
    delimiter = _delimiter(text[start:], wanted)
    for spelling in (text[start:], AFTER_QUOTES.sub('"', text[start:])):
        try:
            reader = csv.reader(
                io.StringIO(spelling, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
            )
            return [(reader.line_num + above, cells) for cells in reader]
        except csv.Error as error:
            problem = error
    raise ReadError(f"{file} cannot be read as CSV: {problem}.", AGAIN)


def _text(file: Path) -> str:
    content = _content(file)
    for encoding in ("utf-16",) if content.startswith(UTF16) else ("utf-8-sig", WINDOWS):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise ReadError(f"{file} is not UTF-8 text.", "Save it as CSV in UTF-8.")


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ReadError(f"{file} cannot be read: {error.strerror}.", "Check the path.") from error


def is_of_windows(file: Path) -> bool:
    """Whether a table was read as Windows-1252, since it is neither UTF-8 nor UTF-16: a guess."""
    content = _content(file)
    try:
        content.decode("utf-16" if content.startswith(UTF16) else "utf-8-sig")
    except UnicodeDecodeError:
        return True
    return False


def _delimiter(text: str, wanted: str) -> str:
    """What separates the cells: the one that makes the wanted column, or else the most cells."""
    found: dict[str, list[str]] = {}
    for delimiter in DELIMITERS:
        try:
            lines = io.StringIO(text, newline="")
            found[delimiter] = next(csv.reader(lines, delimiter=delimiter, skipinitialspace=True), [])
        except csv.Error:
            continue
    return max(found, key=lambda one: (_has(found[one], wanted), len(found[one])), default=",")


def _has(cells: list[str], wanted: str) -> bool:
    return wanted in (cell.strip().lower() for cell in cells)
