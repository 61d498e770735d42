"""What lies beside a user's script: folders and files with names that other packages look for."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

CODE = "import microtome.medical.read, microtome.verbs.predict, pydicom.pixels; print('imported')"


@pytest.mark.skipif(
    importlib.util.find_spec("gdcm") is None, reason="python-gdcm, which looks for it, is not installed"
)
@pytest.mark.parametrize("before", ["", "import dl; ", "import microtome; "])
@pytest.mark.parametrize("name", ["dl", "DLFCN"])
def test_a_folder_of_a_name_that_gdcm_looks_for(tmp_path: Path, name: str, before: str) -> None:
    (tmp_path / name).mkdir()
    code = before.replace("dl", name) + CODE + f"; import {name}; print({name}.__path__)"
    script = tmp_path / "script.py"
    script.write_text(code.replace("; ", "\n"))
    done = subprocess.run([sys.executable, str(script)], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-1500:]
    assert done.stdout.startswith("imported")
    assert str(tmp_path / name) in done.stdout  # it is still the user's own
