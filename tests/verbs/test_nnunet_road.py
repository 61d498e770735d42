"""From an nnU-Net folder to a verdict, in one command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import microtome
from microtome.verbs.options import CompressOptions

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from nnunet_folders import KINDS, make_folder, make_images

pytestmark = pytest.mark.slow
TRAINED = ("case0", "case1", "case2")


def raw_folder(path: Path, count: int) -> Path:
    images = make_images(path / "imagesTr", KINDS["usual"], count=count)
    (path / "labelsTr").mkdir()
    for k, (file,) in enumerate(images):
        image = nib.load(file)
        mask = np.digitize(np.asarray(image.dataobj), [60, 120]).astype(np.uint8)
        nib.save(nib.Nifti1Image(mask, image.affine), path / "labelsTr" / f"case{k}.nii.gz")
    names = {"background": 0, "liver": 1, "tumour": 2}
    content = {"channel_names": {"0": "MRI"}, "labels": names, "numTraining": count, "file_ending": ".nii.gz"}
    (path / "dataset.json").write_text(json.dumps(content))
    return path


def test_only_unseen_cases_are_evaluated(tmp_path: Path):
    folder = make_folder(tmp_path / "results", KINDS["usual"])
    splits = [{"train": list(TRAINED), "val": ["case3", "case4"]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    cohort = raw_folder(tmp_path / "raw", 6)
    result = microtome.compress(folder, cohort, tmp_path / "package", options=CompressOptions(threads=1))
    assert len(result["cases"]) == 3
    notes = " ".join(result["notes"])
    assert "3 cases of this cohort, which are for training only; 3 that it has not seen are evaluated" in notes
    seen = microtome.evaluate(folder, cohort, tmp_path / "evaluation")
    assert len(seen["cases"]) == 3
    both = microtome.evaluate(tmp_path / "package", cohort, tmp_path / "both", parent=folder)
    assert len(both["cases"]) == 3
    predicted = microtome.predict(tmp_path / "package", [cohort / "imagesTr"], tmp_path / "out", threads=1)
    assert predicted["cases"] == 6
    assert sorted(file.name for file in (tmp_path / "out").glob("*.nii.gz")) == [f"case{k}.nii.gz" for k in range(6)]
