"""A package whose model files are in one coded file: opened from memory, checked like any other."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from microtome.entropy.container import read, write
from microtome.entropy.packages import CODED
from microtome.errors import ReadError
from microtome.files import sha256
from microtome.graph import pt2
from microtome.graph.coded import apart
from microtome.medical.pipeline import Pipeline
from microtome.models import load_model
from microtome.package import open_package
from microtome.runtimes import runtime
from networks import captured, images

TARGETS = ("openvino", "onnxruntime", "reference", "their_pkg.boxed")
PIPELINE = Pipeline("segmentation", ("background", "spot"), 3, 2, size=(16, 16), normalize="unit", activation="softmax")
NETWORK = "unet2d"


def plain(folder: Path) -> Path:
    """Write what `open_package` needs of a package with every target."""
    network = captured(NETWORK)
    targets = {}
    for name in TARGETS:
        module = runtime(name)
        place = folder / "targets" / name
        place.mkdir(parents=True)
        file = module.export(network, place)
        own = {
            "runtime": name,
            "file": file.name,
            "precision": "f32",
            "sha256": {part.name: sha256(part) for part in module.files(file)},
        }
        targets[name] = own
        (place / "result.json").write_text(json.dumps({"schema": 1, "target": name, "session": own}))
    (folder / "pipeline.json").write_text(PIPELINE.to_json())
    (folder / "result.json").write_text(json.dumps({"schema": 1, "target": "", "session": {}, "targets": targets}))
    pt2.save(network, folder / "network.pt2")
    return folder


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same package with files as they are, and coded."""
    folder, coded = (tmp_path_factory.mktemp(name) for name in ("plain", "coded"))
    plain(folder)
    files = {}
    for path in filter(Path.is_file, folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            (coded / name).parent.mkdir(parents=True, exist_ok=True)
            (coded / name).write_bytes(path.read_bytes())
        else:
            files[name] = path.read_bytes()
    files |= apart(captured(NETWORK), files["network.pt2"])
    (coded / CODED).write_bytes(write(files))
    return folder, coded


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_opens_and_computes_the_same(packages: tuple[Path, Path], target: str) -> None:
    x = images(captured(NETWORK).shape, 1)[0].numpy()
    one, other = (open_package(folder, target=target, threads=1).session for folder in packages)
    assert np.array_equal(one.run(x), other.run(x))
    assert one.inputs == other.inputs
    assert len(other.layer_runs(x)) == len(one.layer_runs(x)) > 0


def test_files_on_disk_are_gone_with_the_session(
    packages: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    opened = open_package(packages[1], target="their_pkg.boxed")
    (folder,) = tmp_path.iterdir()
    assert [file.name for file in folder.iterdir()] == ["model.box"]
    assert folder.stat().st_mode & 0o077 == 0
    del opened
    gc.collect()
    assert not any(tmp_path.iterdir())


def test_nothing_is_left_when_a_session_does_not_open(
    packages: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ReadError("it is broken.")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(runtime("their_pkg.boxed"), "open_session", fails)
    with pytest.raises(ReadError, match="broken"):
        open_package(packages[1], target="their_pkg.boxed")
    assert not any(tmp_path.iterdir())


def test_the_network_loads_from_either(packages: tuple[Path, Path]) -> None:
    one, other = (load_model(str(folder)).network for folder in packages)
    assert one.fingerprint() == other.fingerprint() == captured(NETWORK).fingerprint()
    x = images(one.shape, 1)[0]
    with torch.no_grad():
        assert torch.equal(one(x), other(x))


def test_it_opens_without_torch(packages: tuple[Path, Path]) -> None:
    program = (
        "import sys, microtome; "
        f"microtome.open_package({str(packages[1])!r}, target='openvino'); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def with_files(coded: Path, out: Path, files: dict[str, bytes]) -> Path:
    for path in filter(Path.is_file, coded.rglob("*")):
        (out / path.relative_to(coded)).parent.mkdir(parents=True, exist_ok=True)
        (out / path.relative_to(coded)).write_bytes(path.read_bytes())
    (out / CODED).write_bytes(write(files))
    return out


def test_a_file_that_was_not_measured_is_refused(packages: tuple[Path, Path], tmp_path: Path) -> None:
    files = read((packages[1] / CODED).read_bytes())
    name = "targets/openvino/model.bin"
    files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
    with pytest.raises(ReadError, match=r"model\.bin is not the file that was measured"):
        open_package(with_files(packages[1], tmp_path, files), target="openvino")


def test_a_file_that_is_missing_is_named(packages: tuple[Path, Path], tmp_path: Path) -> None:
    files = read((packages[1] / CODED).read_bytes())
    del files["targets/openvino/model.bin"]
    with pytest.raises(ReadError, match=r"has no model\.bin"):
        open_package(with_files(packages[1], tmp_path, files), target="openvino")


@pytest.mark.parametrize("change", ["truncated", "flipped", "empty"])
def test_a_damaged_file_is_refused(packages: tuple[Path, Path], tmp_path: Path, change: str) -> None:
    content = (packages[1] / CODED).read_bytes()
    middle = len(content) // 2
    damaged = {
        "truncated": content[:-100],
        "flipped": content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :],
        "empty": b"",
    }[change]
    with_files(packages[1], tmp_path, {"a": b"b"})
    (tmp_path / CODED).write_bytes(damaged)
    for opens in (lambda: open_package(tmp_path, target="openvino"), lambda: load_model(str(tmp_path))):
        with pytest.raises(ReadError, match=r"model\.coded"):
            opens()
