import copy

import pytest
import torch
from torch import nn

from microtome.graph.learning.trainable import Trainable
from microtome.graph.learning.training_norms import TrainedNorm, has_batch_norms
from microtome.methods.fold import FoldBatchNorm
from networks import build, captured, images


def tensors(*, channels: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(channels, generator=generator) + 0.5 for _ in range(4)]


def test_a_batch_is_normalised_as_torch_does_and_the_statistics_follow():
    scale, shift, mean, variance = tensors()
    theirs = nn.BatchNorm2d(3, momentum=0.2)
    theirs.load_state_dict(
        {"weight": scale, "bias": shift, "running_mean": mean.clone(), "running_var": variance.clone()}, strict=False
    )
    ours, x = TrainedNorm(0.2, theirs.eps), torch.randn(4, 3, 5, 6)
    torch.testing.assert_close(ours(x, scale, shift, mean, variance), theirs(x))
    torch.testing.assert_close(mean, theirs.running_mean)
    torch.testing.assert_close(variance, theirs.running_var)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x, scale, shift, mean, variance), theirs(x))


@pytest.mark.parametrize("affine", [True, False])
def test_a_single_image_is_normalised_with_the_running_statistics_which_follow(affine: bool):
    scale, shift, mean, variance = tensors()
    if not affine:
        scale = shift = None
    norm, x = TrainedNorm(0.25, 1e-5), 2 * torch.randn(1, 3, 5, 6) + 1
    expected = nn.functional.batch_norm(x, mean, variance, scale, shift)
    before = mean.clone(), variance.clone()
    torch.testing.assert_close(norm(x, scale, shift, mean, variance), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mean, 0.75 * before[0] + 0.25 * x.mean([0, 2, 3]))
    torch.testing.assert_close(variance, 0.75 * before[1] + 0.25 * x.var([0, 2, 3]))


def test_the_gradient_of_a_single_image_flows_through_its_own_statistics():
    _, _, mean, variance = tensors()
    x = torch.randn(1, 3, 5, 6, requires_grad=True)
    (TrainedNorm(0.1, 1e-5)(x, None, None, mean, variance) * torch.randn(1, 3, 5, 6)).sum().backward()
    torch.testing.assert_close(x.grad.sum([0, 2, 3]), torch.zeros(3), rtol=0, atol=1e-4)  # a shift changes nothing


def test_a_single_value_per_channel_leaves_the_statistics():
    _, _, mean, variance = tensors()
    before = mean.clone()
    x = torch.randn(1, 3)
    expected = (x - mean) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(TrainedNorm(0.1, 1e-5)(x, None, None, mean, variance), expected)
    assert torch.equal(mean, before)


@pytest.mark.parametrize("name", ["unet2d", "dense2d", "shared2d"])
def test_a_graph_in_training_computes_what_the_module_does(name: str):
    network, module = captured(name), build(name).train()
    x = images(network.shape)[0]
    student = Trainable(network, norms=True)
    student.module.train()
    torch.testing.assert_close(student(x), copy.deepcopy(module)(x), rtol=1e-4, atol=1e-4)
    student.module.eval()
    module(x), module.eval()
    torch.testing.assert_close(student(x), module(x), rtol=1e-4, atol=1e-4)
    frozen = student.freeze()
    torch.testing.assert_close(frozen(x), module(x), rtol=1e-4, atol=1e-4)
    assert float((network(x) - module(x)).detach().abs().max()) > 1e-3  # the network that was passed is as it was
    assert frozen.fingerprint() == student.freeze().fingerprint()


def test_norms_that_are_folded_are_gone():
    assert has_batch_norms(captured("unet2d").graph_module)
    assert not has_batch_norms(FoldBatchNorm().run(captured("unet2d")).graph_module)
    assert not has_batch_norms(captured("residual3d").graph_module)


@pytest.mark.parametrize("name", ["unet2d", "residual3d", "transformer"])
def test_what_comes_back_lies_in_memory_as_before(name: str):
    network = captured(name)
    frozen = Trainable(network).freeze()
    assert frozen.fingerprint() == network.fingerprint()
    assert all(tensor.is_contiguous() for tensor in frozen.constants().values())
