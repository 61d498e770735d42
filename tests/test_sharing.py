import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from sharing import made_once


def slowly(folder: Path) -> None:
    time.sleep(0.3)
    (folder / str(os.getpid())).touch()


def ask(root: Path) -> list[str]:
    return [file.name for file in made_once(root, "thing", slowly).iterdir()]


def test_two_processes_make_it_once(tmp_path: Path):
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:  # says so where a process dies
        first, second = pool.map(ask, [tmp_path] * 2)
    assert first == second
    assert len(first) == 1


def test_what_was_half_made_is_made_again(tmp_path: Path):
    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        made_once(tmp_path, "thing", fails)
    folder = made_once(tmp_path, "thing", lambda to: (to / "whole").touch())
    assert [file.name for file in folder.iterdir()] == ["whole"]
    assert made_once(tmp_path, "thing", fails) == folder
