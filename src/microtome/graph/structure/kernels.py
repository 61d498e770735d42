"""Smaller kernels: of a convolution, the taps in the middle."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from microtome.core.composition import Convolution
from microtome.graph import edit
from microtome.graph.network import Layer, Network
from microtome.graph.structure.convolutions import convolution, set_convolution


def large_kernels(network: Network) -> tuple[str, ...]:
    """Return the names of the layers whose kernels can lose their border; none that shares its weight with another."""
    return tuple(layer.name for layer in network.layers if _middle_of(network, layer) is not None)


def without_borders(network: Network, names: Iterable[str]) -> Network:
    """Return a network some of whose kernels lost a tap at each end of each axis, so that 3×3 becomes 1×1, 5×5 3×3.

    The taps in the middle keep their values, and all outputs keep their size and place. Axes of one or two taps stay.

    Source: Cai et al., "Once-for-All", ICLR 2020, section 3.3 (elastic kernels, here without their transform).

    Args:
        network: without quantizers.
        names: of layers that `large_kernels` names; others are passed over.
    """
    network, wanted = network.copy(), set(names)
    for layer in network.layers:
        middle = _middle_of(network, layer) if layer.name in wanted else None
        if middle is not None:
            set_convolution(network, layer.node, middle)
    edit.finish(network.graph_module)
    return network


def _middle_of(network: Network, layer: Layer) -> Convolution | None:
    """Return a layer without the border of its kernel; None where it has none, or its output would grow."""
    if layer.op != "conv" or len(layer.weight.users) > 1:
        return None
    found = convolution(network, layer.node)
    if found is None:
        return None
    walk = found.geometry
    axes = [axis for axis, taps in enumerate(walk.kernel) if taps >= 3]
    if not axes or any(walk.padding[axis] < walk.dilation[axis] for axis in axes):
        return None
    kernel, padding, weight = list(walk.kernel), list(walk.padding), found.weight
    for axis in axes:
        kernel[axis] -= 2
        padding[axis] -= walk.dilation[axis]
        weight = weight.narrow(2 + axis, 1, kernel[axis])
    geometry = replace(walk, kernel=tuple(kernel), padding=tuple(padding))
    return replace(found, weight=weight.contiguous(), geometry=geometry)
