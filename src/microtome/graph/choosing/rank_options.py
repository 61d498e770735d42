"""Layers that can be factorized, and what they become at some ranks."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.core.decomposition.factor import Factor, composed, parameters
from microtome.core.decomposition.kinds import Kind, KindName, Ranks, kind_for, lost
from microtome.core.decomposition.whitening import Whitening
from microtome.graph.edit import Link
from microtome.graph.network import Layer, Network
from microtome.graph.operators import groups
from microtome.graph.structure.chains import Walk, bias_of, chain_macs, kernel, links, pads_unevenly, walks
from microtome.graph.watching.axis_moments import AxisMoments

AUTO: tuple[KindName, ...] = ("svd", "spatial", "tucker", "tt")
"""Kinds that `auto` chooses among: `cp` trains badly, and few runtimes run its depthwise layers well."""


@dataclass(frozen=True, eq=False)
class Site:
    """A layer that can be factorized.

    Attributes:
        layer: of the network.
        kernel: (outputs, inputs, *kernel), in float64.
        bias: of the layer.
        walk: where it walks.
        dtype: of its weight.
        whitening: of what it sees; None measures errors in the weights.
        mean: of what it sees, (inputs, *kernel); None leaves the bias.
    """

    layer: Layer
    kernel: Tensor
    bias: Tensor | None
    walk: Walk
    dtype: torch.dtype
    whitening: Whitening | None = None
    mean: Tensor | None = None

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return self.kernel.numel()

    @functools.cached_property
    def macs(self) -> int:
        """Multiply-accumulates for a batch of one."""
        axes = tuple(range(self.kernel.ndim - 2))
        return chain_macs(self.layer, [Factor("", self.kernel, axes)], self.walk)

    @functools.cached_property
    def target(self) -> Tensor:
        """The kernel that is decomposed: as it acts on what there is."""
        return self.kernel if self.whitening is None else self.whitening.whitened(self.kernel)

    def kinds(self, name: KindName | str) -> tuple[Kind, ...]:
        """Return the kinds that a name stands for here, each once."""
        names = AUTO if name == "auto" else (name,)
        return tuple({k.name: k for k in (kind_for(n, tuple(self.kernel.shape)) for n in names)}.values())  # type: ignore[arg-type]

    def option(self, kind: Kind, ranks: Ranks) -> Option:
        """Return what the layer becomes at some ranks."""
        factors = kind.factors(self.target, ranks)
        error = lost(self.target, factors)
        factors = factors if self.whitening is None else self.whitening.restored(factors)
        return Option(self, kind.name, ranks, factors, error)


@dataclass(frozen=True, eq=False)
class Option:
    """A layer at some ranks.

    Attributes:
        site: the layer.
        kind: of decomposition.
        ranks: of it.
        factors: of the kernel.
        error: share of the output's variance that is lost, as far as the moments tell; without images, of the weight's
            squared norm.
    """

    site: Site
    kind: str
    ranks: Ranks
    factors: tuple[Factor, ...]
    error: float

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return parameters(self.factors)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for a batch of one."""
        return chain_macs(self.site.layer, self.factors, self.site.walk)

    def links(self) -> list[Link]:
        """Return the layers that stand in place of the layer; the last one's bias keeps the mean output."""
        site, bias = self.site, self.site.bias
        if site.mean is not None:
            missing = (site.kernel - composed(self.factors)).flatten(1) @ site.mean.flatten()
            bias = missing if bias is None else bias.double() + missing
        return links(site.layer, self.factors, None if bias is None else bias.to(site.dtype), site.dtype)


def sites(network: Network, *, least: int, skip: frozenset[str]) -> Iterator[tuple[Layer, Site | str]]:
    """Yield the layers of a network, each with what can be factorized, or with the reason why it cannot.

    Args:
        network: without quantizers.
        least: weights; smaller layers are left.
        skip: names of layers to leave.
    """
    where = walks(network)
    for layer in network.layers:
        weight = network.tensor(str(layer.weight.target))
        if layer.name in skip:
            yield layer, "it was to be skipped"
        elif groups(layer.node) > 1:
            yield layer, f"its channels are convolved in {groups(layer.node)} groups"
        elif pads_unevenly(layer):
            yield layer, "its padding is uneven"
        elif len(layer.weight.users) > 1 or _shared(network, layer):
            yield layer, "another layer shares its weight"
        elif weight.numel() < least:
            yield layer, f"it has {weight.numel()} weights, fewer than {least}"
        else:
            bias = bias_of(network, layer)
            yield layer, Site(layer, kernel(network, layer).double(), bias, where[layer.name], weight.dtype)


def with_moments(site: Site, moments: AxisMoments) -> Site:
    """Return a site whose errors are measured in what the layer gives for the inputs seen."""
    mean = moments.mean().reshape(site.kernel.shape[1:])
    return Site(site.layer, site.kernel, site.bias, site.walk, site.dtype, Whitening.of(moments.covariances()), mean)


def _shared(network: Network, layer: Layer) -> bool:
    """Whether another layer reads the same tensor under another name."""
    own = network.tensor(str(layer.weight.target)).data_ptr()
    others = (other for other in network.layers if other.weight is not layer.weight)
    return any(network.tensor(str(other.weight.target)).data_ptr() == own for other in others)
