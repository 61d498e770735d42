import functools
from collections import Counter

import pytest
import torch
from torch import nn

from microtome.core.attention_formats import LogGrid, fake_quantize_log
from microtome.errors import DataError, OptionError
from microtome.graph import edit
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.operators import kind
from microtome.graph.program import export_graph, network_from_export
from microtome.graph.quantizers import quantizers
from microtome.graph.structure.attention import products, source
from microtome.graph.watching.observe import Observed
from microtome.methods.attention import QuantizeAttention
from microtome.methods.base import Context
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.types import Capabilities, OperatorSupport, Port, QType
from networks import UNSIGNED, captured, images, randomize, sqnr_db, told

GRIDS = [("uniform", "uniform"), ("twin", "uniform"), ("log2", "uniform"), ("logsqrt2", "uniform"), ("uniform", "twin")]
# 8 bits on all edges of one block (tests/methods/test_quantize.py: 25 for six layers)
EIGHT_BITS_DB = 25.0
# base 2 rounds a weight by up to 41 %, at random: attention over 16 tokens averages that to 10 %
BASE_TWO_DB = 15.0


@functools.cache
def vit() -> Network:
    """Return MONAI's ViT: its attention is written with einsum."""
    monai = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    module = monai.ViT(
        in_channels=1,
        img_size=(16, 16),
        patch_size=(4, 4),
        hidden_size=16,
        mlp_dim=32,
        num_layers=2,
        num_heads=2,
        classification=True,
        num_classes=3,
        spatial_dims=2,
        post_activation="none",
    )
    return capture(randomize(module), (1, 16, 16))


@functools.cache
def swin() -> Network:
    """Return two of the blocks that MONAI's SwinUNETR is made of: windows, shifts, masks, a bias per position."""
    monai = pytest.importorskip("monai.networks.nets.swin_unetr")

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(1, 8, 2, stride=2)
            self.blocks = monai.BasicLayer(8, depth=2, num_heads=2, window_size=(4, 4), drop_path=[0.0, 0.0])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks(self.embed(x))

    torch.manual_seed(0)
    port = Port("input", (1, 16, 16), (True, False, False, False))
    return network_from_export(export_graph(randomize(Blocks()), [port]))


NETWORKS = {"transformer": lambda: captured("transformer"), "vit": vit, "swin": swin}
PRODUCTS = {"transformer": 2, "vit": 4, "swin": 4}


@functools.cache
def quantized(name: str) -> Network:
    network = NETWORKS[name]()
    return Quantize().run(FoldBatchNorm().run(network), told(images(network.shape)))


@functools.cache
def with_attention(name: str, softmax: str, gelu: str) -> Network:
    network = quantized(name)
    return QuantizeAttention(softmax=softmax, gelu=gelu).run(network, Context(images(network.shape)))


