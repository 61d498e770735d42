"""Blocks that can go: what is left is the network that was written without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from channel_networks import Made, conv
from microtome.errors import OptionError
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.program import exported
from microtome.graph.structure.residuals import removable_blocks, remove_blocks
from networks import captured, images, randomize


def residual(m: Any, x: Tensor) -> Tensor:
    """A block with an identity, one with a shortcut, and one that writes into the sum in place."""
    x = functional.relu(m.enter(x))
    skip = x
    if m.keep[0]:
        x = x + m.b(functional.relu(m.a(x)))
    y = m.short(x)
    if m.keep[1]:
        y = y.add_(m.d(functional.relu(m.c(x))))
    y = functional.relu_(y)
    return m.last(torch.cat([y, skip], 1))


def network(*keep: bool) -> Network:
    module = Made(
        residual,
        **{"enter": conv(1, 4), "a": conv(4, 4), "b": conv(4, 4), "c": conv(4, 6), "d": conv(6, 6)},
        **{"short": conv(4, 6, 1), "last": conv(10, 2)},
    )
    module.keep = keep
    return capture(randomize(module), (1, 8, 8))


def chain(count: int) -> Network:
    """Convolutions with norm and activation, one after the other, and a last one without."""
    stages = [
        nn.Sequential(conv(1 if n == 0 else 4, 4), nn.InstanceNorm2d(4, affine=True), nn.LeakyReLU(inplace=True))
        for n in range(3)
    ]
    module = nn.Sequential(*stages, conv(4, 2))
    randomize(module)
    return capture(nn.Sequential(*list(module)[: count - 1], module[-1]) if count < 4 else module, (1, 8, 8))


@pytest.mark.parametrize(
    ("names", "keep"), [(["a"], (False, True)), (["c"], (True, False)), (["c", "a"], (False, False))]
)
def test_without_a_branch_the_identity_or_the_shortcut_is_left(names: list[str], keep: tuple[bool, bool]) -> None:
    whole, written = network(True, True), network(*keep)
    smaller = remove_blocks(whole, names)
    x = images((1, 8, 8), 1)[0]
    assert torch.equal(smaller(x), written(x))
    assert not torch.equal(smaller(x), whole(x))
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in written.layers]
    assert smaller.parameters == written.parameters
    assert torch.equal(exported(smaller).module()(x), written(x))


def test_blocks_say_what_goes_with_them() -> None:
    blocks = removable_blocks(network(True, True))
    assert [(block.name, block.kind, block.layers) for block in blocks] == [
        ("a", "branch", ("a", "b")),
        ("c", "branch", ("c", "d")),
    ]
    assert blocks[0].parameters == 2 * (4 * 4 * 9 + 4)


def test_a_layer_behind_a_norm_and_activation_like_its_own_can_go() -> None:
    whole = chain(4)
    assert [(block.name, block.kind) for block in removable_blocks(whole)] == [("1.0", "layer"), ("2.0", "layer")]
    x = images((1, 8, 8), 1)[0]
    assert torch.equal(remove_blocks(whole, ["2.0"])(x), chain(3)(x))
    assert torch.equal(remove_blocks(whole, ["1.0", "2.0"])(x), chain(2)(x))


def test_attention_and_its_neighbour_are_branches() -> None:
    blocks = removable_blocks(captured("transformer"))
    assert [block.layers for block in blocks] == [("qkv", "project"), ("mlp.0", "mlp.2")]


def test_a_network_without_sums_has_no_branch() -> None:
    assert removable_blocks(captured("concat_up2d")) == ()


def test_an_unknown_block_is_refused() -> None:
    with pytest.raises(OptionError, match="no block 'first'"):
        remove_blocks(captured("transformer"), ["first"])
