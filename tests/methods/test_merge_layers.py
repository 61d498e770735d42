import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from microtome.errors import OptionError
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.operators import kind
from microtome.graph.watching.macs import layer_sizes
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.merge_layers import MergeLayers
from networks import randomize

# Weights are multiplied in float64 and rounded once; outputs are sums of a few hundred products in float32.
ROUNDING = 1e-5


class Of(nn.Module):
    """A function over layers that are given by name."""

    def __init__(self, function, **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def folded(module: nn.Module, shape: tuple[int, ...]) -> Network:
    return FoldBatchNorm().run(capture(randomize(module), shape))


def costs(network: Network) -> tuple[int, int]:
    sizes = layer_sizes(network)
    return sum(size.weights for size in sizes), sum(size.macs for size in sizes)


def check(network: Network, method: MergeLayers | None = None) -> Network:
    """Merge, and see that nothing changed but the costs."""
    before = network.fingerprint()
    merged = (method or MergeLayers()).run(network)
    assert network.fingerprint() == before
    x = torch.randn(2, *network.shape)
    expected = network(x).detach()
    assert torch.allclose(merged(x), expected, atol=ROUNDING * max(1.0, float(expected.abs().max())))
    assert costs(merged)[1] <= costs(network)[1]
    return merged


def kinds(network: Network) -> list[str]:
    return [kind(node) for node in network.graph_module.graph.nodes if node.op == "call_function"]


CONV = nn.Conv2d(8, 8, 3, padding=1)


def conv(i: int, o: int, k: int, **more: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **more)


@pytest.mark.parametrize(
    ("layers", "left"),
    [
        ((conv(3, 8, 3, padding=1), conv(8, 4, 1)), 1),
        ((conv(3, 8, 1, bias=False), conv(8, 4, 3, padding=1)), 1),
        ((conv(3, 8, 1), conv(8, 4, 3, padding=1)), 2),  # not exact
        ((conv(3, 8, 3, padding=1), nn.BatchNorm2d(8), conv(8, 8, 1), conv(8, 4, 1, stride=2)), 1),
        ((conv(3, 16, 3), conv(16, 3, 3)), 1),  # 25 taps of 9 pairs instead of 9 taps of 96
        ((conv(8, 8, 3), conv(8, 8, 3)), 2),  # 25 of 64 pairs instead of 18
        ((nn.ConvTranspose2d(3, 8, 2, stride=2), conv(8, 4, 1)), 1),
        ((conv(3, 8, 1, bias=False), nn.ConvTranspose2d(8, 4, 3, stride=2, output_padding=1)), 1),
        ((conv(3, 8, 3, padding="same"), conv(8, 4, 1)), 1),  # type: ignore[arg-type]
        ((conv(3, 8, 1), nn.ReLU(), conv(8, 4, 1)), 2),
        ((conv(16, 4, 1), conv(4, 16, 1)), 2),  # factorized: 128 weights, not 256
    ],
)
def test_chains(layers: tuple[nn.Module, ...], left: int):
    merged = check(folded(nn.Sequential(*layers), (layers[0].in_channels, 9, 9)))  # type: ignore[arg-type]
    assert len(merged.layers) == left
    assert merged.history[-1]["merged"].get("chains", 0) == sum(hasattr(n, "kernel_size") for n in layers) - left


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_a_kernel_that_is_padded_unevenly_stays():
    network = folded(nn.Sequential(conv(3, 8, 2, padding="same"), conv(8, 4, 1)), (3, 9, 9))  # type: ignore[arg-type]
    assert len(check(network).layers) == 2


def test_linear_layers_and_names():
    network = folded(nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 2)), (4, 6))
    merged = check(network)
    assert [layer.name for layer in merged.layers] == ["0", "3"]
    assert set(merged.constants()) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    kept = check(network, MergeLayers(skip=frozenset({"1"})))
    assert len(kept.layers) == 3


def test_one_dimension_and_three():
    for make, shape in ((nn.Conv1d, (2, 9)), (nn.Conv3d, (2, 5, 5, 5))):
        merged = check(folded(nn.Sequential(make(2, 6, 3, padding=1), make(6, 3, 1)), shape))
        assert len(merged.layers) == 1


def rep_vgg(m: nn.Module, x: Tensor) -> Tensor:
    return functional.relu(m.large(x) + m.small(x) + m.bare(x))  # type: ignore[operator]


@pytest.mark.parametrize("bare", [nn.BatchNorm2d(8), nn.Identity()])
def test_three_branches_become_one(bare: nn.Module):
    large = nn.Sequential(conv(8, 8, 3, padding=1), nn.BatchNorm2d(8))
    small = nn.Sequential(conv(8, 8, 1), nn.BatchNorm2d(8))
    merged = check(folded(Of(rep_vgg, large=large, small=small, bare=bare), (8, 9, 9)))
    assert len(merged.layers) == 1
    # a bare batch norm is no layer: it stays
    assert kinds(merged) == (
        ["conv", "relu"] if isinstance(bare, nn.Identity) else ["conv", "batch_norm", "add", "relu"]
    )
    assert costs(merged)[0] == 8 * 8 * 9


