import numpy as np
import pytest
import torch
from torch import nn

from microtome.graph.capture import capture
from microtome.graph.learning.space import Choice, Space, child, mixed, proposed
from microtome.graph.learning.supernet import Supernet, with_own_statistics
from microtome.graph.network import Network
from microtome.graph.watching.macs import layer_sizes
from networks import build, captured, images, randomize

LEVELS = (0.25, 0.5)
NAMES = ("unet2d", "residual3d", "dense2d", "transformer")


def space(name: str = "unet2d") -> Space:
    return Space(captured(name), LEVELS)


class Residual2d(nn.Module):
    """Two residual branches with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
            for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.enter(x))
        for branch in self.branches:
            x = x + branch(x)
        return self.leave(x)


def deep(*, depth: bool = True) -> Space:
    """Return a space with residual branches that may go."""
    return Space(capture(randomize(Residual2d()), (3, 16, 16)), LEVELS, depth=depth)


@pytest.mark.parametrize("name", NAMES)
def test_costs_are_those_of_the_networks_that_are_cut_out(name: str):
    found, rng = space(name), np.random.default_rng(0)
    assert found.levels == (0.25, 0.5, 1.0)
    for choice in (found.uniform(0.25), found.uniform(1.0), mixed(found, rng), mixed(found, rng)):
        cut, cost = found.cut(choice), found.cost(choice)
        assert cost.parameters == cut.parameters
        assert cost.macs == sum(size.macs for size in layer_sizes(cut))


@pytest.mark.parametrize("name", NAMES)
def test_narrow_networks_compute_with_parts_of_the_common_weights(name: str):
    found, rng = space(name), np.random.default_rng(1)
    pool = [found.uniform(0.25), mixed(found, rng)]
    supernet = Supernet(found, pool, norms=False).train()
    with torch.no_grad():
        for parameter in supernet.full.weights():
            parameter.mul_(1.1)
    supernet.choose(0, 1, seed=0)
    x = images(found.parent.shape)[0]
    output = supernet(x)
    trained = supernet.full.freeze()
    torch.testing.assert_close(output, trained(x), rtol=1e-4, atol=1e-4)
    assert len(supernet.answers) == 2
    for answer, choice in zip(supernet.answers, pool, strict=True):
        torch.testing.assert_close(answer, found.cut(choice, trained)(x), rtol=1e-4, atol=1e-4)
    supernet.eval()
    supernet(x)
    assert not supernet.answers


def test_blocks_can_be_taken_out():
    found = deep()
    assert len(found.blocks) == 2
    assert not deep(depth=False).blocks
    gone = frozenset(found.blocks[:1])
    for choice in (Choice(found.uniform(1.0).widths, gone), Choice(found.uniform(0.5).widths, gone)):
        cut, cost = found.cut(choice), found.cost(choice)
        assert cost.parameters == cut.parameters < found.cost(Choice(choice.widths)).parameters
        assert cost.macs == sum(size.macs for size in layer_sizes(cut))
        supernet = Supernet(found, [choice], norms=False).train()
        supernet.choose(0, 1, seed=0)
        x = images(found.parent.shape)[0]
        supernet(x)
        torch.testing.assert_close(supernet.answers[0], cut(x), rtol=1e-4, atol=1e-4)
    rng = np.random.default_rng(0)
    drawn = [mixed(found, rng) for _ in range(40)]
    assert {one.removed for one in drawn} >= {frozenset(), gone}
    children = [child(found, drawn, rng) for _ in range(40)]
    assert {one.removed for one in children} >= {frozenset(), gone}
    assert proposed(found, drawn[:3], rng.random((3, 2)), 2, rng)


@pytest.mark.parametrize("name", ["unet2d", "residual3d"])
def test_kernels_and_resolutions_are_chosen(name: str):
    found = Space(captured(name), LEVELS, kernels=True, resolutions=(0.5,))
    assert found.kernels
    assert found.resolutions == (0.5, 1.0)
    rng, x = np.random.default_rng(0), images(found.parent.shape)[0]
    drawn = [mixed(found, rng) for _ in range(60)]
    children = [child(found, drawn, rng) for _ in range(60)]
    for many in (drawn, children):
        assert {one.resolution for one in many} == {0.5, 1.0}
        assert {name for one in many for name in one.kernels} == set(found.kernels)
    for choice in drawn[:4]:
        cut, cost = found.cut(choice), found.cost(choice)
        assert cost.parameters == cut.parameters
        assert cost.macs == sum(size.macs for size in layer_sizes(cut))
        supernet = Supernet(found, [choice], norms=False).train()
        supernet.choose(0, 1, seed=0)
        supernet(x)
        torch.testing.assert_close(supernet.answers[0], cut(x), rtol=1e-4, atol=1e-4)
    assert proposed(found, drawn[:3], rng.random((3, 2)), 2, rng)


def test_gradients_of_narrow_networks_reach_the_units_that_they_have():
    found = space()
    supernet = Supernet(found, [found.uniform(0.25)], norms=False).train()
    supernet.choose(0, 1, seed=0)
    supernet(images((3, 16, 16))[0])
    supernet.answers[0].square().sum().backward()
    kept = found.kept(found.uniform(0.25))["down.0"]
    rows = supernet.module.get_parameter("down.0.weight").grad.flatten(1).abs().sum(1) > 0
    assert rows.nonzero().flatten().tolist() == kept.tolist()


def test_each_step_has_the_narrowest_and_others_that_can_be_drawn_again():
    found, rng = space(), np.random.default_rng(0)
    supernet = Supernet(found, [found.uniform(0.25), *(mixed(found, rng) for _ in range(5))], norms=False)
    drawn = []
    for step in (*range(20), 7):
        supernet.choose(step, 2, seed=3)
        drawn.append(supernet._chosen)
    assert all(one[0] == 0 and len(set(one)) == 3 for one in drawn)
    assert drawn[7] == drawn[20]
    assert {place for one in drawn for place in one} == set(range(6))


def test_statistics_are_the_mean_of_the_batches():
    network, module, batches = captured("unet2d"), build("unet2d").train(), images((3, 16, 16), count=3)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # the plain mean
            layer.reset_running_stats()
    for x in batches:
        module(x)
    module.eval()
    torch.testing.assert_close(
        with_own_statistics(network, batches)(batches[0]), module(batches[0]), rtol=1e-4, atol=1e-4
    )
    assert with_own_statistics(captured("residual3d"), batches) is captured("residual3d")


def test_children_have_their_parents_widths_or_the_next():
    found, rng = space(), np.random.default_rng(0)
    parents = [found.uniform(0.25), found.uniform(0.5)]
    children = [child(found, parents, rng) for _ in range(200)]
    assert {width for one in children for width in one.widths} == {0.25, 0.5, 1.0}
    inherited = [width in (0.25, 0.5) for one in children for width in one.widths]
    assert 0.8 < sum(inherited) / len(inherited) < 1


def test_what_is_proposed_is_new_and_better_than_chance():
    # the score only asks for one wide group, the cost counts all
    found = space()
    known = [found.uniform(level) for level in found.levels]
    rng = np.random.default_rng(0)

    def objectives(choices: list[Choice]) -> np.ndarray:
        return np.array([[-one.widths[0], np.log(found.cost(one).parameters)] for one in choices])

    for _ in range(5):
        new = proposed(found, known, objectives(known), 4, rng)
        assert new
        assert not set(new) & set(known)
        known += new
    wide = [one for one in known if one.widths[0] == 1]
    cheapest = min(found.cost(one).parameters for one in wide)
    assert cheapest < 0.25 * found.cost(found.uniform(1.0)).parameters


def test_a_cheap_network_that_cannot_see_has_no_children():
    found = space()
    known = [found.uniform(1.0), found.uniform(0.25)]
    objectives = np.array([[-0.9, 9.0], [-0.1, 1.0]])
    widths = {}
    for worst in (-0.5, np.inf):
        new = proposed(found, known, objectives, 8, np.random.default_rng(0), worst=worst)
        widths[worst] = {width for one in new for width in one.widths}
    assert widths == {-0.5: {0.5, 1.0}, np.inf: {0.25, 0.5, 1.0}}
    assert proposed(found, known, objectives, 8, np.random.default_rng(0), worst=-1.0)  # all are worse


def test_a_space_that_is_known_has_nothing_to_propose():
    found = Space(narrow(), (0.5,))
    known = [Choice(widths) for widths in np.ndindex(*(2,) * len(found.groups))]
    known = [Choice(tuple((0.5, 1.0)[k] for k in one.widths)) for one in known]
    rng = np.random.default_rng(0)
    assert proposed(found, known, np.random.default_rng(1).random((len(known), 2)), 3, rng) == []


def narrow() -> Network:
    return captured("concat_up2d")
