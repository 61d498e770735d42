"""nnU-Net's results folders: every kind is read, and predicts what nnU-Net predicts."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nnunet_folders import KINDS, make_folder, make_images, plans_of

from microtome.errors import MicrotomeError, OptionError, ReadError, SplitError, WeightsError
from microtome.medical.cohort import load_cohort
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.medical.read import read_image, read_mask
from microtome.medical.stream import segment_streamed
from microtome.medical.trained_on import evaluating_unseen
from microtome.models import Part, Wanted, load_model
from microtome.models.sources.nnunet import Read, read_results
from microtome.tasks import task

CASCADES = ("cascade",)  # they take more than the image
BROKEN = ("old residual plans",)  # nnU-Net 2.8 looks for their network in a module that is gone


def read(path: Path, fold: str | None = None, configuration: str | None = None) -> Read:
    """Read a folder without capturing its network, which takes longer."""
    return read_results(path, Wanted(part=Part(fold=fold, configuration=configuration)))


def predicted(
    loaded: Read, files: list[Path], pipeline: Pipeline | None = None, previous: np.ndarray | None = None
) -> np.ndarray:
    """Return the label map that the network gives an image, perhaps beside that of an earlier stage."""
    pipeline = pipeline or loaded.pipeline
    assert pipeline is not None

    def stream(batches: Any) -> Any:
        for x in batches:
            with torch.no_grad():
                yield loaded.module(torch.from_numpy(np.ascontiguousarray(x))).numpy()

    image = read_image(files)
    if previous is not None:
        image = replace(image, inputs={"previous_stage": previous})
    found = segment_streamed(stream, prepare(image, pipeline), pipeline)
    return task("segmentation").label_map(found, pipeline)


def dice(ours: np.ndarray, theirs: np.ndarray) -> float:
    labels = [n for n in np.unique(theirs) if n]
    pairs = [((ours == n) & (theirs == n), (ours == n), (theirs == n)) for n in labels]
    return min((2 * both.sum() / (one.sum() + other.sum()) for both, one, other in pairs), default=1.0)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_read(name: str, tmp_path: Path):
    kind = KINDS[name]
    loaded = read(make_folder(tmp_path, kind))
    pipeline = loaded.pipeline
    assert pipeline is not None
    slices = name == "2d"
    if name not in CASCADES:
        assert loaded.shape == (len(kind.channels), *(16,) * kind.dims)
    assert pipeline.patch == (16,) * kind.dims
    assert pipeline.mirror == tuple(axis + slices for axis in kind.mirror or ())
    assert pipeline.crop == "nonzero"
    assert pipeline.normalize_first
    assert len(loaded.notes) == (name in ("folds", "cascade"))
    if name not in CASCADES:
        (files,) = make_images(tmp_path / "images", kind)
        found = predicted(loaded, files)
        assert found.shape == read_image(files).spatial
        assert len(np.unique(found)) > 1


@pytest.mark.parametrize("name", [name for name in KINDS if name not in BROKEN])
def test_what_nnunet_itself_predicts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The judge is nnU-Net, where it is installed."""
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    kind = KINDS[name]
    folder = make_folder(tmp_path, kind)
    (files,) = make_images(tmp_path / "images", kind)
    previous = earlier_labels(files[0]) if name in CASCADES else None
    theirs = by_nnunet(folder, files, monkeypatch, mirror=bool(kind.mirror), previous=previous)
    ours = predicted(read(folder), files, previous=previous)
    assert np.mean(ours == theirs) >= (0.999 if name in CASCADES else 0.9999)


def earlier_labels(file: Path) -> np.ndarray:
    """A label map as an earlier stage might have made it."""
    values = np.asarray(nib.load(file).dataobj)
    return np.digitize(values, [60, 120]).astype(np.uint8)


def by_nnunet(
    folder: Path,
    files: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    *,
    mirror: bool,
    previous: np.ndarray | None = None,
) -> np.ndarray:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        use_mirroring=mirror, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(folder), use_folds=None)
    # nnU-Net keeps scores and weights in float16: random networks leave many scores closer together than that holds.
    monkeypatch.setattr(torch, "half", torch.float32)
    monkeypatch.setattr(torch, "float16", torch.float32)
    reader = predictor.plans_manager.image_reader_writer_class()
    array, properties = reader.read_images([str(file) for file in files])
    before = None if previous is None else previous.transpose()[None].astype(np.float32)
    labels = predictor.predict_single_npy_array(array, properties, before, None, False)
    out = folder / f"theirs{predictor.dataset_json['file_ending']}"
    reader.write_seg(labels, str(out), properties)
    monkeypatch.undo()
    return read_mask(out, None)


