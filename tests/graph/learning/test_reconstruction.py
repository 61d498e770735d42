from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from microtome.core.affine import fake_quantize
from microtome.graph.capture import capture
from microtome.graph.learning.reconstruction import Schedule, reconstruct
from microtome.graph.network import Network
from microtome.graph.operators import constant_source
from microtome.graph.quantizers import quantizers, weight_quantizer
from microtome.graph.structure.shared_grids import meets_others
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from networks import captured, images, randomize, told

PLAIN = Schedule(steps=6, samples=1, rate=3e-4, grid_rate=2e-3, drop=0.5, seed=0)


def quantized(name: str, weight_bits: int | None = 4, activation_bits: int | None = 4) -> Network:
    network = FoldBatchNorm().run(captured(name))
    quantize = Quantize(weight_bits=weight_bits, activation_bits=activation_bits)
    return quantize.run(network, told(images(network.shape)))


def scales(network: Network) -> list[tuple[bool, float]]:
    """Return for each activation grid whether it meets others, and its scale."""
    found = [q for q in quantizers(network) if q.kind == "activation"]
    return [(meets_others(q.node), float(q.qparams.scale)) for q in found]


def test_torchs_own_random_state_is_left_alone():
    network = quantized("concat_up2d")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    reconstruct(network, images(network.shape), PLAIN, layers=4)
    assert torch.equal(torch.rand(3), expected)


def test_what_is_drawn_depends_on_the_seed_alone():
    network = quantized("residual3d")
    batches = images(network.shape)
    torch.manual_seed(1)
    one = reconstruct(network, batches, PLAIN, layers=4).fingerprint()
    torch.manual_seed(2)
    assert reconstruct(network, batches, PLAIN, layers=4).fingerprint() == one
    assert reconstruct(network, batches, replace(PLAIN, seed=1), layers=4).fingerprint() != one


def test_grids_that_meet_in_a_concatenation_stay_alike():
    before = quantized("unet2d")
    after = reconstruct(before, images(before.shape), PLAIN, layers=4)
    pairs = list(zip(scales(before), scales(after), strict=True))
    met = [(old, new) for (meets, old), (_, new) in pairs if meets]
    alone = [(old, new) for (meets, old), (_, new) in pairs if not meets]
    assert met
    assert all(old == pytest.approx(new, rel=1e-6) for old, new in met)
    assert any(old != pytest.approx(new, rel=1e-6) for old, new in alone)


def test_a_block_that_became_worse_is_rounded_to_nearest():
    before = quantized("unet2d")
    after = reconstruct(before, images(before.shape), replace(PLAIN, rate=100.0, grid_rate=1.0), layers=4)
    for old, new in zip(quantizers(before), quantizers(after), strict=True):
        assert torch.allclose(old.qparams.scale, new.qparams.scale, rtol=1e-6)
        if old.kind == "weight":
            real, rounded = (n.tensor(str(constant_source(q.node).target)) for n, q in ((before, old), (after, new)))
            torch.testing.assert_close(rounded, fake_quantize(real, old.qparams))


def test_scales_are_learned_beside_weights_in_float():
    before = quantized("residual3d", weight_bits=None)
    after = reconstruct(before, images(before.shape), PLAIN, layers=4)
    assert scales(after) != scales(before)


@pytest.mark.parametrize("fisher", [False, True])
@pytest.mark.parametrize("name", ["unet2d", "residual3d", "dense2d", "transformer", "tied2d", "shared2d"])
def test_joined_and_weighted_blocks_give_a_network(name: str, fisher: bool):
    before = quantized(name)
    x = images(before.shape)[0]
    after = reconstruct(before, images(before.shape), replace(PLAIN, fisher=fisher), layers=2, joint=1)
    assert bool(torch.isfinite(after(x)).all())
    assert after.fingerprint() != before.fingerprint()


class IgnoresOne(nn.Module):
    """A layer with two channels, of which the next layer ignores the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.leaky_relu(self.first(x)))


@pytest.mark.parametrize("fisher", [False, True])
def test_only_errors_that_reach_the_output_are_mended_where_they_are_weighed(fisher: bool):
    module = randomize(IgnoresOne())
    module.last.weight.data = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
    network = FoldBatchNorm().run(capture(module, (3, 16, 16)))
    batches = images(network.shape)
    before = Quantize(weight_bits=3, activation_bits=None).run(network, told(batches))
    schedule = replace(PLAIN, steps=100, rate=0.2, drop=0.0, fisher=fisher)
    after = reconstruct(before, batches, schedule, layers=1)
    nearest = fake_quantize(before.tensor("first.weight"), weight_quantizer(before, before.layers[0]))
    moved = (after.tensor("first.weight") - nearest).abs().amax((1, 2, 3)) > 1e-5
    assert moved.tolist() == [True, not fisher]


@pytest.mark.parametrize(
    ("steps", "rate", "pace"), [(400, 0.02, 0.02), (100, 0.02, 0.08), (50, 0.02, 0.16), (3, 0.02, 0.3)]
)
def test_few_steps_are_long_ones(steps: int, rate: float, pace: float):
    assert replace(PLAIN, steps=steps, rate=rate).pace == pytest.approx(pace)


def test_a_rate_is_never_lowered():
    assert replace(PLAIN, steps=1000, rate=0.02).pace == 0.02
    assert replace(PLAIN, steps=10, rate=2.0).pace == 2.0
