import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from microtome.core.attention_formats import LogGrid, fake_quantize_log, fake_quantize_twin, twin_grid
from microtome.graph import edit, pt2
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.nonuniform import insert_uneven
from microtome.graph.operators import aten, kind
from microtome.graph.program import export_graph, network_from_export
from microtome.graph.quantizers import quantizers
from microtome.graph.structure.attention import expand_attention, products
from microtome.types import Port
from networks import captured, images, randomize

# the same sums in another order, float32
ORDER = 1e-5


class Attention(nn.Module):
    """Attention over the pixels of an image, in one of several spellings."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.qkv = nn.Linear(4, 24)
        self.register_buffer("mask", torch.randn(9, 9, generator=torch.Generator().manual_seed(3)))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).reshape(x.shape[0], 9, 3, 2, 4).permute(2, 0, 3, 1, 4)
        if self.spelling == "einsum":
            weights = (torch.einsum("blxd,blyd->blxy", q, k) * 0.5).softmax(-1)
            return torch.einsum("bhxy,bhyd->bhxd", weights, v)
        if self.spelling == "turned":
            scores = torch.einsum("bhdx,bhdy->bhxy", q.transpose(2, 3), k.transpose(2, 3))
            return torch.einsum("bhyx,bhdy->bhxd", scores.softmax(-1), v.transpose(2, 3))
        attend = functional.scaled_dot_product_attention
        if self.spelling == "bool":
            return attend(q, k, v, self.mask > -1)
        if self.spelling == "added":
            return attend(q, k, v, attn_mask=self.mask, scale=0.3)
        return attend(q, k, v, is_causal=self.spelling == "causal")


SPELLINGS = ("plain", "causal", "bool", "added", "einsum", "turned")


def attention(spelling: str) -> Network:
    return capture(randomize(Attention(spelling)), (4, 3, 3))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_attention_written_out_computes_the_same(spelling: str):
    network = attention(spelling)
    fingerprint = network.fingerprint()
    expanded = expand_attention(network)
    x = images((4, 3, 3))[0]
    assert torch.allclose(expanded(x), network(x), rtol=ORDER, atol=ORDER)
    assert network.fingerprint() == fingerprint
    kinds = {kind(node) for node in expanded.graph_module.graph.nodes}
    assert not kinds & {"attention", "einsum"}
    assert [sorted(product.of_softmax) for product in products(expanded)] == [[], [0]]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_in_double_precision_the_same_to_fourteen_digits(spelling: str):
    network = attention(spelling)
    expanded = expand_attention(network)
    x = images((4, 3, 3))[0].double()
    with torch.no_grad():
        expected, actual = network.graph_module.double()(x), expanded.graph_module.double()(x)
    assert torch.allclose(actual, expected, rtol=1e-13, atol=1e-14)


def test_attention_written_out_survives_the_file(tmp_path):
    expanded = expand_attention(captured("transformer"))
    pt2.save(expanded, tmp_path / "network.pt2")
    loaded = pt2.load(tmp_path / "network.pt2")
    x = images((3, 16, 16))[0]
    assert torch.equal(loaded(x), expanded(x))
    assert [p.of_softmax for p in products(loaded)] == [p.of_softmax for p in products(expanded)]


@pytest.mark.parametrize(
    "equation", ["blxd,blyd->blx", "blxd,bld->blx", "bld,ld->bl", "blxd,ldy->blxy", "blxd,blyd->bxly", "bld,dk->blk"]
)
def test_other_einsums_stay(equation: str):
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first, second = equation.split("->", maxsplit=1)[0].split(",")
            axes = dict.fromkeys(equation, 2) | {first[0]: x.shape[0]}
            other = torch.ones([axes[letter] for letter in second]) * x.mean()
            return torch.einsum(equation, x.reshape(x.shape[0], *[2] * (len(first) - 1)), other)

    count = 2 ** (len(equation.split(",", maxsplit=1)[0]) - 1)
    port = Port("input", (count,), (False, False))
    network = network_from_export(export_graph(Other(), [port]))
    targets = [node.target for node in expand_attention(network).graph_module.graph.nodes]
    assert aten.einsum.default in targets


def uneven(grid) -> tuple[Network, Tensor, Tensor]:
    """Return a network whose output is rounded, an input, and the output as it was."""
    network = captured("nothing").copy()
    output = next(n for n in network.graph_module.graph.nodes if n.op == "output")
    x = images((1, 8, 8))[0].abs()
    before = network(x)
    insert_uneven(network.graph_module, output.args[0], [output], grid)
    edit.finish(network.graph_module)
    return network, x, before


@pytest.mark.parametrize("grid", [LogGrid(3), LogGrid(4, 2, 3), LogGrid(8, 1)])
def test_logarithmic_nodes_compute_what_the_function_does(grid: LogGrid, tmp_path):
    network, x, before = uneven(grid)
    assert torch.equal(network(x), fake_quantize_log(before, grid))
    pt2.save(network, tmp_path / "network.pt2")
    assert torch.equal(pt2.load(tmp_path / "network.pt2")(x), network(x))


@pytest.mark.parametrize(("kind", "doublings"), [("softmax", 3), ("gelu", 4)])
def test_twin_nodes_compute_what_the_function_does(kind: str, doublings: int, tmp_path):
    grid = twin_grid(kind, 6, doublings)
    network, x, before = uneven(grid)
    assert torch.allclose(network(x), fake_quantize_twin(before, grid), rtol=1e-6, atol=1e-7)
    assert [q.qparams.qtype.bits for q in quantizers(network)] == [5, 5]
    pt2.save(network, tmp_path / "network.pt2")
    assert torch.equal(pt2.load(tmp_path / "network.pt2")(x), network(x))