def test_what_a_pipeline_says_of_computed_tomography(tmp_path: Path):
    pipeline = read(make_folder(tmp_path, KINDS["ct and others"])).pipeline
    assert pipeline is not None
    assert pipeline.normalize == ("fixed", "minmax", "none")
    assert pipeline.window == ((-60.0, 180.0), None, None)
    assert (pipeline.mean, pipeline.std) == ((40.0, 0.0, 0.0), (55.0, 1.0, 1.0))


def test_axes_are_taken_as_stored_in_the_plans_order(tmp_path: Path):
    pipeline = read(make_folder(tmp_path / "a", KINDS["transposed"])).pipeline
    assert pipeline is not None
    assert (pipeline.orientation, pipeline.transpose) == (None, (0, 2, 1))
    assert pipeline.spacing == (2.0, 0.9, 1.1)
    turned = read(make_folder(tmp_path / "b", KINDS["reoriented"])).pipeline
    assert turned is not None
    assert (turned.orientation, turned.transpose) == ("SAR", None)


def test_what_is_captured_is_what_was_read(tmp_path: Path):
    folder = make_folder(tmp_path, KINDS["usual"])
    x = torch.randn(1, 1, 16, 16, 16)
    loaded, found = load_model(folder), read(folder)
    with torch.no_grad():
        assert torch.allclose(loaded.network(x), found.module(x), atol=1e-5)
    assert (loaded.title, loaded.pipeline) == ("Dataset900_Tiny 3d_fullres", found.pipeline)


def test_folds_are_averaged_or_chosen(tmp_path: Path):
    folder = make_folder(tmp_path, KINDS["folds"])
    x = torch.randn(1, 2, 16, 16, 16)
    with torch.no_grad():
        each = [read(folder, fold=fold).module(x) for fold in ("0", "1", "2")]
        mean = read(folder).module(x)
        two = read(folder, fold="0,2").module(x)
        one = read(folder / "fold_1").module(x)
        same = read(folder / "fold_1" / "checkpoint_final.pth").module(x)
    assert torch.allclose(mean, sum(each) / 3, atol=1e-5)
    assert torch.allclose(two, (each[0] + each[2]) / 2, atol=1e-5)
    assert torch.equal(one, each[1])
    assert torch.equal(same, each[1])


def test_of_several_configurations_one_has_to_be_named(tmp_path: Path):
    make_folder(tmp_path, KINDS["usual"])
    make_folder(tmp_path, KINDS["2d"])
    with pytest.raises(OptionError, match="holds 2 results folders: nnUNetTrainer__nnUNetPlans__2d"):
        read(tmp_path / "Dataset900_Tiny")
    loaded = read(tmp_path / "Dataset900_Tiny", configuration="2d")
    assert loaded.pipeline is not None
    assert loaded.pipeline.slices == 1


def test_the_splits_say_what_was_trained_on(tmp_path: Path):
    folder = make_folder(tmp_path, KINDS["folds"])
    splits = [
        {"train": ["a", "b"], "val": ["c"]},
        {"train": ["c", "b"], "val": ["a"]},
        {"train": ["c", "a"], "val": ["b"]},
    ]
    (folder.parent / "splits_final.json").write_text(json.dumps(splits))
    assert read(folder, fold="1").trained_on == ("c", "b")
    assert set(read(folder).trained_on or ()) == {"a", "b", "c"}


def raw_folder(path: Path, count: int) -> Path:
    """A cohort as nnU-Net wants it."""
    images = make_images(path / "imagesTr", KINDS["usual"], count=count)
    (path / "labelsTr").mkdir()
    for k, (file,) in enumerate(images):
        image = nib.load(file)
        nib.save(
            nib.Nifti1Image((np.asarray(image.dataobj) > 60).astype(np.uint8), image.affine),
            path / "labelsTr" / f"case{k}.nii.gz",
        )
    names = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "liver": 1}, "numTraining": count}
    (path / "dataset.json").write_text(json.dumps({**names, "file_ending": ".nii.gz"}))
    return path


def test_only_what_was_not_trained_on_is_evaluated(tmp_path: Path):
    cohort = load_cohort(raw_folder(tmp_path / "raw", 6))
    found = evaluating_unseen(cohort, ["case0", "case1", "case2", "case5"])
    roles = {Path(cohort.key[case.id]).name.split("_")[0]: case.role for case in found.cases}
    assert {name for name, role in roles.items() if role == "train"} == {"case0", "case1", "case2", "case5"}
    assert set(roles.values()) <= {"train", "evaluation", "tuning"}
    assert not found.drawn
    with pytest.raises(SplitError, match="trained on every case"):
        evaluating_unseen(cohort, [f"case{k}" for k in range(6)])
    assert "None of the cases" in evaluating_unseen(cohort, ["other"]).notes[-1]


class Innocent:
    """What a pickle might run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (sys.exit, (3,))


def remove_all_but_largest_component_from_segmentation() -> None:
    """Called as nnU-Net's own is."""


