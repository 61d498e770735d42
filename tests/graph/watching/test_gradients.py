import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from microtome.core.distillation import divergence
from microtome.errors import DataError
from microtome.graph.capture import capture
from microtome.graph.watching.gradients import drawn, gradient_sums, labelled, some, taught
from networks import captured, images, randomize

SUMS = 1e-5  # float32 sums in another order
DRAWN = 0.15  # 1000 draws: their mean is off by less


def test_sums_of_gradients_are_those_of_autograd():
    network = captured("unet2d")
    name = str(network.layers[1].weight.target)
    batches = [(x, torch.ones(2, 16, 16, dtype=torch.int64)) for x in images((3, 16, 16))]

    def objective(output: Tensor, _: object, target: Tensor) -> Tensor:
        return functional.cross_entropy(output, target)

    before = network.fingerprint()
    found = gradient_sums(network, [name], batches, objective)
    assert list(found) == [name]
    assert network.fingerprint() == before
    copied = network.copy()
    weight = copied.graph_module.get_parameter(name).requires_grad_()
    each = [torch.autograd.grad(objective(copied(x), None, y), weight)[0] for x, y in batches]
    assert torch.allclose(found[name].mean, sum(each) / 3, atol=SUMS)
    assert torch.allclose(found[name].mean_size, sum(g.abs() for g in each) / 3, atol=SUMS)
    assert torch.allclose(found[name].mean_square, sum(g.square() for g in each) / 3, atol=SUMS)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_drawn_gradients_squared_are_the_hessian_of_the_divergence(sigmoid: bool):
    linear = randomize(nn.Linear(3, 4, bias=False))
    network = capture(linear, (3,))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    (name,) = network.constants()
    found = gradient_sums(network, [name], [x] * 1000, drawn(sigmoid=sigmoid, seed=0))[name].mean_square
    weight = linear.weight.detach()

    def loss(w: Tensor) -> Tensor:
        return divergence(x @ w.reshape(4, 3).T, x @ weight.T, sigmoid=sigmoid)

    hessian = torch.autograd.functional.hessian(loss, weight.flatten())
    assert torch.allclose(found.flatten(), hessian.diagonal(), rtol=DRAWN, atol=1e-3)


def test_the_loss_sees_teacher_and_target_and_without_one_the_teacher_is_imitated():
    network, other = captured("shared2d"), capture(nn.Conv2d(1, 4, 1), (1, 8, 8))
    x = images((1, 8, 8))[0]
    given = []

    def loss(output: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        given.append((teacher, target))
        return output.sum()

    objective = taught(loss, other, sigmoid=False)
    assert torch.equal(objective(network(x), x, torch.ones(2)).detach(), network(x).sum().detach())
    assert torch.equal(given[0][0], other(x))
    assert float(given[0][1].sum()) == 2
    own = taught(None, network, sigmoid=False)
    assert float(own(network(x), x, None).detach()) == pytest.approx(0, abs=SUMS)
    assert float(own(other(x), x, None).detach()) > 0.01


def test_batches_are_needed_and_finite():
    network = captured("shared2d")
    names = [str(network.layers[0].weight.target)]
    with pytest.raises(DataError, match="no images to take gradients on"):
        gradient_sums(network, names, [], drawn(sigmoid=False, seed=0))
    with pytest.raises(DataError, match="a gradient is NaN"):
        gradient_sums(network, names, [torch.full((1, 1, 8, 8), torch.nan)], drawn(sigmoid=False, seed=0))


def test_some_and_labelled():
    assert list(some([1, 2, 3], 2)) == [1, 2]
    assert list(some(None, 2)) == []
    assert labelled([(1, 2)])
    assert not labelled([1])
    assert not labelled(None)
