import copy
import importlib.util
import json
import sys

import pytest
import torch

from microtome.errors import MissingExtraError, ModelError, ReadError, WeightsError
from microtome.medical.pipeline import Pipeline
from microtome.models import load_model
from microtome.models.bundles.declared import Declared, kind_of, multiple_of
from microtome.models.bundles.translate import translate

monai_only = pytest.mark.skipif(importlib.util.find_spec("monai") is None, reason="MONAI is not installed")

METADATA = {
    "name": "Tiny spleen",
    "network_data_format": {
        "inputs": {"image": {"num_channels": 1, "spatial_shape": [16, 16, 16]}},
        "outputs": {
            "pred": {
                "type": "image",
                "format": "segmentation",
                "spatial_shape": [16, 16, 16],
                "channel_def": {"0": "background", "1": "spleen"},
            }
        },
    },
}
SETTINGS = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}
LOAD = [{"_target_": "LoadImaged", "keys": "image"}, {"_target_": "EnsureChannelFirstd", "keys": "image"}]
RANGE = {"_target_": "ScaleIntensityRanged", "a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1, "clip": True}
CONFIG = {
    "imports": ["$import os"],
    "bundle_root": ".",
    "device": "$torch.device('cpu')",
    "dims": 3,
    "evil": "$open('/tmp/must-not-exist', 'w')",
    "spacing": [1.5, 1.5, 2.0],
    "network_def": {"_target_": "UNet", **SETTINGS, "spatial_dims": "@dims"},
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            *LOAD,
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": "@spacing", "mode": "bilinear"},
            RANGE,
            {"_target_": "EnsureTyped", "keys": "image"},
        ],
    },
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 16], "overlap": 0.6},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "nearest_interp": False},
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        ],
    },
}


def write_bundle(folder, config=CONFIG, metadata=METADATA, name="inference.json"):
    from monai.networks.nets import UNet

    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (folder / "configs" / name).write_text(json.dumps(config))  # JSON is YAML as well
    network = UNet(**SETTINGS)
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return network.eval()


def translated(preprocessing, *, channels=1, dims=3, **changes):
    image = {"num_channels": channels, "spatial_shape": ["8*n"] * dims}
    config = {"preprocessing": {"transforms": preprocessing}, **changes.pop("config", {})}
    prediction = {**METADATA["network_data_format"]["outputs"]["pred"], **changes}
    made = translate(Declared(config, image, prediction))
    return made.pipeline, made.notes


@monai_only
@pytest.mark.parametrize("name", ["inference.json", "inference.yaml", "train.json"])
def test_a_bundle_gives_network_weights_and_pipeline(tmp_path, name):
    folder = tmp_path / "spleen"
    config = dict(CONFIG)
    if name == "train.json":  # there, evaluation is described in a part of its own
        config = {
            key: value for key, value in config.items() if key not in ("preprocessing", "inferer", "postprocessing")
        }
        config["train"] = {"fixed_transforms": CONFIG["preprocessing"]["transforms"]}
        config["validate"] = {
            "preprocessing": {"_target_": "Compose", "transforms": "%train#fixed_transforms"},
            "inferer": CONFIG["inferer"],
            "postprocessing": CONFIG["postprocessing"],
        }
    network = write_bundle(folder, config, name=name)
    loaded = load_model(folder)
    assert loaded.pipeline == Pipeline(
        task="segmentation",
        classes=("background", "spleen"),
        spatial_dims=3,
        orientation="RAS",
        spacing=(1.5, 1.5, 2.0),
        window=(-57.0, 164.0),
        normalize="minmax",
        align="centres",
        patch=(32, 32, 16),
        overlap=0.6,
        placement="stepwise",
        blending="constant",
    )
    assert loaded.notes == ()
    assert {step.verdict for step in loaded.steps} == {"translated", "harmless"}
    assert loaded.title == "Tiny spleen"
    assert [file.name for file in loaded.files] == ["metadata.json", name, "model.pt"]
    assert loaded.network.shape == (1, 32, 32, 16)
    x = torch.randn(1, 1, 32, 32, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded.network(x), network(x))


@monai_only
def test_only_the_network_definition_runs(tmp_path):
    folder = tmp_path / "bundle"
    witness = tmp_path / "ran"
    config = {**CONFIG, "evil": f"$open({str(witness)!r}, 'w')", "run": ["$@evil"]}
    config["preprocessing"] = {"_target_": "Compose", "transforms": [*LOAD, {"_target_": "@evil"}]}
    write_bundle(folder, config)
    load_model(folder)
    assert not witness.exists()


