import itertools

import torch
from torch import Tensor, nn

from microtome.core.affine import fake_quantize
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.quantizers import weight_quantizer
from microtome.methods.adaround import AdaRound
from microtome.methods.base import Context
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from networks import randomize, told

NEAR = 1.1  # of the least error that any rounding has: learning stops after finitely many steps


def weights_only(module: nn.Module, shape: tuple[int, ...], batches: list[Tensor]) -> Network:
    network = FoldBatchNorm().run(capture(module, shape))
    return Quantize(weight_bits=3, activation_bits=None).run(network, told(batches))


def correlated(shape: tuple[int, ...]) -> list[Tensor]:
    """Return images that hardly change along their last axis, so that errors can make up for one another."""
    generator = torch.Generator().manual_seed(3)
    common = torch.randn(32, *shape[:-1], 1, generator=generator)
    return [common + 0.1 * torch.randn(32, *shape, generator=generator)]


def test_it_finds_about_the_best_of_all_roundings():
    shape = (1, 4, 8)
    batches = correlated(shape)
    coarse = weights_only(randomize(nn.Sequential(nn.Linear(8, 6))), shape, batches)
    (layer,) = coarse.layers
    grid = weight_quantizer(coarse, layer)
    real = coarse.tensor(str(layer.weight.target))
    x = batches[0].flatten(0, -2)

    def errors(weight: Tensor) -> Tensor:
        """Of each output."""
        return ((weight - real) @ x.T).square().mean(1)

    scale = grid.scale[:, None]
    down = (real / scale).floor()
    roundings = [
        errors((down + torch.tensor(up)).clamp(grid.qtype.qmin, grid.qtype.qmax) * scale)
        for up in itertools.product((0.0, 1.0), repeat=8)
    ]
    least = float(torch.stack(roundings).amin(0).sum())
    assert float(errors(fake_quantize(real, grid)).sum()) > 3 * least
    after = AdaRound(steps=300, samples=4, rate=0.1, decisiveness=10.0).run(coarse, Context(batches))
    assert float(errors(after.tensor(str(after.layers[0].weight.target))).sum()) < NEAR * least


def test_what_the_activation_function_hides_is_not_learned():
    """Behind the ReLU nothing is left of the layer: there is no error to lower."""
    shape = (1, 4, 8)
    batches = correlated(shape)
    module = randomize(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
    module[0].bias.data.fill_(-1000.0)
    coarse = weights_only(module, shape, batches)
    after = AdaRound(steps=20).run(coarse, Context(batches))
    first = coarse.layers[0]
    real = coarse.tensor(str(first.weight.target))
    rounded = after.tensor(str(after.layers[0].weight.target))
    torch.testing.assert_close(rounded, fake_quantize(real, weight_quantizer(coarse, first)))
