import pytest
import torch

from microtome.graph.learning.initial import fresh
from networks import NETWORKS, captured, images


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "nothing"])
def test_values_keep_their_size_through_a_fresh_network(name: str):
    network = captured(name)
    fingerprint = network.fingerprint()
    made = fresh(network)
    output = made(torch.randn(8, *network.shape))
    assert 0.05 < float(output.detach().std()) < 20
    assert made.fingerprint() != fingerprint == network.fingerprint()
    assert fresh(network).fingerprint() == made.fingerprint() != fresh(network, seed=1).fingerprint()


def test_weights_have_the_deviation_of_he_and_norms_are_neutral():
    made = fresh(captured("unet2d"))
    constants = made.constants()
    for layer, fan, gain in zip(made.layers, (27, 144, 32, 288, 16), (1.882, 1.882, 1, 2, 1), strict=True):
        weight = constants[str(layer.weight.target)]
        assert float(weight.std()) == pytest.approx((gain / fan) ** 0.5, rel=0.15)
    assert all(bool((v == 1).all()) for name, v in constants.items() if "running_var" in name)
    assert all(not bool(v.any()) for name, v in constants.items() if "running_mean" in name or name.endswith("bias"))
    assert not bool(made.layers[0].node.args[2])


def test_positions_are_drawn_and_slopes_are_torchs():
    made = fresh(captured("unet2d"))
    slopes = [v for name, v in made.constants().items() if v.numel() == 1 and v.is_floating_point()]
    assert slopes
    assert all(float(v) == 0.25 for v in slopes)
    x = images(made.shape)[0]
    assert bool(torch.isfinite(made(x)).all())
