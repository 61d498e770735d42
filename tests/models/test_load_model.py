import json
import sys
from typing import Any

import pytest
import torch
from torch import nn

from microtome.errors import CaptureError, ModelError, OptionError, ReadError, WeightsError
from microtome.graph import pt2
from microtome.graph.capture import capture
from microtome.medical.pipeline import Pipeline
from microtome.models import load_model

SHAPE = (1, 8, 8)
CODE = """
from torch import nn
from parts import block

class Net(nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.enter = block(width)
    def forward(self, x):
        return self.enter(x)

def factory():
    return Net(3)

instance = Net()

class Builders:
    @staticmethod
    def wide():
        return Net(5)

def fails():
    widths = []
    return Net(widths[0])

def from_monai():
    from nowhere_to_be_found import UNet
    return UNet()

def needs(width, depth):
    return Net(width)

def number():
    return 3

def branching():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x
    return Branching()
"""
PARTS = "from torch import nn\n\ndef block(width):\n    return nn.Conv2d(1, width, 3, padding=1)\n"
PIPELINE = Pipeline(task="segmentation", classes=("background", "lesion"), size=(16, 16))


@pytest.fixture
def code(tmp_path, monkeypatch):
    before = set(sys.modules)
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "net.py").write_text(CODE)
    (folder / "parts.py").write_text(PARTS)
    yield folder / "net.py"
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def width(loaded):
    return int(loaded.network(torch.zeros(1, *loaded.network.shape)).shape[1])


@pytest.mark.parametrize(("name", "expected"), [("factory", 3), ("Net", 2), ("instance", 2), ("Builders.wide", 5)])
def test_a_factory_a_class_and_a_module_in_a_file(code, name, expected):
    path_before = list(sys.path)
    loaded = load_model(f"{code}:{name}", input_shape=SHAPE)
    assert width(loaded) == expected
    assert (loaded.title, loaded.files, loaded.pipeline) == ("Net", (code,), None)
    assert any("No weights file" in note for note in loaded.notes)
    assert sys.path == path_before


def test_a_module_by_its_dotted_name(code, monkeypatch):
    monkeypatch.chdir(code.parent)
    loaded = load_model("net:factory", input_shape=SHAPE)
    assert width(loaded) == 3
    assert loaded.files == (code,)


def test_files_of_the_same_name_in_two_folders_do_not_mix(code, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "net.py").write_text(CODE)
    (other / "parts.py").write_text(PARTS.replace("1, width", "1, 2 * width"))
    assert width(load_model(f"{code}:factory", input_shape=SHAPE)) == 3
    assert width(load_model(f"{other / 'net.py'}:factory", input_shape=SHAPE)) == 6
    assert width(load_model(f"{code}:factory", input_shape=SHAPE)) == 3


@pytest.mark.parametrize(
    ("name", "problem", "hint"),
    [
        (
            "fails",
            r"fails, at net\.py:24 \(return Net\(widths\[0\]\)\): IndexError: list index out of range",
            "Correct",
        ),
        ("from_monai", r"at net\.py:27 .*No module named 'nowhere_to_be_found'", "brings nowhere_to_be_found"),
        ("needs", r"needs arguments \(width, depth\)", "without arguments"),
        ("number", "returns int, no torch.nn.Module", "Return the network"),
        ("factor", "has no factor", "factory"),
    ],
)
def test_errors_in_the_users_code_name_its_line(code, name, problem, hint):
    with pytest.raises(ModelError, match=problem) as caught:
        load_model(f"{code}:{name}", input_shape=SHAPE)
    assert hint in caught.value.hint


def test_a_network_that_cannot_be_captured_names_its_line(code):
    with pytest.raises(CaptureError, match=r"Branching at net\.py:39 \(return x if x\.sum\(\) > 0 else -x\)"):
        load_model(f"{code}:branching", input_shape=SHAPE)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import torch\ndef factory(:\n", r"at broken\.py:2 \(def factory\(:\): SyntaxError"),
        ("import sys\nsys.exit('usage: train.py')\n", r"at broken\.py:2 .*SystemExit: usage"),
        ("raise ValueError('no data')\n", r"at broken\.py:1 .*ValueError: no data"),
    ],
)
def test_a_file_that_cannot_be_imported_leaves_nothing_behind(tmp_path, text, problem):
    (tmp_path / "broken.py").write_text(text)
    modules, path = set(sys.modules), list(sys.path)
    with pytest.raises(ModelError, match=problem):
        load_model(f"{tmp_path / 'broken.py'}:factory", input_shape=SHAPE)
    assert not [name for name in set(sys.modules) - modules if name.startswith("broken")]
    assert sys.path == path


