import pytest
import torch
from torch import nn

from microtome.errors import DataError
from microtome.graph.capture import capture
from microtome.graph.watching.axis_moments import collect_axes
from microtome.graph.watching.moments import geometry
from networks import captured, images

SUMS = 1e-4  # float32 sums of some hundred products of size 1


def patches(x: torch.Tensor) -> torch.Tensor:
    """All 3×2 patches of padded pictures, (positions, channels, 3, 2)."""
    padded = nn.functional.pad(x, (0, 0, 1, 1))
    return padded.unfold(2, 3, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1], 3, 2).double()


def test_moments_are_those_of_all_patches():
    network = capture(nn.Conv2d(4, 5, (3, 2), padding=(1, 0)), (4, 6, 7))
    batches = [x + 100 for x in images((4, 6, 7))]
    found = collect_axes(network, network.layers, batches, most=10**6)[network.layers[0].name]
    seen = patches(torch.cat(batches))
    assert found.count == len(seen)
    assert torch.allclose(found.mean(), seen.mean(0), atol=SUMS)
    centred = seen - seen.mean(0)
    channels, tall, wide = found.covariances()
    assert torch.allclose(channels, torch.einsum("niab,njab->ij", centred, centred) / len(seen), atol=SUMS * 10)
    for actual, which in ((tall, "nias,nibs->ab"), (wide, "nisa,nisb->ab")):
        expected = torch.einsum(which, centred, centred)
        assert torch.allclose(actual, expected / expected.diagonal().mean(), atol=SUMS)


def test_linear_layers_see_rows_and_draws_are_close():
    network = captured("transformer")
    batches = images(network.shape)
    layers = [layer for layer in network.layers if layer.op == "linear"]
    whole, some = (collect_axes(network, layers, batches, most=most) for most in (10**6, 24))
    for layer in layers:
        assert len(whole[layer.name].covariances()) == 1
        channels = geometry(layer.node)
        assert not channels.kernel
        assert some[layer.name].count <= whole[layer.name].count
        together = whole[layer.name].covariances()[0].trace()
        assert float(some[layer.name].covariances()[0].trace() / together) == pytest.approx(1, abs=0.4)


def test_no_images_and_broken_ones_are_refused():
    network = captured("unet2d")
    with pytest.raises(DataError, match="no calibration images"):
        collect_axes(network, network.layers, [], most=10)
    with pytest.raises(DataError, match=r"makes the input of enter\.0 NaN"):
        collect_axes(network, network.layers, [torch.full((1, 3, 16, 16), float("nan"))], most=10)
