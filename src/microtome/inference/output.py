"""The folder that `predict` fills: one file per image or one row, and what is finished of them."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from microtome.errors import MicrotomeError, OutputError
from microtome.files import write_json, writing
from microtome.inference.jobs import Job
from microtome.medical.remarks import Remarks
from microtome.version import __version__

SCHEMA = 1
RECORD = "predict.json"
PAUSE = 20  # times as long as writing the record takes, before it is written again: it grows with the cases


class Predictions:
    """What is in OUT, and the record of it. After an interruption the same task goes on from there.

    Attributes:
        out: the folder.
        failed: name, problem and hint of the images that could not be predicted in this run.
        remarks: what had to be assumed to read the images of this run.
    """

    def __init__(
        self, out: Path, task: Mapping[str, Any], *, table: str = "predictions.csv", overwrite: bool = False
    ) -> None:
        """Make the folder, or find what the same task left in it.

        Args:
            out: the folder.
            task: package and settings; what they made is kept.
            table: the file that holds rows.
            overwrite: forget what is there. Files are replaced one by one.

        Raises:
            OutputError: it holds something else, or cannot be written.
        """
        self.out, self.failed, self.remarks = out, list[dict[str, str]](), Remarks()
        self.table = out / table
        self._task = json.loads(json.dumps(task))
        self._cases: dict[str, dict[str, Any]] = {}
        self._written, self._pause = 0.0, 0.0
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            if not overwrite and any(out.iterdir()):
                self._cases = self._finished()
            if self.table.exists():
                self._keep_rows(set(self._cases))
            self.save()

    def __enter__(self) -> Self:
        """Begin to fill the folder."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the record, also of a run that was interrupted.

        Raises:
            OutputError: the place cannot be written, and nothing else went wrong before.
        """
        try:
            with writing(self.out):
                self.save()
        except OutputError:
            if error is None:
                raise

    def _finished(self) -> dict[str, dict[str, Any]]:
        try:
            record = json.loads((self.out / RECORD).read_text())
            found, cases = record["task"], {case["name"]: case for case in record["cases"]}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            raise OutputError(
                f"{self.out} already exists and holds something else than predictions.",
                "Choose another --out, or give --overwrite to write into it all the same.",
            ) from None
        if found != self._task:
            raise OutputError(
                f"{self.out} holds the predictions of another package or of other settings.",
                "Choose another --out, or give --overwrite to predict everything anew.",
            )
        return cases

    def _keep_rows(self, names: set[str]) -> None:
        """Drop the rows of what is not finished, such as one that was cut off; forget what has not all of its rows."""
        header, rows = self._read()
        kept: dict[str, list[list[str]]] = {name: [] for name in names}
        for row in rows:
            if len(row) == len(header) and row[0] in names:
                kept[row[0]].append(row)
        whole = {name for name, found in kept.items() if len(found) == self._cases[name].get("rows", 1)}
        self._cases = {
            name: case for name, case in self._cases.items() if name in whole or case["file"] != self.table.name
        }
        left = [row for row in rows if len(row) == len(header) and row[0] in self._cases]
        if any(case["file"] == self.table.name for case in self._cases.values()):
            _replace(self.table, _rows([header, *left]))
        else:
            self.table.unlink()

    def _read(self) -> tuple[list[str], list[list[str]]]:
        """The table's columns and rows."""
        with self.table.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        return header, rows

    def has(self, job: Job, file: str) -> bool:
        """Whether an image is finished.

        Raises:
            OutputError: the output is that of another image with the same name, or one of the inputs.
        """
        path = self.out / file
        if path.exists() and any(path.samefile(source) for source in job.files if source.exists()):
            raise OutputError(f"{path} is an input and would be replaced by its prediction.", "Choose another --out.")
        case = self._cases.get(job.name)
        if case is None:
            return False
        if case["source"] != job.source:
            raise OutputError(
                f"{self.out} holds the prediction of another image called {job.name}, or of this one as it was before.",
                "Choose another --out, or give --overwrite to predict everything anew.",
            )
        return bool(path.exists())

    def add_file(self, job: Job, file: str, write: Callable[[Path], None], seconds: dict[str, float]) -> None:
        """Have a map written; one that cannot be written for its own sake is a failed image.

        Raises:
            OutputError: the place cannot be written.
        """
        begin = time.perf_counter()
        with writing(self.out):
            try:
                write(self.out / file)
            except MicrotomeError as error:
                self.fail(job, error)
                return
            self._add(job, file, {**seconds, "write": time.perf_counter() - begin})

    def add_rows(
        self, job: Job, rows: Sequence[Mapping[str, str]], columns: Sequence[str], seconds: dict[str, float]
    ) -> None:
        """Append the rows of an image to the table; there may be none, where it has these columns.

        Raises:
            OutputError: the place cannot be written.
        """
        begin = time.perf_counter()
        names = ["name", *(columns or rows[0])]
        lines = [[job.name, *(row[name] for name in names[1:])] for row in rows]
        with writing(self.out):
            fresh = not self.table.exists()
            with self.table.open("a", newline="", encoding="utf-8") as file:
                file.write(_rows([names, *lines] if fresh else lines))
            self._add(job, self.table.name, {**seconds, "write": time.perf_counter() - begin}, rows=len(rows))

    def collect(self, make: Callable[[Sequence[Mapping[str, str]], Sequence[str]], Mapping[str, Any]]) -> None:
        """Write what is made of the whole table: content of JSON files by their names.

        Raises:
            OutputError: the place cannot be written.
        """
        if not self.table.exists():
            return
        with writing(self.out):
            header, lines = self._read()
            rows = [dict(zip(header, line, strict=True)) for line in lines if len(line) == len(header)]
            for name, content in make(rows, list(self._cases)).items():
                write_json(self.out / name, content)

    def fail(self, job: Job, error: MicrotomeError) -> None:
        """Note what was wrong with an image."""
        self.failed.append({"name": job.name, "problem": error.problem, "hint": error.hint})

    def _add(self, job: Job, file: str, seconds: Mapping[str, float], rows: int | None = None) -> None:
        rounded = {name: round(value, 6) for name, value in seconds.items()}
        case = {"name": job.name, "file": file, "source": job.source, "seconds": rounded}
        self._cases[job.name] = case if rows in (None, 1) else {**case, "rows": rows}
        if time.monotonic() - self._written >= self._pause:
            self.save()

    def seconds_of(self, names: Sequence[str]) -> list[dict[str, float]]:
        """The seconds of each stage, for those that are finished."""
        return [self._cases[name]["seconds"] for name in names if name in self._cases]

    def save(self) -> None:
        """Write the record.

        Raises:
            OSError: the place cannot be written.
        """
        begin = time.monotonic()
        content = {
            "schema": SCHEMA,
            "microtome": __version__,
            "task": self._task,
            "cases": list(self._cases.values()),
            "failed": self.failed,
            "notes": self.remarks.sentences,
        }
        part = self.out / f".{RECORD}.partial"
        write_json(part, content)
        part.replace(self.out / RECORD)
        self._written = time.monotonic()
        self._pause = PAUSE * (self._written - begin)


def _rows(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.partial")
    with part.open("w", newline="", encoding="utf-8") as file:
        file.write(text)
    part.replace(path)