@monai_only
def test_the_argument_goes_before_what_the_bundle_declares(tmp_path):
    folder = tmp_path / "bundle"
    config = copy.deepcopy(CONFIG)
    config["preprocessing"]["transforms"].append({"_target_": "Flipd", "keys": "image"})
    write_bundle(folder, config)
    assert any("transform Flipd" in note for note in load_model(folder).notes)
    own = Pipeline(task="segmentation", classes=("a", "b"), spatial_dims=3, patch=(16, 16, 16))
    loaded = load_model(folder, pipeline=own)
    assert (loaded.pipeline, loaded.notes) == (own, ())
    assert loaded.network.shape == (1, 16, 16, 16)
    assert load_model(folder, input_shape=(1, 24, 24, 24)).network.shape == (1, 24, 24, 24)


@monai_only
def test_what_is_missing_or_broken_in_a_bundle_is_named(tmp_path):
    folder = tmp_path / "bundle"
    write_bundle(folder)
    (folder / "models" / "model.pt").rename(folder / "elsewhere.pt")
    with pytest.raises(ReadError, match=r"has no .*models/model\.pt"):
        load_model(folder)
    assert load_model(folder, weights=folder / "elsewhere.pt").files[-1].name == "elsewhere.pt"
    (folder / "configs" / "inference.json").write_text("{")
    with pytest.raises(ReadError, match=r"inference\.json is broken"):
        load_model(folder)
    (folder / "configs" / "metadata.json").unlink()
    with pytest.raises(ReadError, match=r"has no .*metadata\.json"):
        load_model(folder)


@monai_only
@pytest.mark.parametrize(
    ("definition", "problem"),
    [
        ({"_target_": "UNet", "spatial_dims": 3}, "cannot be built: .*missing"),
        ({"_target_": "NoSuchNet"}, "cannot be built: .*NoSuchNet"),
        ({"_target_": "monai.data.Dataset", "data": []}, "is Dataset, no torch.nn.Module"),
    ],
)
def test_a_network_definition_that_fails_is_a_model_error(tmp_path, definition, problem):
    write_bundle(tmp_path / "b", {**CONFIG, "network_def": definition})
    with pytest.raises(ModelError, match=problem):
        load_model(tmp_path / "b")


@monai_only
def test_weights_of_another_network_are_refused(tmp_path):
    definition = {**CONFIG["network_def"], "channels": [4, 16]}
    write_bundle(tmp_path / "b", {**CONFIG, "network_def": definition})
    with pytest.raises(WeightsError, match="of another shape"):
        load_model(tmp_path / "b")


def test_without_monai_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "monai.bundle", None)
    with pytest.raises(MissingExtraError, match=r"MONAI bundles .*microtome\[monai\]"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        ({"_target_": "ScaleIntensityd"}, {"normalize": "minmax"}),
        ({"_target_": "NormalizeIntensityd"}, {"normalize": "zscore"}),
        ({"_target_": "NormalizeIntensityd", "nonzero": True}, {"normalize": "zscore_nonzero"}),
        (
            {"_target_": "NormalizeIntensityd", "subtrahend": 100, "divisor": 50.0},
            {"normalize": "fixed", "mean": (100,), "std": (50.0,)},
        ),
        (
            {"_target_": "ScaleIntensityRanged", "a_min": -100, "a_max": 300, "b_min": -1, "b_max": 1, "clip": True},
            {"window": (-100.0, 300.0), "normalize": "minmax", "range": (-1.0, 1.0)},
        ),
        # x in [-100, 300] to [-1, 1] is (x - 100) / 200
        (
            {"_target_": "ScaleIntensityRanged", "a_min": -100, "a_max": 300, "b_min": -1, "b_max": 1},
            {"window": None, "normalize": "fixed", "mean": (100.0,), "std": (200.0,)},
        ),
        ({"_target_": "ScaleIntensityd", "minv": -1.0, "maxv": 1}, {"normalize": "minmax", "range": (-1.0, 1.0)}),
        (
            {"_target_": "ScaleIntensityRanged", "a_min": 0, "a_max": 255, "b_min": 0, "b_max": 1},
            {"window": None, "normalize": "fixed", "mean": (0.0,), "std": (255.0,)},
        ),
        (
            {
                "_target_": "ScaleIntensityRangePercentilesd",
                **{"lower": 1, "upper": 99, "b_min": 0, "b_max": 1, "clip": True},
            },
            {"percentiles": (1, 99), "normalize": "minmax"},
        ),
        ({"_target_": "monai.transforms.Resized", "spatial_size": [32, 32, 16]}, {"size": (32, 32, 16)}),
        ({"_target_": "CropForegroundd", "source_key": "image"}, {"crop": "foreground", "crop_threshold": 0.0}),
        ({"_target_": "DivisiblePadd", "k": 32}, {"divisible": 32}),
    ],
)
def test_transforms_become_fields(transform, expected):
    pipeline, notes = translated([*LOAD, transform])
    assert {name: getattr(pipeline, name) for name in expected} == expected
    assert notes == ()


