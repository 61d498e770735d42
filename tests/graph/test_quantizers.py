import pytest
import torch

from microtome.core.affine import qparams_from_range
from microtome.graph import edit, pt2
from microtome.graph.network import Network
from microtome.graph.quantizers import input_quantizer, quantizers, weight_quantizer
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.types import QType
from networks import captured, images, told


@pytest.fixture(scope="module")
def quantized() -> Network:
    network = captured("unet2d")
    return Quantize().run(FoldBatchNorm().run(network), told(images(network.shape)))


@pytest.mark.parametrize(
    "qtype",
    [
        QType(8),
        QType(8, narrow=True),
        QType(4, narrow=True),
        QType(2),
        QType(16, signed=False, symmetric=False),
        QType(8, signed=False, symmetric=False),
        QType(8, signed=False, symmetric=True),
        QType(3, symmetric=False),
        QType(8, narrow=True, axis=0),
        QType(4, axis=1),
        QType(1, signed=False, symmetric=False),
    ],
    ids=lambda q: (
        f"{q.name}-{'symmetric' if q.symmetric else 'asymmetric'}-{'narrow' if q.narrow else 'full'}-{q.axis}"
    ),
)
def test_a_grid_is_read_back_as_it_was_put_in(qtype: QType):
    network = captured("shared2d").copy()
    size = () if qtype.axis is None else (4,)
    grid = qparams_from_range(torch.full(size, -1.0), torch.full(size, 2.0), qtype)
    value = network.layers[0].node
    edit.insert_quantizer(network.graph_module, value, list(value.users), grid, "here")
    (found,) = quantizers(network)
    assert found.qparams.qtype == qtype
    assert torch.equal(found.qparams.scale, grid.scale)
    assert torch.equal(found.qparams.zero_point, grid.zero_point)
    assert (found.kind, found.name) == ("activation", "conv")


def test_each_layer_has_the_grids_of_its_weight_and_input(quantized: Network):
    for layer in quantized.layers:
        weight, activation = weight_quantizer(quantized, layer), input_quantizer(quantized, layer)
        assert weight is not None
        assert activation is not None
        axis = 1 if layer.op == "conv_transpose" else 0
        assert weight.qtype == QType(8, narrow=True, axis=axis)
        assert weight.scale.shape == (quantized.tensor(str(layer.weight.target)).shape[axis],)
        assert activation.qtype.axis is None


def test_a_float_network_has_none():
    network = captured("unet2d")
    assert list(quantizers(network)) == []
    assert [weight_quantizer(network, layer) for layer in network.layers] == [None] * 5
    assert [input_quantizer(network, layer) for layer in network.layers] == [None] * 5


def test_quantizers_are_named_after_the_layer_that_reads_them(quantized: Network):
    weights = {q.name for q in quantizers(quantized) if q.kind == "weight"}
    assert weights == {layer.name for layer in quantized.layers}
    activations = [q.name for q in quantizers(quantized) if q.kind == "activation"]
    assert set(activations) <= weights
    assert "" not in activations


def test_grids_survive_the_file(quantized: Network, tmp_path):
    pt2.save(quantized, tmp_path / "network.pt2")
    loaded = pt2.load(tmp_path / "network.pt2")
    before, after = (
        sorted((q.kind, q.name, q.qparams.qtype.name, q.qparams.scale.tolist()) for q in quantizers(network))
        for network in (quantized, loaded)
    )
    assert after == before