@pytest.mark.parametrize(("softmax", "gelu"), GRIDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_eight_bits_stay_close_to_float(name: str, softmax: str, gelu: str):
    result, x = with_attention(name, softmax, gelu), images(NETWORKS[name]().shape)[0]
    assert sqnr_db(NETWORKS[name]()(x), result(x)) > (BASE_TWO_DB if softmax.startswith("log") else EIGHT_BITS_DB)
    assert result.state == quantized(name).state | {"attention_quantized"}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_factor_of_every_product_has_a_quantizer(name: str):
    found = list(products(with_attention(name, "uniform", "uniform")))
    assert len(found) == PRODUCTS[name]
    for product in found:
        assert [kind(factor) for factor in product.node.args[:2]] == ["quantizer", "quantizer"]
    before = {q.node.name for q in quantizers(quantized(name))}
    assert len(before) + 2 * len(found) == len(list(quantizers(with_attention(name, "uniform", "uniform"))))


@pytest.mark.parametrize(
    ("softmax", "operator"), [("log2", "masked_fill"), ("logsqrt2", "masked_fill"), ("twin", "where")]
)
def test_softmax_outputs_get_the_grid_asked_for(softmax: str, operator: str):
    found = list(products(with_attention("transformer", softmax, "uniform")))
    assert [kind(product.node.args[0]) for product in found] == ["quantizer", operator]


def test_softmax_outputs_lie_on_the_logarithmic_grid():
    network = with_attention("transformer", "log2", "uniform")
    factor = list(products(network))[1].node.args[0]
    values = []
    Observed(network, [factor], lambda _, value: values.append(value))(images(network.shape)[0])
    assert torch.equal(fake_quantize_log(values[0], LogGrid(8)), values[0])
    assert values[0].unique().numel() < 16


def test_twin_grids_take_the_place_of_the_quantizer_behind_gelu():
    before, after = quantized("vit"), with_attention("vit", "uniform", "twin")
    counts = [
        Counter(kind(n.args[0]) for n in net.graph_module.graph.nodes if kind(n) == "linear") for net in (before, after)
    ]
    assert counts[0]["where"] == 0
    assert counts[1]["where"] == 2
    assert counts[0]["quantizer"] == counts[1]["quantizer"] + 2


def test_few_bits_want_an_uneven_grid():
    network, x = quantized("transformer"), images((3, 16, 16))[0]
    float_output = captured("transformer")(x)
    values = {}
    for softmax in ("uniform", "twin", "logsqrt2"):
        result = QuantizeAttention(bits=4, softmax=softmax).run(network, Context(images(network.shape)))
        factor = list(products(result))[1].node.args[0]
        got, exact = [], []
        origin = next(n for n in result.graph_module.graph.nodes if kind(n) == "softmax")
        Observed(result, [factor, origin], lambda n, v, f=factor, g=got, e=exact: (g if n is f else e).append(v))(x)
        values[softmax] = sqnr_db(exact[0], got[0])
        assert bool(torch.isfinite(result(x)).all())
        assert result(x).shape == float_output.shape
    assert values["twin"] > values["uniform"]


def test_a_factor_that_is_quantized_already_keeps_its_grid():
    network = captured("transformer")
    output = OperatorSupport(UNSIGNED, QType(8, narrow=True), output=(3,))
    chain = Quantize().run(
        FoldBatchNorm().run(network),
        Context(images(network.shape), capabilities=Capabilities("test", {"linear": output})),
    )
    result = QuantizeAttention().run(chain, Context(images(network.shape)))
    first = next(iter(products(result))).node
    for factor in first.args[:2]:
        origin = source(factor.args[0])
        assert kind(origin) == "quantizer"
        assert factor.args[1:] == origin.args[1:]


def test_formats_are_those_of_the_target():
    signed = Capabilities("test", {"matmul": OperatorSupport(UNSIGNED, QType(8, narrow=True))})
    network = quantized("transformer")
    result = QuantizeAttention().run(network, Context(images(network.shape), capabilities=signed))
    for product in products(result):
        limits = [factor.args[3:] for factor in product.node.args[:2]]
        assert limits == [(0, 255), (-128, 127)]
    nothing = QuantizeAttention().run(network, told(images(network.shape)))
    assert len(list(quantizers(nothing))) == len(list(quantizers(network)))


def test_calibration_streams_and_needs_data():
    network, batches = quantized("transformer"), images((3, 16, 16))
    together = QuantizeAttention(softmax="twin", gelu="twin").run(network, Context([torch.cat(batches)]))
    apart = QuantizeAttention(softmax="twin", gelu="twin").run(network, Context(batches))
    x = batches[0]
    assert torch.allclose(together(x), apart(x), atol=1e-5)
    with pytest.raises(DataError, match="no calibration images"):
        QuantizeAttention().run(network)
    broken = network.copy()
    edit.set_constant(broken.graph_module, "qkv.bias", torch.full((96,), torch.nan))
    with pytest.raises(DataError, match="NaN"):
        QuantizeAttention().run(broken, Context(batches))


def test_wrong_settings_are_refused():
    network, batches = quantized("transformer"), images((3, 16, 16))
    with pytest.raises(OptionError, match="log3"):
        QuantizeAttention(softmax="log3").run(network, Context(batches))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="no log2 grid of 16 bits"):
        QuantizeAttention(bits=16, softmax="log2").run(network, Context(batches))