def test_a_missing_module_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"There is no Python module nowhere\.") as caught:
        load_model("nowhere.models:unet", input_shape=SHAPE)
    assert "Install" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "problem", "hint"),
    [
        ("missing.py:unet", "missing.py does not exist", "file.py:factory"),
        ("missing.pt2", "missing.pt2 does not exist", "bundle"),
        ("nothing", "neither a file nor a folder nor module:factory", "package.module:factory"),
        ("weights.pt", "is empty", "again"),
        ("net.py", "does not say what builds the network", "net.py:factory"),
        ("model.onnx", "truncated or no ONNX", "again"),
        ("model.what", "is no model that microtome reads", ".pt2"),
        ("empty", "is no model", "package folder"),
        ("package", "a package without network.pt2", "package folder"),
    ],
)
def test_what_is_no_model_is_refused_with_the_accepted_forms(tmp_path, name, problem, hint):
    for file in ("weights.pt", "net.py", "model.onnx"):
        (tmp_path / file).touch()
    (tmp_path / "model.what").write_text("what")
    (tmp_path / "empty").mkdir()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "result.json").write_text("{}")
    with pytest.raises(ReadError, match=problem) as caught:
        load_model(tmp_path / name, input_shape=SHAPE)
    assert hint in caught.value.hint


def test_the_shape_comes_from_the_argument_then_the_pipeline():
    module = nn.Conv2d(1, 2, 3, padding=1)
    assert load_model(module, input_shape=(1, 24, 24), pipeline=PIPELINE).network.shape == (1, 24, 24)
    assert load_model(module, pipeline=PIPELINE).network.shape == (1, 16, 16)
    free = Pipeline(task="segmentation", classes=("background", "lesion"))
    assert load_model(module, pipeline=free).network.shape == (1, 64, 64)
    coarse = Pipeline(task="segmentation", classes=("background", "lesion"), divisible=48)
    assert load_model(module, pipeline=coarse).network.shape == (1, 96, 96)
    with pytest.raises(OptionError, match="input shape of Conv2d is not known") as caught:
        load_model(module)
    assert "--input-shape C,H,W" in caught.value.hint


def test_the_module_that_is_passed_stays_as_it_is(tmp_path):
    module = nn.Conv2d(1, 2, 3, padding=1)
    before = module.weight.clone()
    torch.save(nn.Conv2d(1, 2, 3).state_dict(), tmp_path / "w.pt")
    loaded = load_model(module, weights=tmp_path / "w.pt", input_shape=SHAPE)
    assert torch.equal(module.weight, before)
    assert not torch.equal(loaded.network.tensor("weight"), before)
    assert loaded.files == (tmp_path / "w.pt",)


def test_nan_in_the_module_is_refused():
    module = nn.Conv2d(1, 2, 3)
    with torch.no_grad():
        module.bias[0] = float("nan")
    with pytest.raises(WeightsError, match="NaN or infinite weights in bias"):
        load_model(module, input_shape=SHAPE)


def test_an_unknown_device_is_refused():
    with pytest.raises(OptionError, match="device gpu cannot be used") as caught:
        load_model(nn.Conv2d(1, 2, 3), input_shape=SHAPE, device="gpu")
    assert "--device cpu" in caught.value.hint


def test_a_pt2_with_the_pipeline_beside_it(tmp_path):
    path = tmp_path / "unet.pt2"
    pt2.save(capture(nn.Conv2d(1, 2, 3, padding=1), SHAPE), path)
    assert load_model(path).pipeline is None
    assert load_model(path).files == (path,)
    (tmp_path / "pipeline.json").write_text(PIPELINE.to_json())
    loaded = load_model(path)
    assert (loaded.pipeline, loaded.title, loaded.network.shape) == (PIPELINE, "unet", (1, 16, 16))
    assert loaded.files == (path, tmp_path / "pipeline.json")
    other = Pipeline(task="segmentation", classes=("background", "x"))
    assert load_model(path, pipeline=other).pipeline == other
    with pytest.raises(OptionError, match="has its own weights"):
        load_model(path, weights=path)


