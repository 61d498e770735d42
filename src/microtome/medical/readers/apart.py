"""Readers written in C++ that may end their process on damaged data, in a process of their own."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from microtome.medical.readers import apart_program
from microtome.types import Array

Answer = tuple[dict[str, Any], Array]


class ReadApartError(Exception):
    """The reader refused the file, in its own words, or ended its process."""


class Apart:
    """A process that reads files. It is started for the first one, and anew when a file has ended it."""

    def __init__(self) -> None:
        """Begin without a process."""
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def read(self, reader: str, path: Path, **more: str) -> Answer:
        """Have a file read.

        Args:
            reader: a key of `apart_program.READERS`.
            path: the file.
            more: what else the reader wants.

        Returns:
            What it says beside the values, and the values.

        Raises:
            ReadApartError: the reader refused the file, or ended.
        """
        question = json.dumps({"reader": reader, "path": str(path.absolute()), **more}).encode() + b"\n"
        with self._lock:
            try:
                answer, content = self._asked(question)
            except BaseException as error:  # an answer that was not read to its end must not answer the next question
                self.end()
                if isinstance(error, (OSError, ValueError)):
                    raise ReadApartError("the reader ended") from error
                raise
        if "error" in answer:
            raise ReadApartError(answer["error"])
        return answer, np.frombuffer(content, answer["dtype"]).reshape(answer["shape"])

    def _asked(self, question: bytes) -> tuple[dict[str, Any], bytearray]:
        process = self._process = self._process or subprocess.Popen(
            [sys.executable, "-P", apart_program.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(question)
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        content = bytearray(answer.get("bytes", 0))
        if process.stdout.readinto(content) != len(content):  # type: ignore[attr-defined]
            raise ValueError("the answer ends too early")
        return answer, content

    def end(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def read(reader: str, path: Path, **more: str) -> Answer:
    """As `Apart.read`, in the one process that is kept, since starting it takes longer than reading most files."""
    return _kept(os.getpid()).read(reader, path, **more)


@functools.lru_cache(maxsize=1)
def _kept(process: int) -> Apart:
    """One for each process of ours, should it have forked."""
    apart = Apart()
    atexit.register(apart.end)
    return apart
