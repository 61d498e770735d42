import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from microtome.errors import DataError
from microtome.graph.capture import capture
from microtome.graph.structure.groups import ChannelGroup, Member, channel_groups
from microtome.graph.watching.unit_scores import gate_gradients, norm_scales, output_scores, weight_rows
from networks import captured, images, randomize

SUMS = 1e-4  # float32 sums in another order


class Gated(nn.Module):
    """Two convolutions behind one another, with a gate on what the second reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.second = nn.Conv2d(6, 2, 3, padding=1)
        self.gate = torch.ones(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * self.gate[:, None, None])


class Plain(Gated):
    """The same without the gate."""

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def group_of(network, name: str) -> ChannelGroup:
    return next(group for group in channel_groups(network) if group.name == name)


def objective(output: Tensor, _: object, __: object) -> Tensor:
    return output.square().mean()


def test_gradients_are_those_of_a_gate():
    module, gated = randomize(Plain()), randomize(Gated())
    network = capture(module, (3, 8, 8))
    group = group_of(network, "first.0")
    found = gate_gradients(network, [group], images((3, 8, 8)), objective)["first.0"]
    slopes = []
    for x in images((3, 8, 8)):
        gated.gate = torch.ones(6, requires_grad=True)
        slopes.append(torch.autograd.grad(objective(gated(x), None, None), gated.gate)[0])
    assert torch.allclose(found.mean, sum(slopes) / 3, atol=SUMS)
    assert torch.allclose(found.mean_size, sum(s.abs() for s in slopes) / 3, atol=SUMS)
    assert torch.allclose(found.mean_square, sum(s.square() for s in slopes) / 3, atol=SUMS)


def test_all_readers_of_a_unit_count():
    network = captured("unet2d")
    group = group_of(network, "enter.0")  # read by the layer below and, over the skip connection, by the last block
    assert {m.constant for m in group.members if m.role == "reads"} == {"down.0.weight", "leave.0.weight"}
    copied = network.copy()
    x = images(network.shape)[0]
    leaves = [copied.graph_module.get_parameter(n).requires_grad_() for n in ("down.0.weight", "leave.0.weight")]
    below, beside = torch.autograd.grad(objective(copied(x), None, None), leaves)
    expected = (leaves[0] * below).sum((0, 2, 3)) + (leaves[1] * beside)[:, :16].sum((0, 2, 3))
    found = gate_gradients(network, [group], [x], objective)["enter.0"]
    assert torch.allclose(found.mean, expected.detach(), atol=SUMS)


def test_rows_of_all_layers_that_write_a_unit():
    network = captured("residual3d")
    group = group_of(network, "enter")
    rows = weight_rows(network, group)
    expected = [network.tensor(m.constant).flatten(1) for m in group.members if m.role == "writes"]
    assert len(expected) == 2  # the first layer, and that whose output is added
    assert torch.equal(rows, torch.cat(expected, 1))


def test_rows_of_units_that_have_several_or_unequally_many():
    network = captured("shared2d")
    units = torch.tensor([1, 0, 1, -1])
    group = ChannelGroup("g", "channels", 2, 1, (Member("enter.weight", 0, units, "writes"),), ("enter",), None)
    w = network.tensor("enter.weight").flatten()
    assert weight_rows(network, group).tolist() == [[float(w[1]), 0], [float(w[0]), float(w[2])]]


def test_scales_of_the_norms_behind():
    network = captured("unet2d")
    found = norm_scales(network, group_of(network, "down.0"))
    assert torch.equal(found, network.tensor("down.1.weight").abs())
    assert norm_scales(network, group_of(network, "up")) is None


def test_how_often_outputs_exceed_a_threshold():
    module = randomize(Plain())
    network = capture(module, (3, 8, 8))
    group = group_of(network, "first.0")
    found = output_scores(network, [group], images((3, 8, 8)), by="activation", threshold=0.5)["first.0"]
    shares = []
    for x in images((3, 8, 8)):
        seen = module.first(x).detach()
        shares.append((seen.abs() > 0.5 * seen.square().mean().sqrt()).float().mean((0, 2, 3)))
    assert torch.allclose(found, sum(shares) / 3, atol=SUMS)


def test_ranks_of_maps_and_none_of_tokens():
    module = randomize(Plain())
    network = capture(module, (3, 8, 8))
    group = group_of(network, "first.0")
    x = images((3, 8, 8))
    found = output_scores(network, [group], x, by="hrank", threshold=0)["first.0"]
    seen = torch.cat([module.first(one) for one in x]).detach().double()
    assert torch.allclose(found, torch.linalg.matrix_rank(seen, rtol=1e-3).float().mean(0))
    tokens = captured("transformer")
    groups = channel_groups(tokens)
    assert "mlp.0" not in output_scores(tokens, groups, images(tokens.shape), by="hrank", threshold=0)
    assert "mlp.0" in output_scores(tokens, groups, images(tokens.shape), by="activation", threshold=0)


def test_volumes_are_matrices_of_their_first_axis():
    network = captured("residual3d")
    group = group_of(network, "first.0")
    found = output_scores(network, [group], images(network.shape), by="hrank", threshold=0)["first.0"]
    assert found.shape == (16,)
    assert 1 < float(found.max()) <= 8


def test_images_are_needed():
    network = captured("unet2d")
    with pytest.raises(DataError, match="no calibration images"):
        output_scores(network, channel_groups(network)[:1], [], by="activation", threshold=0)
    with pytest.raises(DataError, match="no images to take gradients on"):
        gate_gradients(network, channel_groups(network)[:1], [], functional.l1_loss)
