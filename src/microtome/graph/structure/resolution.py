"""A network that looks at its images from further away: made smaller behind the input, and larger before the output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Node
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from microtome.errors import OptionError
from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import aten
from microtome.graph.outputs import sizes

LINEAR: dict[int, Any] = {
    1: aten.upsample_linear1d.vec,
    2: aten.upsample_bilinear2d.vec,
    3: aten.upsample_trilinear3d.vec,
}
LEAST = 0.5  # of the size: below that, linear interpolation passes pixels over


def at_resolution(network: Network, scale: float) -> Network:
    """Return a network that computes on smaller images; it takes and returns what it did.

    The first input is interpolated linearly to `scale` times its size; outputs as large as it are interpolated back.

    Args:
        network: without quantizers, its input with one to three spatial axes.
        scale: of the resolution, from 0.5 to 1.

    Raises:
        OptionError: another scale; the network does not run at that size, or returns something else there.
    """
    if not LEAST <= scale <= 1:
        raise OptionError(f"a resolution is a share from {LEAST} to 1, not {scale:g}.")
    space = network.shape[1:]
    small = [max(1, round(scale * size)) for size in space]
    if small == list(space):
        return network
    if len(space) not in LINEAR:
        raise OptionError(f"the input of this network has {len(space)} spatial axes.", "Leave resolutions out.")
    network = network.copy()
    graph, resize = network.graph_module.graph, LINEAR[len(space)]
    places = [node for node in graph.nodes if node.op == "placeholder"]
    image, output = places[0], next(node for node in graph.nodes if node.op == "output")
    before = [sizes(node) for node in _results(output)]
    with graph.inserting_after(places[-1]):
        seen = graph.call_function(resize, (image, small, False, None))
    image.replace_all_uses_with(seen, delete_user_cb=lambda user: user is not seen)
    for node, size in zip(_results(output), before, strict=True):
        if size[2:] == list(space):
            with graph.inserting_before(output):
                large = graph.call_function(resize, (node, list(space), False, None))
            output.replace_input_with(node, large)
    _follow(network, places, scale)
    if [sizes(node) for node in _results(output)] != before:
        raise OptionError(f"an output has another size at {scale:g} of the resolution.", "Leave resolutions out.")
    edit.finish(network.graph_module)
    if not _alone(network):
        raise OptionError(
            f"at {scale:g} of its resolution this network mixes the images of a batch.", "Leave resolutions out."
        )
    return network


@torch.no_grad()
def _alone(network: Network) -> bool:
    """Whether each image of a batch still gets its own answer: reshapes may have the old size in them."""
    if not network.dynamic[0]:
        return True
    generator = torch.Generator().manual_seed(0)
    two = {
        port.name: torch.rand((2, *port.shape), generator=generator).to(network.device, value.dtype)
        for port, value in zip(network.inputs, network.blank(2).values(), strict=True)
    }
    one = {name: value[:1] for name, value in two.items()}
    try:
        expected, found = network(one), network(two)[:1]
    except RuntimeError:
        return False
    return torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def _results(output: Node) -> list[Node]:
    """Return the values that a graph returns."""
    return list(output.all_input_nodes)


def _follow(network: Network, places: list[Node], scale: float) -> None:
    """Note anew how large each value is."""
    given = [node.meta["val"] for node in places]
    mode = next((value.fake_mode for value in given if isinstance(value, FakeTensor)), None) or FakeTensorMode()
    with mode:
        fake = [v if isinstance(v, FakeTensor) or not isinstance(v, Tensor) else mode.from_tensor(v) for v in given]
    try:
        FakeTensorProp(network.graph_module, mode).propagate_dont_convert_inputs(*fake)
    except (RuntimeError, ValueError, TypeError) as error:
        raise OptionError(
            f"this network does not run at {scale:g} of its resolution: {str(error).splitlines()[0]}",
            "Leave resolutions out, or take one that all its strides divide.",
        ) from None
