import pytest
import torch
from torch import Tensor, nn

from microtome.graph import edit
from microtome.graph.capture import capture
from microtome.graph.operators import kind
from microtome.graph.structure.norms import Line, current_line, norms, put_line
from networks import captured, randomize

ROUNDING = 2e-6  # of products that are rounded in another order


def line(channels: int) -> Line:
    generator = torch.Generator().manual_seed(1)
    scale, shift, mean = (torch.randn(channels, generator=generator) for _ in range(3))
    return Line(scale, shift, mean, torch.rand(channels, generator=generator) + 0.5)


class Tokens(nn.Module):
    """A layer norm behind a linear layer; a function or a linear layer reads it."""

    def __init__(self, *, bends: bool, forks: bool = False) -> None:
        super().__init__()
        self.enter, self.norm, self.leave = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 2)
        self.bends, self.forks = bends, forks

    def forward(self, x: Tensor) -> Tensor:
        before = self.enter(x)
        x = self.norm(before)
        x = torch.tanh(x) if self.bends else x
        return self.leave(x + before if self.forks else x)


def test_norms_are_named_by_their_scale_or_by_the_layer_before():
    found = norms(captured("residual3d"))
    assert [(norm.name, norm.kind, norm.channels) for norm in found] == [
        ("first.1", "instance", 16),
        ("second.0.norm", "instance", 16),
    ]
    assert [(norm.name, norm.kind) for norm in norms(captured("transformer"))] == [
        ("norms.0", "layer"),
        ("norms.1", "layer"),
    ]
    bare = nn.Sequential(nn.ReLU(), nn.GroupNorm(2, 4, affine=False), nn.GroupNorm(1, 4))
    assert [(norm.name, norm.kind) for norm in norms(capture(bare, (4, 8, 8)))] == [("norm_0", "group"), ("2", "group")]


@pytest.mark.parametrize(
    "module", [nn.BatchNorm2d(4), nn.LayerNorm((4, 8, 8)), nn.InstanceNorm2d(4, track_running_stats=True)]
)
def test_what_is_fixed_already_or_has_no_channels_is_not_among_them(module: nn.Module):
    assert norms(capture(module.eval(), (4, 8, 8))) == ()


@pytest.mark.parametrize("share", [0.0, 0.25])
@pytest.mark.parametrize(
    "make", [lambda: nn.GroupNorm(2, 6), lambda: nn.InstanceNorm2d(6, affine=True)], ids=["group", "instance"]
)
def test_a_line_over_images_takes_its_share(make, share: float):
    module = randomize(nn.Sequential(nn.Conv2d(2, 6, 1), make(), nn.ReLU()))
    network, x = capture(module, (2, 8, 8)), torch.randn(2, 2, 8, 8)
    (norm,) = norms(network)
    wanted = line(6)
    put_line(network, norm, wanted, share)
    edit.finish(network.graph_module)
    between = module[0](x)
    straight = wanted.scale[:, None, None] * between + wanted.shift[:, None, None]
    expected = torch.relu(share * module[1](between) + (1 - share) * straight)
    assert torch.allclose(network(x), expected, atol=ROUNDING)
    assert sum(kind(node) == "batch_norm" for node in network.graph_module.graph.nodes) == 1
    assert len(norms(network)) == (share > 0)
    if share:
        (blended,) = norms(network)
        assert blended.blend is not None
        assert blended.blend.share == share
        for found, given in zip(current_line(network, blended), (wanted.scale, wanted.shift), strict=True):
            assert torch.allclose(found, given, atol=ROUNDING)
        put_line(network, blended, wanted, 0.0)
        edit.finish(network.graph_module)
        assert norms(network) == ()
        assert torch.allclose(network(x), torch.relu(straight), atol=ROUNDING)


@pytest.mark.parametrize("blended", [False, True])
@pytest.mark.parametrize(
    ("bends", "forks", "left"),
    [(False, False, []), (True, False, ["tanh"]), (True, True, ["mul", "add", "tanh", "add"])],
    ids=["into the layer behind", "into the layer before", "between"],
)
def test_a_line_over_features_goes_into_linear_layers(bends: bool, forks: bool, left: list[str], blended: bool):
    module = randomize(Tokens(bends=bends, forks=forks))
    network, x = capture(module, (5, 6)), torch.randn(2, 5, 6)
    wanted = line(6)
    (norm,) = norms(network)
    if blended:
        put_line(network, norm, line(6), 0.5)
        edit.finish(network.graph_module)
        (norm,) = norms(network)
        half = 0.5 * module.norm(module.enter(x)) + 0.5 * (wanted.scale * module.enter(x) + wanted.shift)
        half = torch.tanh(half) if bends else half
        assert torch.allclose(network(x), module.leave(half + module.enter(x) if forks else half), atol=ROUNDING)
    put_line(network, norm, wanted, 0.0)
    edit.finish(network.graph_module)
    module.norm = _Straight(wanted)  # type: ignore[assignment]
    assert torch.allclose(network(x), module(x), atol=ROUNDING)
    between = [kind(node) for node in network.graph_module.graph.nodes if node.op == "call_function"]
    assert [place for place in between if place != "linear"] == left


class _Straight(nn.Module):
    def __init__(self, line: Line) -> None:
        super().__init__()
        self.line = line

    def forward(self, x: Tensor) -> Tensor:
        return self.line.scale * x + self.line.shift