def test_a_pt2_of_a_fixed_size_refuses_another(tmp_path):
    path = tmp_path / "fixed.pt2"
    pt2.save(capture(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), SHAPE), path)
    with pytest.raises(OptionError, match="takes inputs of shape 1×8×8, not 1×16×16"):
        load_model(path, input_shape=(1, 16, 16))


def test_our_own_package_can_be_loaded_again(tmp_path):
    folder = tmp_path / "package"
    folder.mkdir()
    pt2.save(capture(nn.Conv2d(1, 2, 3, padding=1), SHAPE), folder / "network.pt2")
    (folder / "pipeline.json").write_text(PIPELINE.to_json())
    (folder / "result.json").write_text(json.dumps({"schema": 1}))
    loaded = load_model(str(folder))
    assert (loaded.title, loaded.pipeline) == ("package", PIPELINE)


def several(**more: Any) -> Pipeline:
    """A pipeline for a network of several outputs."""
    return Pipeline("segmentation", ("background", "spot"), size=(8, 8), **more)


class Supervised(nn.Module):
    """Returns features first, and takes the image by name."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, weight: float = 1.0, image: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        assert image is not None
        features = torch.relu(self.enter(image))
        return {"features": features, "scores": self.head(features) * weight}


def test_the_pipeline_names_input_and_output():
    module = Supervised().eval()
    loaded = load_model(module, pipeline=several(input="image", output="scores"))
    assert [port.name for port in loaded.network.inputs] == ["image"]
    assert [port.name for port in loaded.network.outputs] == ["scores"]
    assert not loaded.notes
    x = torch.randn(1, *SHAPE)
    torch.testing.assert_close(loaded.network(x), module(image=x)["scores"])
    with pytest.raises(CaptureError, match="no output 'logits'"):
        load_model(module, pipeline=several(input="image", output="logits"))
    with pytest.raises(CaptureError, match="no input 'picture'"):
        load_model(module, pipeline=several(input="picture", output="scores"))


def test_the_pipeline_names_the_output_of_a_file(tmp_path):
    network = capture(Supervised().eval(), {"image": SHAPE}, keep=("features", "scores"))
    pt2.save(network, tmp_path / "ours.pt2")
    program = torch.export.export(Supervised().eval(), (), {"image": torch.zeros(1, *SHAPE)})
    torch.export.save(program, tmp_path / "theirs.pt2")
    x = torch.randn(1, *SHAPE)
    for name in ("ours", "theirs"):
        source = str(tmp_path / f"{name}.pt2")
        assert load_model(source).network.outputs[0].name == ("features" if name == "ours" else "scores")
        chosen = load_model(source, pipeline=several(output="scores")).network
        assert [port.name for port in chosen.outputs] == ["scores"]
        assert chosen(x).shape == (1, 2, 8, 8)
        with pytest.raises(CaptureError, match="no output 'logits'"):
            load_model(source, pipeline=several(output="logits"))
        with pytest.raises(OptionError, match="has no input 'picture'"):
            load_model(source, pipeline=several(input="picture"))


class Prior(nn.Module):
    """The image is the second input."""

    def forward(self, prior: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([image - prior, image], 1)


@pytest.mark.parametrize("named", [True, False])
def test_the_image_may_be_any_input_of_a_file(tmp_path, named):
    examples = {"prior": torch.zeros(1, *SHAPE), "image": torch.zeros(1, *SHAPE)}
    torch.export.save(torch.export.export(Prior().eval(), (), examples), tmp_path / "prior.pt2")
    pipeline = several(inputs={"prior": {"images": "before"}}, **({"input": "image"} if named else {}))
    network = load_model(str(tmp_path / "prior.pt2"), pipeline=pipeline).network
    assert [port.name for port in network.inputs] == ["image", "prior"]
    x = {"image": torch.randn(1, *SHAPE), "prior": torch.randn(1, *SHAPE)}
    torch.testing.assert_close(network(x), Prior()(**x))
    pt2.save(network, tmp_path / "ours.pt2")
    torch.testing.assert_close(load_model(str(tmp_path / "ours.pt2"), pipeline=pipeline).network(x), Prior()(**x))
    with pytest.raises(OptionError, match=r"which input of Prior takes the image is not clear|no input left"):
        load_model(str(tmp_path / "prior.pt2"), pipeline=several(inputs={n: {"images": n} for n in ("prior", "image")}))
