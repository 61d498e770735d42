"""Everything that a user may get wrong ends in one sentence, exit code 2, no traceback, and no half-written package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image as Picture
from safetensors.torch import save_file
from typer.testing import CliRunner

from microtome.cli import app
from tiny import PICTURES, VOLUMES, Spots, class_cohort, segmentation_cohort, volume_cohort

MODEL = f"{Path(__file__).parents[1] / 'tiny.py'}:spots"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a cohort and a pipeline."""
    segmentation_cohort(tmp_path / "cohort", cases=24)
    (tmp_path / "pipeline.json").write_text(PICTURES.to_json())
    return tmp_path


def refused(place: Path, *arguments: str, model: str = MODEL, cohort: str | None = None, out: str | None = None) -> str:
    """Run `compress`, check that it was refused in the way that is promised, and return what it said."""
    pipeline = ["--pipeline", str(place / "pipeline.json")] if (place / "pipeline.json").exists() else []
    target = out or str(place / "package")
    before = Path(target).exists()
    call = ["compress", model, cohort or str(place / "cohort"), "-o", target, *pipeline, "--threads", "1", *arguments]
    result = CliRunner().invoke(app, call)
    said = result.output
    assert result.exit_code == 2, said
    assert "Traceback" not in said
    assert "error:" in said
    assert Path(target).exists() == before
    return " ".join(said.split())


def test_missing_files(place: Path) -> None:
    assert "nowhere.py" in refused(place, model="nowhere.py:make")
    assert "nothing-here" in refused(place, cohort=str(place / "nothing-here"))
    assert "no-weights.pt" in refused(place, "--weights", str(place / "no-weights.pt"))


def test_weights_that_do_not_fit_name_the_keys(place: Path) -> None:
    weights = Spots().state_dict()
    weights["head.weight"] = torch.zeros(3, 8, 1, 1)
    weights["surplus.weight"] = torch.zeros(1)
    del weights["mix.bias"]
    save_file(weights, place / "weights.safetensors")
    said = refused(place, "--weights", str(place / "weights.safetensors"))
    assert "head.weight" in said
    assert "surplus.weight" in said
    assert "mix.bias" in said


def test_nan_weights(place: Path) -> None:
    weights = Spots().state_dict()
    weights["mix.weight"][0, 0, 0, 0] = float("nan")
    save_file(weights, place / "weights.safetensors")
    assert "mix.weight" in refused(place, "--weights", str(place / "weights.safetensors"))


def test_nan_in_an_image(tmp_path: Path) -> None:
    cohort = volume_cohort(tmp_path / "cohort")
    (tmp_path / "pipeline.json").write_text(VOLUMES.to_json())
    model = tmp_path / "net.py"
    model.write_text("from tiny import Spots\n\ndef make():\n    return Spots(3)\n")
    for file in sorted((cohort / "imagesTr").iterdir()):
        image = nibabel.load(file)
        array = np.asarray(image.dataobj).copy()
        array[0, 0, 0] = np.nan
        nibabel.save(nibabel.Nifti1Image(array, image.affine), file)
    assert "NaN" in refused(tmp_path, model=f"{model}:make")


def test_mask_of_another_shape(place: Path) -> None:
    for file in (place / "cohort" / "masks").iterdir():
        Picture.fromarray(np.zeros((20, 20), np.uint8)).save(file)
    said = refused(place)
    assert "20" in said
    assert "32" in said


def test_mask_of_another_affine(tmp_path: Path) -> None:
    cohort = volume_cohort(tmp_path / "cohort")
    (tmp_path / "pipeline.json").write_text(VOLUMES.to_json())
    model = tmp_path / "net.py"
    model.write_text("from tiny import Spots\n\ndef make():\n    return Spots(3)\n")
    for file in (cohort / "labelsTr").iterdir():
        image = nibabel.load(file)
        moved = np.array(image.affine)
        moved[:3, 3] += 7
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), moved), file)
    said = refused(tmp_path, model=f"{model}:make")
    assert "labelsTr" in said
    assert "mm" in said