def test_post_processing_is_read_and_nothing_in_it_is_run(tmp_path: Path):
    folder = make_folder(tmp_path, KINDS["usual"])
    file = folder / "postprocessing.pkl"
    steps = [remove_all_but_largest_component_from_segmentation] * 2
    file.write_bytes(pickle.dumps((steps, [{"labels_or_regions": [1, 2]}, {"labels_or_regions": 2}])))
    pipeline = read(folder).pipeline
    assert pipeline is not None
    assert [(step.step, step.labels, step.together) for step in pipeline.cleanup] == [
        ("keep_largest", (1, 2), True),
        ("keep_largest", (2,), True),
    ]
    file.write_bytes(pickle.dumps(([Innocent()], [{}])))
    with pytest.raises(ReadError, match="a step that is not known"):
        read(folder)
    file.write_bytes(b"no pickle")
    with pytest.raises(ReadError, match="cannot be read"):
        read(folder)


def _no_configurations(folder: Path) -> None:
    (folder / "plans.json").write_text(json.dumps({"plans_per_stage": {}, "num_stages": 1}))


def _another_class(folder: Path) -> None:
    plans = plans_of(KINDS["usual"])
    plans["configurations"]["base"]["architecture"]["network_class_name"] = "mine.networks.Transformer"
    (folder / "plans.json").write_text(json.dumps(plans))


def _other_widths(folder: Path) -> None:
    plans = plans_of(KINDS["usual"])
    plans["configurations"]["base"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 16]
    (folder / "plans.json").write_text(json.dumps(plans))


def _own_preprocessor(folder: Path) -> None:
    plans = plans_of(KINDS["usual"])
    plans["configurations"]["base"]["preprocessor_name"] = "MyPreprocessor"
    (folder / "plans.json").write_text(json.dumps(plans))


def _no_order(folder: Path) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"] = {"background": 0, "whole": [1, 2], "core": [2], "rest": [1]}
    (folder / "dataset.json").write_text(json.dumps(content))


def _cut_off(folder: Path) -> None:
    file = folder / "fold_0" / "checkpoint_final.pth"
    file.write_bytes(file.read_bytes()[:3000])


def _no_checkpoint(folder: Path) -> None:
    (folder / "fold_0" / "checkpoint_final.pth").unlink()


def _no_weights(folder: Path) -> None:
    torch.save({"weights": {}}, folder / "fold_0" / "checkpoint_final.pth")


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (_no_configurations, ReadError, "those of nnU-Net 1"),
        (_another_class, MicrotomeError, r"mine\.networks\.Transformer is not one of nnU-Net's own"),
        (_other_widths, WeightsError, "the trainer nnUNetTrainer may build its own"),
        (_own_preprocessor, OptionError, "MyPreprocessor is a preprocessor of its own"),
        (_no_order, OptionError, "no 'regions_class_order'"),
        (_cut_off, ReadError, "checkpoint_final"),
        (_no_checkpoint, ReadError, "no checkpoint of any fold"),
        (_no_weights, WeightsError, "no checkpoint of nnU-Net"),
    ],
)
def test_a_damaged_folder_is_one_sentence(damage: Any, kind: type, message: str, tmp_path: Path):
    folder = make_folder(tmp_path, KINDS["usual"])
    damage(folder)
    with pytest.raises(kind, match=message):
        read(folder)


def test_a_fold_that_is_missing_is_named(tmp_path: Path):
    folder = make_folder(tmp_path, KINDS["folds"])
    with pytest.raises(OptionError, match="no checkpoint of fold 4") as caught:
        read(folder, fold="4")
    assert "It has fold 0, fold 1, fold 2." in caught.value.hint


def test_a_trainer_that_nobody_knows_is_noted(tmp_path: Path):
    kind = replace(KINDS["usual"], trainer="nnUNetTrainerOurs")
    assert any("nnUNetTrainerOurs is not known" in note for note in read(make_folder(tmp_path, kind)).notes)
    epochs = replace(KINDS["usual"], trainer="nnUNetTrainer_250epochs")
    assert not read(make_folder(tmp_path / "known", epochs)).notes


REAL = {"A": 4, "B": 3, "C": 3, "E": 3}


@pytest.mark.parametrize("name", REAL)
def test_label_maps_of_the_real_folder(name: str, data: Path):
    """nnU-Net's own predictions for its own inputs."""
    nnunet = data / "nnunet"
    loaded = read(nnunet / "results" / "Dataset004_Hippocampus")
    assert loaded.pipeline is not None
    plain = replace(loaded.pipeline, mirror=())
    for file in sorted((nnunet / "predicted" / name).iterdir())[: REAL[name]]:
        place = data / "hippocampus" / "imagesTr" if name == "A" else nnunet / "inputs" / name
        stem = file.name.removesuffix(".nii.gz")
        image = place / (f"{stem}.nii.gz" if name == "A" else f"{stem}_0000.nii.gz")
        assert dice(predicted(loaded, [image], plain), np.asarray(nib.load(file).dataobj)) >= 0.998