@pytest.mark.parametrize(
    "transform",
    [
        {"_target_": "CenterSpatialCropd", "roi_size": [8, 8, 8]},
        {"_target_": "ScaleIntensityd", "minv": 1, "maxv": -1},
        {"_target_": "ScaleIntensityRanged", "a_min": 0, "a_max": 1, "b_min": 0, "clip": True},
        {"_target_": "ScaleIntensityd", "gamma": 2},
        {"_target_": "NormalizeIntensityd", "subtrahend": "$@data.mean()", "divisor": 1},
        {"_target_": "Resized", "spatial_size": [32, -1, 32]},
        {"_target_": "CropForegroundd", "select_fn": "$lambda x: x < 5"},
        {"_target_": "mine.LoadImaged"},
        {"_target_": "Orientationd", "axcodes": "$@codes()"},
        {"_target_": "scripts.Own"},
    ],
)
def test_what_cannot_be_translated_gets_a_note(transform):
    pipeline, notes = translated([*LOAD, transform])
    assert pipeline == translated(LOAD)[0]
    assert len(notes) == 1
    name = transform["_target_"].rpartition(".")[2]
    assert notes[0].startswith(f"the bundle's transform {name} is not in microtome's pipeline")
    assert notes[0].endswith("declare it with --pipeline")


def test_a_disabled_transform_is_left_out():
    assert translated([*LOAD, {"_target_": "Flipd", "_disabled_": True}])[1] == ()


def test_the_crop_after_a_window_keeps_what_lies_above_it():
    pipeline, notes = translated([*LOAD, RANGE, {"_target_": "CropForegroundd"}])
    assert (pipeline.crop, pipeline.crop_threshold, notes) == ("foreground", -57.0, ())


def test_intensities_may_come_before_the_grid_but_not_on_both_sides_of_it():
    resize = {"_target_": "Resized", "spatial_size": 32}
    pipeline, notes = translated([{"_target_": "ScaleIntensityd"}, resize])
    assert (pipeline.normalize_first, notes) == (True, ())
    pipeline, notes = translated([{"_target_": "ScaleIntensityd"}, resize, {"_target_": "NormalizeIntensityd"}])
    assert not pipeline.normalize_first
    assert notes[0].startswith("The bundle changes intensities before and after Resize")


def test_a_free_size_becomes_a_multiple_and_single_numbers_fit_all_axes():
    assert translated(LOAD)[0].divisible == 8
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": 32}
    pipeline, _ = translated(LOAD, config={"inferer": inferer})
    assert (pipeline.patch, pipeline.overlap, pipeline.divisible) == ((32, 32, 32), 0.25, 1)
    assert [multiple_of(size) for size in ("8*n", "*", "2**p*n", 96)] == [8, 1, 32, 1]


def test_sigmoid_with_overlapping_structures():
    post = {
        "transforms": [{"_target_": "Activationsd", "sigmoid": True}, {"_target_": "AsDiscreted", "threshold": 0.4}]
    }
    definition = {"0": "tumor core", "1": "whole tumor"}
    pipeline, notes = translated(LOAD, channel_def=definition, config={"postprocessing": post})
    assert pipeline.classes == ("background", "tumor core", "whole tumor")
    assert (pipeline.activation, pipeline.threshold) == ("sigmoid", 0.4)
    assert "may overlap" in notes[0]


def test_a_classifier_of_pictures():
    definition = {"0": "A", "1": "B", "2": "C"}
    changes = {"type": "probabilities", "format": "classes", "spatial_shape": [1, 1], "channel_def": definition}
    pipeline, notes = translated(
        [*LOAD, {"_target_": "Resized", "spatial_size": [64, 64]}], channels=3, dims=2, **changes
    )
    assert (pipeline.task, pipeline.classes, pipeline.size) == ("classification", ("A", "B", "C"), (64, 64))
    assert not pipeline.grayscale
    assert (pipeline.transpose, pipeline.antialias, pipeline.interpolation) == ((1, 0), False, "area")
    assert notes == ()


def test_channels_are_normalized_together_where_the_bundle_does_so():
    transform = {"_target_": "NormalizeIntensityd", "nonzero": True}
    assert translated([transform], channels=4)[0].together
    assert not translated([{**transform, "channel_wise": True}], channels=4)[0].together
    assert not translated([transform])[0].together


def test_without_classes_or_preprocessing_there_is_no_pipeline():
    pipeline, notes = translated(LOAD, channel_def={})
    assert pipeline is None
    assert "classes" in notes[-1]
    pipeline, notes = translated("$@make_transforms()")
    assert pipeline is None
    assert "cannot be read as data" in notes[0]


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("Spacingd", "Spacing"),
        ("SpacingD", "Spacing"),
        ("monai.transforms.SpacingDict", "Spacing"),
        ("CropForeground", "CropForeground"),
        ("CropForegroundd", "CropForeground"),
        ("DivisiblePad", "DivisiblePad"),
        ("DivisiblePadd", "DivisiblePad"),
    ],
)
def test_kinds_lose_their_suffix(target, kind):
    assert kind_of({"_target_": target}) == kind
