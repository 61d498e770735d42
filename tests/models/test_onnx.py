"""ONNX in: the same outputs, the same operators as captured directly, and what is wrong with a file in one sentence."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx_files import model, node, saved, weights
from torch import nn

from microtome import recipes
from microtome.errors import ModelError, OptionError, ReadError
from microtome.graph.capture import capture
from microtome.graph.quantizers import quantizers
from microtome.graph.quiet import quiet
from microtome.methods.base import Context
from microtome.models import load_model
from microtome.models.base import Wanted
from microtome.models.foreign.onnx_network import network_of
from microtome.runtimes import runtime

CLOSE = 1e-5  # of outputs of a few layers in float32


def operators(network):
    nodes = network.graph_module.graph.nodes
    return [str(n.target) for n in nodes if n.op == "call_function" and "aten" in str(n.target)]


class Small(nn.Module):
    """What segmentation networks are made of."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.act = nn.PReLU(8)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.cat([x, self.up(self.act(self.down(x)))], 1))


@pytest.mark.slow
def test_what_pytorch_wrote_is_what_is_captured_directly(tmp_path):
    torch.manual_seed(0)
    module, shape, path = Small().eval(), (3, 16, 16), tmp_path / "small.onnx"
    dims = ({0: torch.export.Dim.DYNAMIC},)
    with torch.no_grad(), quiet():
        example = (torch.zeros(2, *shape),)
        torch.onnx.export(module, example, str(path), dynamo=True, dynamic_shapes=dims, verbose=False)
    loaded = load_model(path)
    direct = capture(module, shape)
    x = torch.randn(3, *shape)
    assert torch.allclose(loaded.network(x), direct(x), atol=CLOSE)
    assert operators(loaded.network) == operators(direct)
    assert [layer.name for layer in loaded.network.layers] == ["first", "down", "up", "head"]
    assert loaded.network.inputs == direct.inputs
    assert any("Checked against ONNX Runtime" in note for note in loaded.notes)
    context = Context([x], capabilities=runtime("openvino").capabilities())
    made = [recipes.run(recipes.read("int8"), network, context) for network in (loaded.network, direct)]
    assert len(list(quantizers(made[0]))) == len(list(quantizers(made[1]))) > 4


def conv(name="y", source="x", **attributes):
    return node("Conv", [source, "w", "b"], name, **attributes)


CONV = {"w": weights(4, 3, 3, 3), "b": weights(4)}


def test_sizes_that_are_written_for_a_batch_of_one_become_those_of_any(tmp_path):
    nodes = [
        conv("c", pads=[1, 1, 1, 1]),
        node("Reshape", ["c", "flat"], "r"),
        node("Softmax", ["r"], "s", axis=1),
        node("Reshape", ["s", "back"], "y"),
    ]
    sizes = {"flat": np.array([1, 4, 64]), "back": np.array([1, 4, 8, 8])}
    network = load_model(saved(tmp_path / "m.onnx", model(nodes, CONV | sizes, (1, 3, 8, 8)))).network
    assert network.dynamic[0]
    x = torch.randn(3, 3, 8, 8)
    assert torch.allclose(network(x), torch.cat([network(one[None]) for one in x]), atol=CLOSE)


def test_a_graph_that_mixes_the_images_of_a_batch_keeps_a_batch_of_one(tmp_path):
    nodes = [
        conv("c", pads=[1, 1, 1, 1]),
        node("Transpose", ["c"], "t", perm=[1, 0, 2, 3]),
        node("Reshape", ["t", "wide"], "r"),
        node("Softmax", ["r"], "s", axis=1),
        node("Reshape", ["s", "back"], "y"),
    ]
    sizes = {"wide": np.array([4, 64]), "back": np.array([1, 4, 8, 8])}
    network = load_model(saved(tmp_path / "m.onnx", model(nodes, CONV | sizes, (1, 3, 8, 8)))).network
    assert not network.dynamic[0]


def test_channels_last_come_out_first_and_without_transpositions(tmp_path):
    to_first, to_last = [0, 3, 1, 2], [0, 2, 3, 1]
    nodes = [
        node("Transpose", ["x"], "a", perm=to_first),
        conv("b1", "a", pads=[1, 1, 1, 1]),
        node("Transpose", ["b1"], "c", perm=to_last),
        node("Mul", ["c", "scale"], "d"),
        node("Add", ["d", "shift"], "e"),
        node("Relu", ["e"], "f"),
        node("Concat", ["f", "c"], "g", axis=3),
        node("Softmax", ["g"], "y", axis=3),
    ]
    constants = CONV | {"scale": weights(4, seed=1), "shift": weights(4, seed=2)}
    made = model(nodes, constants, ("n", 8, 8, 3))
    loaded = load_model(saved(tmp_path / "m.onnx", made))
    assert loaded.network.shape == (3, 8, 8)
    assert not any("permute" in name for name in operators(loaded.network))
    assert any("channels last" in note for note in loaded.notes)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    wanted = onnx.reference.ReferenceEvaluator(made).run(None, {"x": x})[0]
    found = loaded.network(torch.from_numpy(x.transpose(0, 3, 1, 2)))
    assert np.allclose(found.numpy(), wanted.transpose(0, 3, 1, 2), atol=CLOSE)


