import pytest
import torch
from torch import Tensor, nn

from microtome.errors import DataError, OptionError
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.methods.base import Context
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.merge_channels import MergeChannels
from networks import captured, images, randomize, sqnr_db

# What is told by others exactly is so in float64; the refitted weights are rounded to float32.
EXACT = 1e-4


class Chain(nn.Module):
    """Two readers of one group of channels, without padding, so that means that go into biases are exact."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 3)
        self.one, self.other = nn.Conv2d(8, 4, 3), nn.Conv2d(8, 4, 3)
        self.leave = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        return self.leave(torch.tanh(self.one(x) + self.other(x)))


def twins() -> Chain:
    """Of the eight channels, 5 is three times 2, 6 and 7 are constant, one of them zero."""
    module = randomize(Chain())
    with torch.no_grad():
        for tensor in (module.enter.weight, module.enter.bias):
            tensor[5] = 3 * tensor[2]
            tensor[6:] = 0.0
        module.enter.bias[6] = 0.7
        module.enter.bias[2], module.enter.bias[5] = 0.5, 1.5  # so that they are not mostly zero
    return module


def widths(network: Network) -> dict[str, int]:
    return {layer.name: network.tensor(str(layer.weight.target)).shape[0] for layer in network.layers}


@pytest.mark.parametrize("fit", ["all", "one"])
def test_duplicates_multiples_and_constants_go_for_nothing(fit: str):
    network = capture(twins(), (3, 12, 12))
    merged = MergeChannels(most_error=1e-7, fit=fit).run(network, Context(images((3, 12, 12))))  # type: ignore[arg-type]
    assert widths(merged) == {"enter": 5, "one": 4, "other": 4, "leave": 2}
    for x in images((3, 12, 12), seed=5):
        assert torch.allclose(merged(x), network(x), atol=EXACT)
    found = merged.history[-1]
    assert found["merged_channels"] == {"enter": 3, "one": 0}
    assert found["error"] < 1e-7
    assert "output" in found["not_merged"]["leave"]


class Joined(nn.Module):
    """A layer that reads a concatenation."""

    def __init__(self, leave: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.leave = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), leave

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.cat([torch.relu(self.a(x)), torch.tanh(self.b(x))], 1))


@pytest.mark.parametrize("leave", [nn.Conv2d(8, 2, 1), nn.ConvTranspose2d(8, 2, 2, stride=2)])
def test_channels_of_a_concatenation_go_out_of_its_readers(leave: nn.Module):
    module = randomize(Joined(leave))
    with torch.no_grad():
        module.b.weight[3], module.b.bias[3] = -module.b.weight[1], -module.b.bias[1]  # tanh is odd
        module.a.weight[0], module.a.bias[0] = 2 * module.a.weight[3], 2 * module.a.bias[3]
    network = capture(module, (3, 6, 6))
    merged = MergeChannels(most_error=1e-7).run(network, Context(images((3, 6, 6))))
    assert merged.history[-1]["merged_channels"] == {"a": 1, "b": 1}
    for x in images((3, 6, 6), seed=5):
        assert torch.allclose(merged(x), network(x), atol=EXACT)


def test_a_share_is_taken_and_the_fit_on_all_is_the_better_one():
    network = FoldBatchNorm().run(captured("unet2d"))
    context = Context(images(network.shape, 6))
    x = torch.cat(images(network.shape, 6))
    results = {}
    for fit in ("all", "one"):
        merged = MergeChannels(share=0.25, fit=fit).run(network, context)  # type: ignore[arg-type]
        assert sum(merged.history[-1]["merged_channels"].values()) == 20  # of 80
        assert merged.parameters < network.parameters
        results[fit] = sqnr_db(network(x), merged(x))
    assert results["all"] > results["one"]
    # a quarter of the channels cut without a fit is no longer the same network
    assert results["all"] > 5


def test_more_is_lost_by_more():
    network = FoldBatchNorm().run(captured("unet2d"))
    context = Context(images(network.shape, 6))
    counts = [
        sum(MergeChannels(most_error=error).run(network, context).history[-1]["merged_channels"].values())
        for error in (0.0, 1e-3, 1e-2, 0.1)
    ]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_widths_are_rounded_and_some_stay():
    network = FoldBatchNorm().run(captured("unet2d"))
    context = Context(images(network.shape))
    rounded = MergeChannels(share=0.4, multiple=8).run(network, context)
    assert all(width % 8 == 0 for name, width in widths(rounded).items() if name in ("enter.0", "down.0", "leave.0"))
    assert sum(rounded.history[-1]["merged_channels"].values()) > 0
    most = MergeChannels(share=0.99, least=3, skip=frozenset({"up"})).run(network, context)
    assert widths(most)["down.0"] == widths(most)["enter.0"] == 3
    assert most.history[-1]["merged_channels"].keys() == {"enter.0", "down.0", "leave.0"}
    assert bool(torch.isfinite(most(images(network.shape)[0])).all())


def test_what_norms_and_attention_mix_stays():
    network = captured("transformer")
    merged = MergeChannels(share=0.3).run(network, Context(images(network.shape)))
    found = merged.history[-1]
    assert found["not_merged"]["embed"] == "layer_norm mixes its channels"
    assert found["merged_channels"].keys() == {"mlp.0"}
    assert widths(merged)["mlp.0"] == 64 - round(0.3 * 64)


def test_few_values_are_not_fitted_on_many_channels():
    network = captured("dense2d")  # its head reads 48 channels, averaged over space: six values
    merged = MergeChannels(share=0.2).run(network, Context(images(network.shape, 3)))
    x = torch.cat(images(network.shape, 8, seed=7))
    assert sqnr_db(network(x), merged(x)) > 3


@pytest.mark.parametrize("fields", [{"most_error": -1.0}, {"share": 1.0}, {"least": 0}, {"multiple": 0}])
def test_what_is_no_share_is_refused(fields: dict[str, float]):
    with pytest.raises(OptionError, match=r"not negative|at least 1"):
        MergeChannels(**fields)  # type: ignore[arg-type]


def test_refusals_say_why():
    network = FoldBatchNorm().run(captured("unet2d"))
    with pytest.raises(OptionError, match="the network has no group 'enter'"):
        MergeChannels(skip=frozenset({"enter"})).run(network, Context(images(network.shape)))
    with pytest.raises(DataError, match="no calibration images"):
        MergeChannels().run(network, Context([]))
    with pytest.raises(DataError, match="NaN or infinite"):
        MergeChannels().run(network, Context([torch.full((1, 3, 16, 16), torch.nan)]))
    assert MergeChannels().refusal(frozenset({"sparse"})) is not None
