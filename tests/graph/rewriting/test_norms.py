import pytest
import torch
from torch import nn

from microtome.graph.capture import capture
from microtome.graph.operators import kind
from microtome.graph.rewriting.norms import norms_by_channel
from networks import randomize

NORMS = [
    (nn.GroupNorm(2, 8), 2),
    (nn.GroupNorm(8, 8), 3),
    (nn.GroupNorm(1, 8, affine=False, eps=1e-2), 2),
    (nn.InstanceNorm2d(8), 2),
    (nn.InstanceNorm3d(8, affine=True, eps=1e-3), 3),
]
BOTH = frozenset({"group_norm", "instance_norm"})


def network_with(norm: nn.Module, dims: int):
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    layers = [convolution(2, 8, 3, padding=1), norm, nn.ReLU(), convolution(8, 3, 1)]
    return capture(randomize(nn.Sequential(*layers)), (2, *[6] * dims))


def kinds(network) -> set[str]:
    return {kind(node) for node in network.graph_module.graph.nodes}


@pytest.mark.parametrize(("norm", "dims"), NORMS)
def test_computes_the_same(norm: nn.Module, dims: int):
    network = network_with(norm, dims)
    rewritten = norms_by_channel(network, BOTH)
    assert kinds(network) & BOTH
    assert not kinds(rewritten) & BOTH
    x = torch.randn(3, 2, *range(5, 5 + dims)) + 0.5  # sizes that it was not captured with
    torch.testing.assert_close(rewritten(x), network(x), atol=2e-5, rtol=2e-5)


def test_a_constant_image_stays_finite():
    network = network_with(nn.GroupNorm(2, 8), 2)
    x = torch.full((1, 2, 8, 8), 3.0)
    assert norms_by_channel(network)(x).isfinite().all()


def test_only_the_kinds_asked_for():
    network = network_with(nn.InstanceNorm2d(8), 2)
    assert norms_by_channel(network) is network


def test_running_statistics_are_no_statistics_of_the_image():
    network = network_with(nn.InstanceNorm2d(8, track_running_stats=True), 2)
    assert norms_by_channel(network, BOTH) is network


def test_does_not_change_its_argument():
    network = network_with(nn.GroupNorm(2, 8), 2)
    before = network.fingerprint()
    norms_by_channel(network)
    assert network.fingerprint() == before
