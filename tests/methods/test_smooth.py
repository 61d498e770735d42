import pytest
import torch

from microtome.errors import DataError, OptionError
from microtome.graph.layernorm import layer_norms
from microtome.graph.network import Network
from microtome.graph.observe import Observed
from microtome.methods.even_layernorm import EvenLayerNorm
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.methods.smooth import Smooth
from networks import EVERYTHING, NETWORKS, captured, images, sqnr_db

NAMES = [name for name in NETWORKS if name != "nothing"]
METHODS = {"smooth": Smooth(), "even": EvenLayerNorm()}
both = pytest.mark.parametrize("method", METHODS)


def uneven() -> Network:
    """Return the transformer with a few features that are much wider than the others, as trained ones have."""
    network = FoldBatchNorm()(captured("transformer"), []).copy()
    for norm in layer_norms(network):
        for position, (channel, factor) in enumerate(((3, 30.0), (17, 0.02))):
            network.tensor(str(norm.node.args[2].target))[channel] *= factor
            network.tensor(str(norm.node.args[3].target))[channel] += 2.0 * (1 - position)
            for weight in norm.weights:
                network.tensor(weight)[:, channel] /= factor
    return network


@both
@pytest.mark.parametrize("name", NAMES)
def test_the_network_computes_the_same(method: str, name: str):
    network = FoldBatchNorm()(captured(name), [])
    x = images(network.shape)[0]
    after = METHODS[method](network, images(network.shape))
    torch.testing.assert_close(after(x), network(x), rtol=1e-3, atol=1e-4)


@both
def test_uneven_features_survive_rounding_better(method: str):
    network = uneven()
    quantize, x = Quantize(EVERYTHING, weight_bits=8, activation_bits=5), images(network.shape)[0]
    plain = quantize(network, images(network.shape))
    after = quantize(METHODS[method](network, images(network.shape)), images(network.shape))
    assert sqnr_db(network(x), after(x)) > sqnr_db(network(x), plain(x)) + 3


def test_features_behind_a_layer_norm_get_one_range():
    network = uneven()
    after = EvenLayerNorm()(network, images(network.shape))
    ranges = []

    def look(node, value):
        rows = value.flatten(0, -2)
        ranges.append((rows.amin(0), rows.amax(0)))

    Observed(after, [norm.node for norm in layer_norms(after)], look)(torch.cat(images(network.shape)))
    assert len(ranges) == 2
    for low, high in ranges:
        torch.testing.assert_close(high - low, torch.full_like(low, float((high - low).mean())), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(low, torch.full_like(low, float(low.mean())), rtol=1e-2, atol=1e-2)


def test_the_scale_is_that_of_the_paper():
    network = uneven()
    (norm, _) = layer_norms(network)
    seen = {}
    Observed(network, [norm.node], lambda node, value: seen.update(x=value))(torch.cat(images(network.shape)))
    activation = seen["x"].flatten(0, -2).abs().amax(0)
    weight = network.tensor(norm.weights[0]).abs().amax(0)
    after = Smooth(alpha=0.75)(network, images(network.shape))
    moved = after.tensor(norm.weights[0]) / network.tensor(norm.weights[0])
    torch.testing.assert_close(moved[0], activation**0.75 / weight**0.25, rtol=1e-3, atol=1e-5)


@both
def test_no_images_are_an_error(method: str):
    with pytest.raises(DataError, match="no calibration images"):
        METHODS[method](uneven(), [])


def test_settings_without_sense_are_refused():
    with pytest.raises(OptionError, match="share"):
        Smooth(alpha=1.5)(uneven(), [])
    with pytest.raises(OptionError, match="2 to 16"):
        EvenLayerNorm(bits=1)(uneven(), [])
