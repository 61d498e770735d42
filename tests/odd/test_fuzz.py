"""A few hundred broken files of every format; `fuzz.py` beside this does as many as one likes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))
import fuzz
from fuzz import FORMATS, Format

from microtome.errors import ReadError

PROGRAM = Path(fuzz.__file__)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, whose memory is bounded."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


def test_only_our_errors_come_out():
    done = run("--mutations", "400", "--seed", "7")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["mutations"] >= 400
    assert (found["formats"], found["broke"]) == (len(FORMATS), 0)


class TestTheFuzzerItself:
    def test_it_tells_what_came_out(self, tmp_path, monkeypatch):
        def write(folder: Path) -> Path:
            (folder / "x").write_bytes(bytes(100))
            return folder / "x"

        def read(path: Path) -> None:
            if path.read_bytes() != bytes(100):
                raise KeyError("a traceback")

        monkeypatch.setitem(FORMATS, "mine", Format(write, read))
        found = fuzz.fuzz("mine", 20, 3, tmp_path / "work")
        assert len(found) > 10
        assert "KeyError" in found[0]
        assert list(tmp_path.glob("mine-3-*"))

    def test_our_own_errors_are_no_finding(self, tmp_path, monkeypatch):
        def refuse(*arguments: object) -> None:
            raise ReadError(f"{arguments} are damaged.")

        monkeypatch.setattr(fuzz, "read_image", refuse)
        monkeypatch.setattr(fuzz, "read_mask", refuse)
        assert fuzz.fuzz("png", 5, 0, tmp_path / "work") == []

    def test_a_seed_gives_the_same_again(self):
        content = bytes(range(256)) * 4
        one, other = (fuzz.mutate(content, np.random.default_rng([1, 2])) for _ in range(2))
        assert one == other != content

    @pytest.mark.parametrize("name", FORMATS)
    def test_what_is_broken_was_readable(self, tmp_path, name):
        """Or else nothing would be tested but that a file is refused."""
        path = FORMATS[name].write(tmp_path)
        if (path / "masks").is_dir():
            assert len(fuzz.load_cohort(path).classes) == 2
        else:
            assert fuzz.read_image([path], 0 if path.suffix == ".npz" else None).array.size
