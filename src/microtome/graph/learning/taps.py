"""Looking at feature maps while a network is trained, and which maps of two networks belong together."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from microtome.errors import OptionError
from microtome.graph.network import Layer, Network
from microtome.graph.operators import kind
from microtome.graph.watching.macs import layer_sizes

TAP = "tap"
# What follows a layer and still belongs to it.
BEHIND = frozenset(
    {"batch_norm", "instance_norm", "group_norm", "layer_norm", "relu", "clamp", "leaky_relu", "prelu", "elu"}
    | {"gelu", "silu", "silu_", "mish", "hardswish", "hardswish_", "sigmoid", "tanh", "call_module"}
)


class Tap(nn.Module):
    """Passes a value on and keeps it: in `value`, channels behind the batch."""

    def __init__(self, *, last: bool, copied: bool) -> None:
        """`last`: channels are the last axis; `copied`: who reads the value may write into it."""
        super().__init__()
        self._last, self._copied = last, copied
        self.value: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return what came in."""
        self.value = x.movedim(-1, 1) if self._last else x
        return x.clone() if self._copied else x

    def taken(self) -> Tensor:
        """Return the value, and forget it."""
        value, self.value = self.value, None
        assert value is not None
        return value


@dataclass(frozen=True)
class Place:
    """Where a feature map is: behind a layer's norm and activation function.

    Attributes:
        layer: its name.
        channels: of the map.
        size: of the map in space.
    """

    layer: str
    channels: int
    size: tuple[int, ...]


def places(network: Network) -> dict[str, Place]:
    """Return the places behind all layers but the last, by the layer's name, in order."""
    found = {}
    for size, layer in zip(layer_sizes(network)[:-1], network.layers[:-1], strict=True):
        linear = layer.op == "linear"
        channels = size.output[-1] if linear else size.output[1]
        found[layer.name] = Place(layer.name, channels, size.output[1:-1] if linear else size.output[2:])
    return found


def stages(network: Network) -> list[Place]:
    """Return the last place of each stretch of convolutions whose maps have the same size, in order."""
    convolutions = {layer.name for layer in network.layers if layer.op != "linear"}
    maps = [place for place in places(network).values() if place.layer in convolutions]
    return [list(stretch)[-1] for _, stretch in itertools.groupby(maps, key=lambda place: place.size)]


def matched(student: Network, teacher: Network, named: Mapping[str, str]) -> list[tuple[Place, Place]]:
    """Return which places of two networks belong together.

    Args:
        student: in float.
        teacher: in float, of the same input.
        named: layers of the student, and that of the teacher for each; empty matches the ends of stages, see `stages`,
            of the same size and in the same order.

    Raises:
        OptionError: there is no such layer; or nothing matches.
    """
    if named:
        ours, theirs = places(student), places(teacher)
        for name, known in (*((n, ours) for n in named), *((n, theirs) for n in named.values())):
            if name not in known:
                whose = "student" if known is ours else "teacher"
                close = difflib.get_close_matches(name, known, 1, 0.0)
                raise OptionError(
                    f"the {whose} has no inner layer {name!r}.",
                    f"Name another{f', such as {close[0]}' if close else ''}.",
                )
        return [(ours[a], theirs[b]) for a, b in named.items()]
    one, other = stages(student), stages(teacher)
    sizes, others = ([place.size for place in found] for found in (one, other))
    runs = difflib.SequenceMatcher(None, sizes, others, autojunk=False).get_matching_blocks()
    pairs = [(one[run.a + k], other[run.b + k]) for run in runs for k in range(run.size)]
    if not pairs:
        raise OptionError(
            "no feature maps of student and teacher have the same size.", "Name the layers that belong together."
        )
    return pairs


def tap(module: GraphModule, layer: Layer) -> Tap:
    """Put a tap behind a layer of a graph, in place. Call `module.recompile()` afterwards."""
    node = _end(layer.node)
    name = next(name for k in itertools.count() if not hasattr(module, name := f"{TAP}_{k}"))
    made = Tap(last=layer.op == "linear", copied=any(_writes(user) for user in node.users))
    module.add_module(name, made)
    with module.graph.inserting_after(node):
        passed = module.graph.call_module(name, (node,))
    passed.meta.update(node.meta)
    node.replace_all_uses_with(passed, delete_user_cb=lambda user: user is not passed)
    return made


def _end(node: Node) -> Node:
    """Return the last node that still belongs to a layer."""
    while len(node.users) == 1:
        user = next(iter(node.users))
        if kind(user) not in BEHIND or TAP in str(user.target):
            break
        node = user
    return node


def _writes(node: Node) -> bool:
    """Whether an operator writes into what it reads."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable
