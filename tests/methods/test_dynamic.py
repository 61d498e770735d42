import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from microtome.core.affine import fake_quantize, qparams_from_range
from microtome.errors import OptionError, TargetError
from microtome.graph import edit, pt2
from microtome.graph.capture import capture
from microtome.graph.dynamic import dynamic_bits, insert_dynamic_quantizer
from microtome.graph.network import Network
from microtome.graph.operators import kind
from microtome.graph.quantizers import quantizers
from microtome.methods.dynamic import QuantizeDynamic
from microtome.recipes import Recipe, run
from microtome.types import QType
from networks import captured, images, randomize, sqnr_db

pytestmark = pytest.mark.slow

EIGHT_BITS_DB = 30.0  # five layers at most, each at about 40 dB
INTEGER_DB = 60.0  # the runtime sums in integers and multiplies once; an input on an edge may fall to the other side


class Recurrent(nn.Module):
    """Two bidirectional layers over the pixels of an image, and a linear head."""

    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.inner = cell(8, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x.flatten(2).transpose(1, 2))[0].mean(1))


@functools.cache
def network(name: str) -> Network:
    if name in ("lstm", "gru"):
        torch.manual_seed(0)
        return capture(randomize(Recurrent(nn.LSTM if name == "lstm" else nn.GRU)), (8, 4, 4))
    return captured(name)


NAMES = ("transformer", "dense2d", "lstm", "gru")
LAYERS = {"transformer": 5, "dense2d": 1, "lstm": 2, "gru": 2}
TO_FILES = ("transformer", "dense2d", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lstm", "gru")))
WEIGHTS = {"transformer": 5, "dense2d": 1, "lstm": 9, "gru": 9}  # two per direction and layer, and the head's


@functools.cache
def quantized(name: str, bits: int | None = 8) -> Network:
    return QuantizeDynamic(activation_bits=bits).run(network(name))


def dynamic_nodes(network: Network) -> list[int]:
    found = [dynamic_bits(node) for node in network.graph_module.graph.nodes]
    return [bits for bits in found if bits is not None]


@pytest.mark.parametrize("name", NAMES)
def test_eight_bits_stay_close_to_float(name: str):
    parent, fingerprint = network(name), network(name).fingerprint()
    result, x = quantized(name), images(parent.shape)[0]
    assert EIGHT_BITS_DB < sqnr_db(parent(x), result(x)) < float("inf")
    assert result.state == {"quantized", "float_biases"}
    assert parent.fingerprint() == fingerprint
    assert dynamic_nodes(result) == [8] * LAYERS[name]
    grids = list(quantizers(result))
    assert [(q.kind, q.qparams.qtype) for q in grids] == [("weight", QType(8, narrow=True, axis=0))] * WEIGHTS[name]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_clipped_however_large_the_image(name: str):
    parent, result, x = network(name), quantized(name), images(network(name).shape)[0]
    assert sqnr_db(parent(50 * x), result(50 * x)) > 20


@pytest.mark.parametrize("name", TO_FILES)
@pytest.mark.parametrize("bits", [8, 5, None])
def test_the_network_survives_the_file(name: str, bits: int | None, tmp_path):
    result, x = quantized(name, bits), images(network(name).shape)[0]
    pt2.save(result, tmp_path / "network.pt2")
    loaded = pt2.load(tmp_path / "network.pt2")
    assert torch.equal(loaded(x), result(x))
    assert dynamic_nodes(loaded) == dynamic_nodes(result)


@pytest.mark.parametrize("name", TO_FILES)
@pytest.mark.parametrize("bits", [8, 5])
def test_onnx_runtime_computes_the_same(name: str, bits: int, tmp_path):
    onnxruntime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    from microtome.runtimes.onnx_file import export_onnx

    result, x = quantized(name, bits), images(network(name).shape)[0]
    export_onnx(result, tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    count = sum(node.op_type == "DynamicQuantizeLinear" for node in model.graph.node)
    assert count == (LAYERS[name] if bits == 8 else 0)
    options = onnxruntime.SessionOptions()
    # or linear layers whose weight alone it sees as integers round their input once more, by blocks
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    actual = torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
    assert sqnr_db(result(x), actual) > INTEGER_DB


def test_linear_layers_run_in_integers(tmp_path):
    pytest.importorskip("onnxruntime")
    from microtome.runtimes import runtime

    target, result = runtime("onnxruntime"), quantized("transformer")
    session = target.open_session(target.export(result, tmp_path), threads=1, precision="f32")
    runs = session.layer_runs(images(result.shape)[0].numpy())
    executed = {run.op for run in runs}
    assert "DynamicQuantizeMatMul" in executed
    assert sum(run.op == "DynamicQuantizeMatMul" for run in runs) == 4


def alone(bits: int) -> Network:
    """Return a network that does nothing but quantize dynamically what `nothing` computes."""
    result = captured("nothing").copy()
    output = next(n for n in result.graph_module.graph.nodes if n.op == "output")
    insert_dynamic_quantizer(result.graph_module, output.args[0], [output], bits)
    edit.finish(result.graph_module)
    return result


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("change", [lambda x: x, torch.abs, lambda x: -x.abs(), torch.zeros_like, lambda x: 1e-3 * x])
def test_the_grid_is_the_one_of_the_range_seen(bits: int, change):
    x = change(images((1, 8, 8))[0])
    value = captured("nothing")(x)
    grid = qparams_from_range(value.min(), value.max(), QType(bits, signed=False, symmetric=False))
    assert torch.allclose(alone(bits)(x), fake_quantize(value, grid), rtol=1e-6, atol=1e-7)


def test_eight_bits_are_onnx_dynamic_quantize_linear():
    reference = pytest.importorskip("onnx.reference")
    from onnx import TensorProto, helper

    x = images((1, 8, 8))[0]
    value = captured("nothing")(x)
    names = ["q", "s", "z"]
    info = [helper.make_tensor_value_info(n, t, None) for n, t in (("x", TensorProto.FLOAT), ("q", TensorProto.UINT8))]
    info += [helper.make_tensor_value_info("s", TensorProto.FLOAT, []), helper.make_tensor_value_info("z", 2, [])]
    graph = helper.make_graph([helper.make_node("DynamicQuantizeLinear", ["x"], names)], "g", info[:1], info[1:])
    evaluator = reference.ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))
    integers, scale, zero = evaluator.run(None, {"x": value.numpy()})
    expected = (integers.astype(np.float32) - zero) * scale
    assert np.array_equal(alone(8)(x).numpy(), expected)


def test_layers_that_read_one_value_share_its_quantizer():
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.mean((2, 3))
            return self.one(x) + self.other(x)

    result = QuantizeDynamic().run(capture(randomize(Forked()), (4, 2, 2)))
    assert dynamic_nodes(result) == [8]


def test_skipped_layers_stay_in_float():
    result = QuantizeDynamic(skip=frozenset({"inner"})).run(network("lstm"))
    (recurrent,) = [n for n in result.graph_module.graph.nodes if kind(n) == "lstm"]
    assert all(part.op == "get_attr" for part in recurrent.args[2])
    assert dynamic_nodes(result) == [8]
    assert len(list(quantizers(result))) == 1


def test_fewer_bits_are_further_off():
    parent, x = network("lstm"), images((8, 4, 4))[0]
    near, far = (QuantizeDynamic(weight_bits=bits).run(parent) for bits in (8, 3))
    assert sqnr_db(parent(x), near(x)) > sqnr_db(parent(x), far(x)) + 10


def test_what_makes_no_sense_is_refused():
    with pytest.raises(TargetError, match="no linear, LSTM or GRU layer"):
        QuantizeDynamic().run(captured("unet2d"))
    with pytest.raises(OptionError, match="2 to 8 bits"):
        QuantizeDynamic(weight_bits=9).run(network("lstm"))
    with pytest.raises(OptionError, match="no linear or recurrent layer 'elsewhere'"):
        QuantizeDynamic(skip=frozenset({"elsewhere"})).run(network("lstm"))
    with pytest.raises(OptionError, match="the network is quantized already"):
        run(Recipe("test", (QuantizeDynamic(),)), quantized("lstm"))
