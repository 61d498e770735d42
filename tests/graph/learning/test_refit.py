import pytest
import torch

from microtome.errors import DataError
from microtome.graph import edit
from microtome.graph.learning.refit import refit
from microtome.graph.network import Network
from networks import captured, images, sqnr_db


def damaged(name: str, layer: str) -> Network:
    """A network whose layer lost its weight and its bias."""
    network = captured(name).copy()
    (found,) = (one for one in network.layers if one.name == layer)
    weight = network.tensor(str(found.weight.target))
    edit.set_constant(network.graph_module, str(found.weight.target), torch.zeros_like(weight))
    return network


@pytest.mark.parametrize(("name", "layer"), [("unet2d", "leave.0"), ("unet2d", "up"), ("transformer", "mlp.0")])
def test_a_layer_that_lost_its_weight_gets_it_back(name: str, layer: str):
    network, parent = damaged(name, layer), captured(name)
    batches = images(parent.shape, count=24)
    refit(network, parent, {layer: layer}, batches, damping=1e-9, most=4096)
    edit.finish(network.graph_module)
    x = images(parent.shape, seed=7)[0]
    assert sqnr_db(parent(x), network(x)) > 40
    assert sqnr_db(parent(x), damaged(name, layer)(x)) < 20


def test_later_layers_make_up_for_earlier_ones():
    parent = captured("unet2d")
    network = damaged("unet2d", "down.0")
    x, batches = images(parent.shape, seed=7)[0], images(parent.shape, count=24)
    before = sqnr_db(parent(x), network(x))
    refit(network, parent, {"up": "up", "leave.0": "leave.0"}, batches, damping=1e-3, most=4096)
    edit.finish(network.graph_module)
    assert sqnr_db(parent(x), network(x)) > before + 1


def test_it_needs_images():
    with pytest.raises(DataError, match="no calibration images"):
        refit(damaged("unet2d", "up"), captured("unet2d"), {"up": "up"}, [], damping=0.1, most=10)
    broken = [torch.full((1, 3, 16, 16), float("nan"))]
    with pytest.raises(DataError, match="the input of up NaN"):
        refit(damaged("unet2d", "up"), captured("unet2d"), {"up": "up"}, broken, damping=0.1, most=10)
