import pytest
import torch
from torch import nn
from torch.fx import Node

from microtome.graph.capture import capture
from microtome.graph.operators import constant_source, groups, is_weighted, kind, output_axis, spatial_dims
from networks import captured


def weighted(module: nn.Module, shape: tuple[int, ...]) -> Node:
    (layer,) = capture(module, shape).layers
    return layer.node


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Conv1d(4, 8, 3), (4, 9), ("conv", 1, 1, 0)),
        (nn.Conv2d(4, 8, 3, groups=2), (4, 9, 9), ("conv", 2, 2, 0)),
        (nn.Conv2d(4, 8, 3, padding="same"), (4, 9, 9), ("conv", 2, 1, 0)),
        (nn.Conv2d(4, 8, 3, padding="same", groups=4), (4, 9, 9), ("conv", 2, 4, 0)),
        (nn.Conv3d(4, 8, 1), (4, 5, 5, 5), ("conv", 3, 1, 0)),
        (nn.ConvTranspose1d(4, 8, 2), (4, 9), ("conv_transpose", 1, 1, 1)),
        (nn.ConvTranspose2d(4, 8, 2, stride=2, groups=4), (4, 9, 9), ("conv_transpose", 2, 4, 1)),
        (nn.ConvTranspose3d(4, 8, 2), (4, 5, 5, 5), ("conv_transpose", 3, 1, 1)),
        (nn.Linear(4, 8), (4,), ("linear", 0, 1, 0)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_a_layer_is(module: nn.Module, shape: tuple[int, ...], expected: tuple[str, int, int, int]):
    node = weighted(module, shape)
    assert (kind(node), spatial_dims(node), groups(node), output_axis(node)) == expected


def test_the_general_convolution_is_told_apart_by_its_transposed_flag():
    class General(nn.Module):
        def __init__(self, transposed: bool) -> None:
            super().__init__()
            self.weight, self.transposed = nn.Parameter(torch.randn(4, 2, 3, 3)), transposed

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.convolution(x, self.weight, None, [1, 1], [0, 0], [1, 1], self.transposed, [0, 0], 2)

    plain, transposed = weighted(General(False), (4, 8, 8)), weighted(General(True), (4, 8, 8))
    assert (kind(plain), groups(plain), output_axis(plain)) == ("conv", 2, 0)
    assert (kind(transposed), groups(transposed), output_axis(transposed)) == ("conv_transpose", 2, 1)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("unet2d", {"conv", "conv_transpose", "concat", "batch_norm", "prelu", "relu", "output"}),
        ("residual3d", {"conv", "instance_norm", "leaky_relu", "relu", "add", "output"}),
        ("dense2d", {"conv", "linear", "max_pool", "avg_pool", "batch_norm", "relu", "concat", "reshape", "output"}),
        ("transformer", {"conv", "linear", "layer_norm", "attention", "add", "transpose", "reshape"}),
    ],
)
def test_the_operators_of_whole_networks_have_kinds(network: str, expected: set[str]):
    assert expected <= {kind(node) for node in captured(network).graph_module.graph.nodes}


def test_an_operator_without_a_kind_goes_by_its_own_name():
    assert "tanh" in {kind(node) for node in captured("nothing").graph_module.graph.nodes}


def test_a_convolution_with_a_computed_weight_is_not_a_layer():
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 1, 3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv2d(x, self.weight.tanh())

    network = capture(Computed(), (1, 8, 8))
    convolution = next(node for node in network.graph_module.graph.nodes if kind(node) == "conv")
    assert not is_weighted(convolution)
    assert constant_source(convolution.args[1]) is None
    assert network.layers == ()
