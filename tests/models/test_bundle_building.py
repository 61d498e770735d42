"""How the network of a bundle is built: with what it refers to and nothing else, and what is said where that fails."""

import copy
import json

import pytest
import torch

pytest.importorskip("monai.bundle", reason="MONAI is not installed")

from monai.networks.nets import UNet

from microtome.errors import ModelError, OptionError, ReadError
from microtome.models import Part, load_model
from microtome.models.sources.bundle import declared_by, read_bundle
from microtome.terminal import inspect_table
from microtome.verbs.inspect import inspect

pytestmark = pytest.mark.slow

SETTINGS = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}
NAMES = {"0": "background", "1": "a"}
METADATA = {
    "network_data_format": {
        "inputs": {"image": {"num_channels": 1, "spatial_shape": ["16", "16"]}},
        "outputs": {"pred": {"format": "segmentation", "spatial_shape": ["16", "16"], "channel_def": NAMES}},
    }
}
CONFIG = {
    "network_def": {"_target_": "UNet", **SETTINGS},
    "preprocessing": {"transforms": [{"_target_": "ScaleIntensityd", "keys": "image"}]},
}


def bundle(folder, *, config=CONFIG, metadata=METADATA, weights="model.pt", **files):
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    for name, content in files.items():
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content))
    if weights:
        torch.save(UNet(**SETTINGS).state_dict(), folder / "models" / weights)
    return folder


def outputs(**changes):
    metadata = copy.deepcopy(METADATA)
    metadata["network_data_format"]["outputs"]["pred"] |= changes
    return metadata


def test_without_weights_it_can_be_looked_at_and_nothing_else(tmp_path, capsys):
    largest = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred"}
    after = [{"_target_": "AsDiscreted", "keys": "pred", "argmax": True}, largest]
    folder = bundle(tmp_path / "b", weights=None, config={**CONFIG, "postprocessing": {"transforms": after}})
    result = inspect(folder, target="reference")
    assert json.loads(json.dumps(result))["steps"] == result["steps"]  # what --json prints
    inspect_table(result)
    assert any("random weights" in note and "model.pt" in note for note in result["notes"])
    assert [step["verdict"] for step in result["steps"]] == ["translated"] * 3
    printed = capsys.readouterr().out
    assert "KeepLargestConnectedComponentd" in printed
    assert "translated" in printed
    with pytest.raises(ReadError, match=r"has no .*model\.pt"):
        load_model(folder)
    with pytest.raises(ReadError, match=r"has no .*else\.pt"):
        load_model(folder, weights=tmp_path / "else.pt", part=Part(untrained=True))
    torch.save(UNet(**SETTINGS).state_dict(), tmp_path / "mine.pt")
    assert load_model(folder, weights=tmp_path / "mine.pt").pipeline is not None


def test_the_weights_are_those_that_the_bundle_loads(tmp_path):
    loader = {"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/' + @name", "load_dict": {}}
    config = {**CONFIG, "name": "$'model.pt' if @high else 'model_low.pt'", "high": False, "loader": loader}
    folder = bundle(tmp_path / "b", config=config, weights="model_low.pt")
    assert load_model(folder).files[-1].name == "model_low.pt"
    high = bundle(tmp_path / "c", config={**config, "high": True}, weights="model_low.pt")
    with pytest.raises(ReadError, match=r"models/model\.pt"):
        load_model(high)  # not with other weights that happen to lie there


@pytest.mark.parametrize("there", [False, True])
def test_a_file_that_the_definition_reads_is_named(tmp_path, there):
    config = {
        "code_path": "$@bundle_root + '/models/search_code.pt'",
        "code": "$torch.load(@code_path, map_location=torch.device('cuda'))",
        "network_def": {"_target_": "UNet", **SETTINGS, "channels": "$[int(c) for c in @code['channels']]"},
        "preprocessing": CONFIG["preprocessing"],
    }
    folder = bundle(tmp_path / "b", config=config)
    if there:  # on a computer without CUDA it is loaded all the same
        torch.save({"channels": torch.tensor([4, 8])}, folder / "models" / "search_code.pt")
        assert read_bundle(folder).module is not None
        (folder / "models" / "search_code.pt").write_text("no such thing")
        with pytest.raises(
            ModelError, match="a file that it loads by code of its own \\('code'\\), which fails"
        ) as failed:
            read_bundle(folder)
        assert "file.py:factory" in failed.value.hint
    else:
        with pytest.raises(ReadError, match=r"search_code\.pt \('code_path'\), which is not there") as missing:
            read_bundle(folder)
        assert "Download the bundle whole" in missing.value.hint


def test_an_older_monai_is_named(tmp_path):
    config = {"network_def": {"_target_": "UNet", **SETTINGS, "img_size": 96}}
    folder = bundle(tmp_path / "b", config=config, metadata={**METADATA, "monai_version": "1.0.0"})
    with pytest.raises(ModelError, match="unexpected keyword argument 'img_size'") as failed:
        read_bundle(folder)
    assert "(MONAI 1.0.0; here is 1." in failed.value.hint


def test_imports_that_the_network_does_not_need_are_not_made(tmp_path):
    config = {
        **CONFIG,
        "imports": ["$import a_package_that_is_not_there", "$from numpy import prod as product"],
        "names": {"a": 1, "background": 0},
        "network_def": {
            "_target_": "UNet",
            **SETTINGS,
            "out_channels": "$len(@names)",
            "in_channels": "$int(product([1]))",
        },
    }
    assert read_bundle(bundle(tmp_path / "b", config=config)).module.out_channels == 2


def test_what_has_no_task_is_not_guessed(tmp_path):
    folder, words = bundle(tmp_path / "b", metadata=outputs(format="points")), "is points"
    loaded = load_model(folder)
    assert loaded.pipeline is None
    assert words in loaded.notes[-1]
    with pytest.raises(OptionError, match=words):
        load_model(folder, guess=lambda: pytest.fail("a guess"))


def test_an_output_that_denies_the_metadata_is_no_pipeline(tmp_path):
    folder = bundle(tmp_path / "b", metadata=outputs(format="classes"))
    loaded = load_model(folder)
    assert loaded.pipeline is None
    assert "metadata say that it is for classification" in loaded.notes[0]


def test_other_configs_are_looked_at_and_may_be_broken(tmp_path):
    train = {"steps": [{"_target_": "MapLabelValued", "keys": "label", "orig_labels": [7], "target_labels": [1]}]}
    folder = bundle(tmp_path / "b", train=train)
    (folder / "configs" / "evaluate.json").write_text("{")
    assert list(declared_by(folder).others) == ["inference.json", "train.json"]
    assert any("7→1, in train.json" in note for note in read_bundle(folder).translation.notes)