def test_branches_of_unequal_stride_or_input_stay():
    def over(m: nn.Module, x: Tensor) -> Tensor:
        return m.a(x) + m.b(functional.relu(x))  # type: ignore[operator]

    def twice(m: nn.Module, x: Tensor) -> Tensor:
        y = m.a(x)  # type: ignore[operator]
        return functional.relu(y + m.b(x)) * y  # type: ignore[operator]

    for function in (over, twice):
        network = folded(Of(function, a=conv(8, 8, 3, padding=1), b=conv(8, 8, 1)), (8, 9, 9))
        assert len(check(network).layers) == 2


def test_crossed_kernels_are_not_squared():
    a, b = nn.Conv2d(8, 8, (3, 1), padding=(1, 0)), nn.Conv2d(8, 8, (1, 3), padding=(0, 1))
    merged = check(folded(Of(lambda m, x: m.a(x) + m.b(x), a=a, b=b), (8, 9, 9)))
    assert len(merged.layers) == 2
    assert sum(merged.history[-1]["not_merged"].values()) == 1


def test_what_is_written_into_is_not_read_earlier():
    def function(m: nn.Module, x: Tensor) -> Tensor:
        y = m.enter(x)  # type: ignore[operator]
        z = m.a(y)  # type: ignore[operator]
        functional.relu_(y)
        return z + y

    network = folded(Of(function, enter=conv(3, 8, 3), a=conv(8, 8, 3, padding=1)), (3, 9, 9))
    assert len(check(network).layers) == 2
    assert "add" in kinds(check(network))


def test_a_shared_layer_stays():
    shared = Of(lambda m, x: m.other(m.one(functional.relu(m.one(x)))), one=conv(3, 3, 1), other=conv(3, 4, 1))
    assert len(check(folded(shared, (3, 8, 8))).layers) == 3


def test_pools_and_upsamplings_change_places_with_small_kernels():
    down = folded(nn.Sequential(nn.ReLU(), conv(8, 4, 1), nn.AvgPool2d(2), nn.ReLU()), (8, 8, 8))
    merged = check(down)
    assert kinds(merged) == ["relu", "avg_pool", "conv", "relu"]
    assert costs(merged)[1] * 4 == costs(down)[1]
    up = folded(nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear"), conv(8, 4, 1)), (8, 8, 8))
    merged = check(up)
    assert kinds(merged)[:2] == ["relu", "conv"]
    assert costs(merged)[1] * 4 == costs(up)[1]
    head = folded(nn.Sequential(conv(8, 4, 1), nn.AdaptiveAvgPool2d(1)), (8, 8, 8))
    assert kinds(check(head)) == ["avg_pool", "conv"]
    for other in (nn.MaxPool2d(2), nn.AvgPool2d(2, padding=1)):
        assert kinds(check(folded(nn.Sequential(conv(8, 4, 1), other), (8, 8, 8))))[0] == "conv"


def test_values_that_a_merged_graph_says_have_their_sizes():
    merged = check(folded(nn.Sequential(nn.ReLU(), conv(8, 4, 1), nn.AvgPool2d(2)), (8, 8, 8)))
    sizes = {
        kind(node): tuple(node.meta["val"].shape[1:]) for node in merged.graph_module.graph.nodes if "val" in node.meta
    }
    assert (sizes["avg_pool"], sizes["conv"]) == ((8, 4, 4), (4, 4, 4))


def test_a_pool_joins_where_more_weights_are_allowed():
    network = folded(nn.Sequential(conv(8, 8, 3, padding=1), nn.AvgPool2d(2)), (8, 8, 8))
    assert kinds(check(network)) == ["conv", "avg_pool"]
    merged = check(network, MergeLayers(most_weights=2.0))
    assert kinds(merged) == ["conv"]
    assert costs(merged)[1] / costs(network)[1] == 16 / 36


def test_holes_are_not_filled():
    first, second = randomize(conv(8, 8, 3, padding=1)), randomize(conv(8, 8, 1))
    for layer in (first, second):
        layer.weight.data[layer.weight.data.abs() < 1.3 * layer.weight.data.abs().mean()] = 0.0
    network = FoldBatchNorm().run(capture(nn.Sequential(first, second), (8, 8, 8)))
    few = sum(int(network.tensor(str(layer.weight.target)).count_nonzero()) for layer in network.layers)
    assert few < 8 * 8 * 9
    assert len(check(network).layers) == 2


def test_less_than_the_parts_is_refused():
    with pytest.raises(OptionError, match="1 or more"):
        MergeLayers(most_weights=0.5)
