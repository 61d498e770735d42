import pytest
import torch
from torch import Tensor, nn

from microtome.core.normal import rectified_mean
from microtome.errors import OptionError
from microtome.graph.capture import capture
from microtome.methods.bias_analytic import CorrectBiasAnalytically
from microtome.methods.bias_correction import CorrectBias
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from networks import EVERYTHING, captured, images, randomize


def chain(activation: nn.Module) -> nn.Module:
    layers = [nn.Conv2d(3, 64, 1), nn.BatchNorm2d(64), activation, nn.Conv2d(64, 8, 1)]
    return randomize(nn.Sequential(*layers))


def normal_input(module: nn.Module, x: Tensor) -> None:
    """Give the batch norm the statistics of what it sees, as training does."""
    module.train()
    module[1].momentum = 1.0
    with torch.no_grad():
        module[1](module[0](x))
    module.eval()


@pytest.mark.parametrize("mean", [-2.0, -0.3, 0.0, 0.7, 3.0])
@pytest.mark.parametrize("deviation", [0.1, 1.0, 2.5])
def test_the_rectified_mean_is_that_of_samples(mean: float, deviation: float):
    samples = mean + deviation * torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    found = rectified_mean(torch.tensor(mean), torch.tensor(deviation))
    assert float(found) == pytest.approx(float(samples.clamp(min=0).mean()), abs=0.01 * deviation)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.2), nn.PReLU(64), nn.Identity()])
def test_it_comes_to_the_same_as_images(activation: nn.Module):
    x = torch.randn((8, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    module = chain(activation)
    normal_input(module, x)
    network = FoldBatchNorm()(capture(module, (3, 32, 32)), [])
    quantized = Quantize(EVERYTHING, weight_bits=3, activation_bits=None)(network, [x])
    outputs = {
        "float": network(x),
        "rounded": quantized(x),
        "empirical": CorrectBias()(quantized, [x])(x),
        "analytic": CorrectBiasAnalytically()(quantized, [])(x),
    }
    means = {name: value.detach().mean((0, 2, 3)) for name, value in outputs.items()}
    left = (means["analytic"] - means["empirical"]).abs().mean()
    assert left < 0.35 * (means["rounded"] - means["float"]).abs().mean()


def test_what_no_batch_norm_has_shaped_is_refused():
    network = FoldBatchNorm()(captured("residual3d"), [])
    quantized = Quantize(EVERYTHING)(network, images(network.shape))
    with pytest.raises(OptionError, match="without images"):
        CorrectBiasAnalytically()(quantized, [])