def test_a_layout_that_cannot_be_told_is_refused(tmp_path):
    path = saved(tmp_path / "m.onnx", model([node("Sigmoid", ["x"], "y")], {}, ("n", 64, 64, 64, 2)))
    with pytest.raises((ModelError, OptionError)):
        load_model(path, input_shape=(64, 64, 64, 2))


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """A convolution between grids: input 8 bits unsigned, weight 8 bits per channel, bias 32 bits."""
    rng = np.random.default_rng(0)
    constants = {
        "q": rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
        "ws": rng.uniform(0.001, 0.01, 4).astype(np.float32),
        "wz": np.zeros(4, np.int8),
        "qb": rng.integers(-1000, 1000, 4).astype(np.int32),
        "s": np.float32(0.03),
        "z": np.uint8(120),
        "s2": np.float32(0.05),
        "z2": np.uint8(7),
    }
    constants["bs"] = (constants["ws"] * constants["s"]).astype(np.float32)
    constants["bz"] = np.zeros(4, np.int32)
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], "xq"),
        node("DequantizeLinear", ["xq", "s", "z"], "xd"),
        node("DequantizeLinear", ["q", "ws", "wz"], "w", axis=0),
        node("DequantizeLinear", ["qb", "bs", "bz"], "b", axis=0),
        conv("c", "xd", pads=[1, 1, 1, 1]),
        node("QuantizeLinear", ["c", "s2", "z2"], "cq"),
        node("MaxPool", ["cq"], "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("DequantizeLinear", ["p", "s2", "z2"], "y"),
    ]
    return saved(tmp_path_factory.mktemp("q") / "q.onnx", model(nodes, constants)), constants


def test_grids_of_a_quantized_file_are_taken_as_they_are(quantized):
    path, constants = quantized
    network = load_model(path, input_shape=(3, 8, 8)).network
    grids = {(q.kind, q.qparams.qtype.bits, q.qparams.qtype.signed): q.qparams for q in quantizers(network)}
    weight = grids["weight", 8, True]
    assert np.allclose(weight.scale.numpy(), constants["ws"])
    layer = network.layers[0]
    stored = network.tensor(str(layer.weight.target)).numpy()
    assert np.allclose(stored, constants["q"] * constants["ws"].reshape(-1, 1, 1, 1), atol=1e-7)
    points = sorted(int(q.qparams.zero_point) for q in quantizers(network) if q.kind == "activation")
    assert points == [7, 120]
    assert network.state == {"quantized"}
    context = Context([torch.randn(1, 3, 8, 8)], capabilities=runtime("openvino").capabilities())
    with pytest.raises(OptionError, match="quantized already"):
        recipes.run(recipes.read("int8"), network, context)


def test_operators_in_integers_are_those_between_grids(quantized, tmp_path):
    constants = dict(quantized[1])
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], "xq"),
        node("QLinearConv", ["xq", "s", "z", "q", "ws", "wz", "s2", "z2", "qb"], "cq", pads=[1, 1, 1, 1]),
        node("DequantizeLinear", ["cq", "s2", "z2"], "y"),
    ]
    used = {name: constants[name] for name in ("q", "ws", "wz", "qb", "s", "z", "s2", "z2")}
    network = load_model(saved(tmp_path / "m.onnx", model(nodes, used)), input_shape=(3, 8, 8)).network
    assert sorted(q.kind for q in quantizers(network)) == ["activation", "activation", "weight"]


def test_weights_in_other_files_are_read_and_missed(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save_model(model([conv()], CONV), str(path), save_as_external_data=True, location="w.bin", size_threshold=0)
    loaded = load_model(path, input_shape=(3, 8, 8))
    assert [file.name for file in loaded.files] == ["m.onnx", "w.bin"]
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ReadError, match="cannot be read whole"):
        load_model(path, input_shape=(3, 8, 8))


def test_operators_without_a_translation_are_named_with_their_nodes(tmp_path):
    nodes = [conv("c"), node("Det", ["c"], "d"), node("Relu", ["d"], "y")]
    path = saved(tmp_path / "m.onnx", model(nodes, CONV))
    with pytest.raises(ModelError, match=r"the operator Det \(node 'node_d'\)") as caught:
        load_model(path, input_shape=(3, 8, 8))
    assert "file.py:factory" in caught.value.hint


def test_truncated_files_are_told_from_others(tmp_path):
    whole = model([conv()], CONV).SerializeToString()
    for name, content in (("cut", whole[: len(whole) // 2]), ("text", b"not a model"), ("empty", b"")):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(ReadError, match="truncated or no ONNX"):
            load_model(path, input_shape=(3, 8, 8))
    with pytest.raises(ReadError, match="does not exist"):
        load_model(tmp_path / "none.onnx")


def test_another_size_than_the_file_has_is_refused(tmp_path):
    path = saved(tmp_path / "m.onnx", model([conv()], CONV, (1, 3, 8, 8)))
    with pytest.raises(OptionError, match=r"takes inputs of 3×8×8, not 3×9×8"):
        load_model(path, input_shape=(3, 9, 8))
    with pytest.raises(OptionError, match="own weights"):
        load_model(path, weights=path)


def test_outputs_that_differ_from_the_runtime_are_an_error(tmp_path):
    made = model([conv(pads=[1, 1, 1, 1])], CONV)
    path = saved(tmp_path / "m.onnx", made)

    def other(given):
        return {"y": np.zeros((1, 4, 8, 8), np.float32)}

    with pytest.raises(ModelError, match=r"computes something else than X: output 'output' differs by"):
        network_of(made, path, Wanted(input_shape=(3, 8, 8)), reference=(other, "X"))


def test_several_outputs_keep_their_names(tmp_path):
    nodes = [conv("c", pads=[1, 1, 1, 1]), node("Sigmoid", ["c"], "mask"), node("GlobalAveragePool", ["c"], "label")]
    path = saved(tmp_path / "m.onnx", model(nodes, CONV, outputs=("mask", "label")))
    loaded = load_model(path, input_shape=(3, 8, 8), task="segmentation")
    assert [port.name for port in loaded.network.outputs] == ["mask"]
    assert any("label" in note for note in loaded.notes)
