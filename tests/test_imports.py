"""What an import loads: a hospital PC has no torch, and a command line must start at once."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import microtome

HEAVY = ("torch", "onnx", "onnxscript", "monai", "nncf")
PACKAGE = Path(microtome.__file__).parent


def modules_of(room: str) -> list[str]:
    found = pkgutil.walk_packages([str(PACKAGE / room.replace(".", "/"))], f"microtome.{room}.")
    return [f"microtome.{room}", *(module.name for module in found)]


def loaded_by(*modules: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter holds after the imports."""
    code = "import sys\n" + "".join(f"import {name}\n" for name in modules)
    code += "print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_the_package_alone_loads_nothing_heavy():
    assert not loaded_by("microtome") & {*HEAVY, "openvino", "onnxruntime", "pydicom", "nibabel", "scipy", "matplotlib"}


@pytest.mark.parametrize("room", ["medical", "clinical", "report"])
def test_rooms_that_work_without_torch(room: str):
    assert not loaded_by(*modules_of(room)) & {*HEAVY, "openvino", "onnxruntime"}


def test_asking_what_models_look_like_needs_no_torch():
    assert not loaded_by(*modules_of("models.sources"), "microtome.models") & {*HEAVY, "nibabel"}


def test_the_command_line_starts_without_what_takes_long():
    loaded = loaded_by("microtome.cli", "microtome.recipes.files")
    assert not loaded & {*HEAVY, "openvino", "onnxruntime", "scipy", "nibabel", "pydicom", "matplotlib"}


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_runtimes_that_work_without_torch(target: str):
    loaded = loaded_by("microtome.runtimes", "microtome.runtimes.base", f"microtome.runtimes.{target}")
    assert not loaded & {*HEAVY, target}  # the runtime itself is imported at its first use


@pytest.mark.parametrize(
    ("target", "suffix", "kind"), [("openvino", "model.xml", "ReadError"), ("onnxruntime", "model.onnx", "ReadError")]
)
def test_opening_a_session_does_not_load_torch(target: str, suffix: str, kind: str, tmp_path: Path):
    (tmp_path / suffix).write_bytes(b"broken")
    code = (
        f"import sys\nfrom pathlib import Path\nfrom microtome.errors import {kind}\n"
        f"from microtome.runtimes import runtime\n"
        f"try:\n    runtime({target!r}).open_session(Path(sys.argv[1]), threads=1, precision='f32')\n"
        f"except {kind}:\n    print('torch' in sys.modules, {target!r} in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / suffix)], capture_output=True, text=True, check=False
    )
    assert result.stdout.split() == ["False", "True"], result.stderr


def test_the_shared_types_and_errors_need_numpy_alone():
    assert not loaded_by("microtome.types", "microtome.errors") & {*HEAVY, "scipy", "pydicom", "nibabel", "sklearn"}
