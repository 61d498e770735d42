import pytest
import torch
from torch import Tensor, nn

from microtome.graph import pt2
from microtome.graph.capture import capture
from microtome.graph.watching.distribution import distributions, mean_response
from microtome.graph.watching.observe import Observed
from microtome.methods.bias_analytic import NOTHING_KNOWN, CorrectBiasAnalytically
from microtome.methods.bias_correction import CorrectBias
from microtome.methods.equalize import Equalize
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from networks import captured, images, randomize, told

COARSE = Quantize(weight_bits=3, activation_bits=None)


class Mixed(nn.Module):
    """Norms, a sum, a concatenation, an upsampling, a flattening: what means are followed through."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.act, self.last = nn.SiLU(), nn.Conv2d(8, 2, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.one(x), self.act(self.other(x))
        joined = torch.cat([torch.nn.functional.interpolate(b, scale_factor=2), self.up(a + b)], 1)
        return torch.flatten(nn.functional.adaptive_avg_pool2d(self.last(joined), 2), 1)

    def up(self, x: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(x, scale_factor=2)


def settled(module: nn.Module, x: Tensor) -> nn.Module:
    """Give batch norms the statistics of what they see, as training does."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
            layer.train()
    with torch.no_grad():
        module(x)
    return module.eval()


def chain(activation: nn.Module) -> nn.Module:
    return randomize(nn.Sequential(nn.Conv2d(3, 64, 1), nn.BatchNorm2d(64), activation, nn.Conv2d(64, 8, 1)))


def noise(seed: int = 1) -> Tensor:
    return torch.randn((8, 3, 32, 32), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("equalize", [False, True])
@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.2), nn.PReLU(64), nn.ReLU6(), nn.SiLU(), nn.Identity()],
    ids=["relu", "relu_", "leaky", "prelu", "relu6", "silu", "identity"],
)
def test_it_comes_to_the_same_as_images(activation: nn.Module, equalize: bool):
    x = noise()
    network = FoldBatchNorm().run(capture(settled(chain(activation), x), (3, 32, 32)))
    if equalize:
        network = Equalize().run(network)
    quantized = COARSE.run(network, told([x]))
    last = [f"{name}.bias" for name in (layer.name for layer in network.layers)][-1]
    found = [method.run(quantized, told([x])).tensor(last) for method in (CorrectBias(), CorrectBiasAnalytically())]
    empirical, analytic = (bias - quantized.tensor(last) for bias in found)
    # what a sum of three channels of noise lacks of a normal distribution
    assert float((analytic - empirical).norm()) < 0.1 * float(empirical.norm())


def test_means_are_followed_through_sums_concatenations_and_groups():
    x = noise()
    network = FoldBatchNorm().run(capture(settled(randomize(Mixed()), x), (3, 32, 32)))
    known = distributions(network)
    seen: dict[str, Tensor] = {}
    Observed(network, known, lambda node, value: seen.update({node.name: value.movedim(1, 0).flatten(1)}))(x)
    assert len(known) >= 9
    *rest, flat = known
    torch.testing.assert_close(known[flat].mean, known[rest[-1]].mean.repeat_interleave(4))
    for node in rest:
        normal = known[node]
        torch.testing.assert_close(normal.mean, seen[node.name].mean(1), rtol=0, atol=2e-3)
        if normal.std is not None and "add" not in node.name:
            torch.testing.assert_close(normal.std, seen[node.name].std(1), rtol=0.05, atol=0.01)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), nn.Conv2d(4, 4, 3, dilation=2)],
    ids=["grouped", "transposed", "dilated"],
)
def test_a_constant_image_gives_the_mean_response(layer: nn.Module):
    mean = torch.tensor([0.5, -1.0, 2.0, 0.25])
    network = capture(randomize(layer), (4, 12, 12))
    (found,) = network.layers
    expected = network(mean.reshape(1, -1, 1, 1).expand(1, 4, 12, 12)).mean((0, 2, 3))
    response = mean_response(found.node, network.tensor(str(found.weight.target)), mean)
    torch.testing.assert_close(response + network.tensor("bias"), expected)


def test_behind_an_instance_norm_the_mean_is_its_shift():
    network = captured("residual3d")
    quantized = Quantize().run(FoldBatchNorm().run(network), told(images(network.shape)))
    known = {node.name: normal for node, normal in distributions(quantized).items() if "instance_norm" in node.name}
    assert len(known) == 2
    for normal in known.values():
        torch.testing.assert_close(normal.mean, torch.zeros(16))
        torch.testing.assert_close(normal.std, torch.ones(16))


def test_only_biases_of_layers_behind_norms_change():
    network = captured("unet2d")
    quantized = COARSE.run(FoldBatchNorm().run(network), told(images(network.shape)))
    corrected = CorrectBiasAnalytically().run(quantized)
    changed = {n for n, t in quantized.constants().items() if not torch.equal(t, corrected.constants()[n])}
    assert changed == {"down.0.bias", "up.bias", "leave.0.bias", "leave.3.bias"}
    assert corrected.notes == quantized.notes


def test_it_says_that_nothing_is_known(tmp_path):
    network = captured("transformer")
    quantized = COARSE.run(FoldBatchNorm().run(network), told(images(network.shape)))
    assert CorrectBiasAnalytically().run(quantized).notes[-1] == NOTHING_KNOWN
    unet = COARSE.run(FoldBatchNorm().run(captured("unet2d")), told(images((3, 16, 16))))
    pt2.save(unet, tmp_path / "quantized.pt2")
    loaded = pt2.load(tmp_path / "quantized.pt2")
    assert CorrectBiasAnalytically().run(loaded).notes[-1] == NOTHING_KNOWN
