import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from microtome.errors import DataError, OptionError
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.structure.layernorm import affine_norms, layer_norms
from microtome.graph.structure.scaling import LayerPair, input_ranges
from microtome.graph.watching.observe import Observed
from microtome.methods.base import Context
from microtome.methods.even_layernorm import EvenLayerNorm
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.methods.smooth import Smooth
from networks import NETWORKS, captured, images, randomize, sqnr_db, told

NAMES = [name for name in NETWORKS if name != "nothing"]
METHODS = {"smooth": Smooth(), "even": EvenLayerNorm()}
both = pytest.mark.parametrize("method", METHODS)


class Windows(nn.Module):
    """Layer norms behind which stand what windowed attention does, a class token, a convolution, and a padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(2, 8, 2, stride=2)
        self.norms = nn.ModuleList([nn.LayerNorm(8) for _ in range(4)])
        self.window, self.padded = nn.Linear(8, 8), nn.Linear(8, 8)
        self.conv, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)
        rolled = torch.roll(self.norms[0](x), shifts=(-1, -1), dims=(1, 2))
        split = rolled.view(-1, 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 4, 8)
        x = x + self.window(split).view(-1, 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(x.shape)
        x = x + self.padded(functional.pad(self.norms[1](x), (0, 0, 0, 1)))[:, :, :4]
        x = x + self.conv(self.norms[2](x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.head(self.norms[3](x.flatten(1, 2))[:, 0])


class Norms(nn.Module):
    """A batch norm that no layer stands before, a group norm and an instance norm, each before a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.GroupNorm(2, 6), nn.InstanceNorm2d(6, affine=True)])
        self.convs = nn.ModuleList([nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1)])

    def forward(self, x: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = conv(functional.relu(norm(x)))
        return x


def weights(pair: LayerPair) -> list[str]:
    """Return the names of the weights that read a value."""
    return [str(reader.node.args[1].target) for reader in pair.readers]


def uneven() -> Network:
    """Return the transformer with a few features that are much wider than the others, as trained ones have."""
    network = FoldBatchNorm().run(captured("transformer")).copy()
    for norm in layer_norms(network):
        for position, (channel, factor) in enumerate(((3, 30.0), (17, 0.02))):
            network.tensor(str(norm.node.args[2].target))[channel] *= factor
            network.tensor(str(norm.node.args[3].target))[channel] += 2.0 * (1 - position)
            for weight in weights(norm):
                network.tensor(weight)[:, channel] /= factor
    return network


@both
@pytest.mark.parametrize("name", NAMES)
def test_the_network_computes_the_same(method: str, name: str):
    network = FoldBatchNorm().run(captured(name))
    x = images(network.shape)[0]
    after = METHODS[method].run(network, told(images(network.shape)))
    torch.testing.assert_close(after(x), network(x), rtol=1e-3, atol=1e-4)


@both
def test_uneven_features_survive_rounding_better(method: str):
    network = uneven()
    quantize, x = Quantize(weight_bits=8, activation_bits=5), images(network.shape)[0]
    plain = quantize.run(network, told(images(network.shape)))
    after = quantize.run(METHODS[method].run(network, told(images(network.shape))), told(images(network.shape)))
    assert sqnr_db(network(x), after(x)) > sqnr_db(network(x), plain(x)) + 3


def feature_ranges(network: Network) -> list[tuple[Tensor, Tensor]]:
    """Return the lowest and highest value of each feature behind each layer norm."""
    found = []

    def look(node, value):
        rows = value.flatten(0, -2)
        found.append((rows.amin(0), rows.amax(0)))

    Observed(network, [norm.node for norm in layer_norms(network)], look)(torch.cat(images(network.shape)))
    return found


def test_features_behind_a_layer_norm_get_the_mean_grid():
    network = uneven()
    after = EvenLayerNorm().run(network, Context(images(network.shape)))
    before, ranges = feature_ranges(network), feature_ranges(after)
    assert len(ranges) == 2
    for (first, last), (low, high) in zip(before, ranges, strict=True):
        span = (last - first).mean()
        torch.testing.assert_close((high - low).mean(), span, rtol=1e-3, atol=0)
        zero = (-first / (last - first)).clamp(0, 1).mean()  # as a share of the grid
        torch.testing.assert_close(low.mean(), -zero * span, rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(high - low, torch.full_like(low, float((high - low).mean())), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(low, torch.full_like(low, float(low.mean())), rtol=1e-2, atol=1e-2)


def test_the_scale_is_that_of_the_paper():
    network = uneven()
    (norm, _) = layer_norms(network)
    seen = {}
    Observed(network, [norm.node], lambda node, value: seen.update(x=value))(torch.cat(images(network.shape)))
    activation = seen["x"].flatten(0, -2).abs().amax(0)
    weight = network.tensor(weights(norm)[0]).abs().amax(0)
    after = Smooth(alpha=0.75).run(network, Context(images(network.shape)))
    moved = after.tensor(weights(norm)[0]) / network.tensor(weights(norm)[0])
    torch.testing.assert_close(moved[0], activation**0.75 / weight**0.25, rtol=1e-3, atol=1e-5)


def test_windows_and_class_tokens_are_followed():
    network = FoldBatchNorm().run(capture(randomize(Windows()), (2, 8, 8)))
    x = images(network.shape)
    readers = [weights(pair) for pair in affine_norms(network)]
    assert readers == [["window.weight"], ["padded.weight"], ["conv.weight"], ["head.weight"]]
    # zeros of a padding are not shifted with the rest
    assert [weights(pair) for pair in layer_norms(network)] == [["window.weight"], ["head.weight"]]
    for method in METHODS.values():
        torch.testing.assert_close(method.run(network, told(x))(x[0]), network(x[0]), rtol=1e-4, atol=1e-4)


def test_other_norms_take_a_scale_too():
    network = FoldBatchNorm().run(capture(randomize(Norms()), (4, 8, 8)))
    x = images(network.shape)
    assert [weights(pair) for pair in affine_norms(network)] == [[f"convs.{i}.weight"] for i in range(3)]
    after = Smooth().run(network, Context(x))
    torch.testing.assert_close(after(x[0]), network(x[0]), rtol=1e-4, atol=1e-4)
    seen = {}
    nodes = [reader.node.args[0] for pair in affine_norms(after) for reader in pair.readers]
    Observed(after, nodes, lambda node, value: seen.update({node: value.amax((0, 2, 3))}))(torch.cat(x))
    for node, pair in zip(nodes, affine_norms(after), strict=True):  # alpha 0.5: as wide in values as in weights
        alive = seen[node] > 0
        assert bool(alive.any())
        torch.testing.assert_close(seen[node][alive], input_ranges(after, pair)[alive], rtol=1e-3, atol=1e-5)


def test_the_best_candidate_is_taken():
    network = capture(randomize(nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 16))), (6, 32))
    network.tensor("0.weight").mul_(torch.logspace(-1, 1, 32))
    network.tensor("1.weight").mul_(torch.logspace(-1, 0.5, 32).flip(0))
    x = [torch.randn((2, 6, 32), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    choices = (0.0, 0.25, 0.5, 0.75, 1.0)
    quantize = Quantize(observer="minmax", search_weights=False, weight_bits=4, activation_bits=4)

    def error(smoothed: Network) -> float:
        quantized = quantize.run(smoothed, told(x))
        return sum(float((quantized(batch) - network(batch)).detach().square().sum()) for batch in x)

    network = FoldBatchNorm().run(network)
    each = [error(network), *(error(Smooth(alpha).run(network, Context(x))) for alpha in choices)]
    best = Smooth(candidates=choices, weight_bits=4, activation_bits=4).run(network, Context(x))
    assert error(best) < 1.001 * min(each)
    assert 1.1 * min(each) < min(each[0], each[1], each[5])  # there was something to choose


def test_even_networks_are_left_alone_by_candidates_that_do_harm():
    layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    network = FoldBatchNorm().run(capture(layers, (4,)))
    x = torch.rand((64, 4), generator=torch.Generator().manual_seed(0))
    network.tensor("0.weight").copy_(torch.eye(4))
    network.tensor("0.bias").zero_()
    network.tensor("2.weight").copy_(torch.diag(torch.tensor([1.0, 10.0, 100.0, 1000.0])))
    # alpha 0 would make the activations as uneven as the weights are
    after = Smooth(candidates=(0.0,)).run(network, Context([x]))
    assert torch.equal(after.tensor("2.weight"), network.tensor("2.weight"))


def test_a_dead_feature_does_not_spoil_the_others():
    network = uneven()
    for norm in layer_norms(network):
        network.tensor(str(norm.node.args[2].target))[5] = 0
        network.tensor(str(norm.node.args[3].target))[5] = 3.0
    x = images(network.shape)
    after = EvenLayerNorm().run(network, Context(x))
    torch.testing.assert_close(after(x[0]), network(x[0]), rtol=1e-5, atol=1e-5)
    quantize = Quantize()
    assert sqnr_db(network(x[0]), quantize.run(after, told(x))(x[0])) > 30


@both
def test_no_images_are_an_error(method: str):
    with pytest.raises(DataError, match="no calibration images"):
        METHODS[method].run(uneven())


def test_settings_without_sense_are_refused():
    with pytest.raises(OptionError, match="share"):
        Smooth(alpha=1.5).run(uneven())
    with pytest.raises(OptionError, match="2 to 16"):
        Smooth(weight_bits=1).run(uneven())