@pytest.mark.parametrize("suffix", [".png", ".nii.gz", ".npz"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    if suffix == ".png":
        cohort = segmentation_cohort(tmp_path / "cohort", cases=24)
        files, model = list((cohort / "images").iterdir()), MODEL
        (tmp_path / "pipeline.json").write_text(PICTURES.to_json())
    elif suffix == ".nii.gz":
        cohort = volume_cohort(tmp_path / "cohort")
        files = list((cohort / "imagesTr").iterdir())
        (tmp_path / "net.py").write_text("from tiny import Spots\n\ndef make():\n    return Spots(3)\n")
        model = f"{tmp_path / 'net.py'}:make"
        (tmp_path / "pipeline.json").write_text(VOLUMES.to_json())
    else:
        cohort = tmp_path / "tinymnist.npz"
        rng = np.random.default_rng(0)
        arrays = {f"{s}_images": rng.integers(0, 255, (20, 28, 28), np.uint8) for s in ("train", "val", "test")}
        labels = {f"{s}_labels": (np.arange(20) % 2)[:, None] for s in ("train", "val", "test")}
        np.savez(cohort, **arrays, **labels)
        files, model = [cohort], MODEL
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
    said = refused(tmp_path, model=model, cohort=str(cohort))
    assert suffix in said
    assert "truncated" in said or "broken" in said or "damaged" in said, said


def test_one_class_only(tmp_path: Path) -> None:
    class_cohort(tmp_path / "cohort", classes=("only",))
    assert "class" in refused(tmp_path)


def test_no_patients_left(place: Path) -> None:
    assert "patient" in refused(place, "--patient-pattern", "(person)").lower()


def test_model_that_cannot_be_captured_names_the_line(place: Path) -> None:
    model = place / "odd.py"
    model.write_text(
        "import torch\nfrom torch import nn\n\n\nclass Odd(nn.Module):\n    def forward(self, x):\n"
        "        if x.mean() > 0:\n            return torch.cat([x, -x], 1)\n        return torch.cat([-x, x], 1)\n"
    )
    said = refused(place, model=f"{model}:Odd")
    assert "odd.py:7" in said


def test_operator_that_the_target_lacks_names_the_layer(place: Path) -> None:
    model = place / "bessel.py"
    model.write_text(
        "import torch\nfrom torch import nn\n\n\nclass Ring(nn.Module):\n    def forward(self, x):\n"
        "        return torch.special.bessel_j0(x)\n\n\ndef make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), Ring(), nn.Conv2d(4, 2, 1))\n"
    )
    said = refused(place, model=f"{model}:make")
    assert "layer 1" in said
    assert "bessel" in said


def test_target_that_is_not_installed_names_the_extra(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "microtome[onnxruntime]" in refused(place, "--target", "onnxruntime")


def test_unknown_options(place: Path) -> None:
    assert "openvino" in refused(place, "--target", "abacus")
    assert "int8" in refused(place, "--recipe", "magic")
    assert "mse" in refused(place, "--observer", "crystal")
    assert "weight_bits" in refused(place, "--set", "quantize.weight_bit=4")
    assert "fold" in refused(place, "--set", "finetune.steps=4")
    assert "METHOD.FIELD=VALUE" in refused(place, "--set", "quantize")
    assert "whole number" in refused(place, "--weight-bits", "1", "--set", "quantize.weight_bits=few")
    assert "inspect" in refused(place, "--skip", "no.such.layer")
    assert "dice" in refused(place, "--metric", "auroc")
    assert "format" in refused(place, "--format", "zip").lower()


def test_output_that_cannot_be_written(place: Path) -> None:
    file = place / "a-file"
    file.write_text("in the way")
    assert "a-file" in refused(place, out=str(file / "package"))
    full = place / "taken"
    full.mkdir()
    (full / "precious").write_text("keep me")
    assert "already exists" in refused(place, out=str(full))
    assert (full / "precious").read_text() == "keep me"


def test_full_disk_keeps_what_is_finished(place: Path) -> None:
    disk = place / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        assert "full" in refused(place, out=str(disk / "package"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
