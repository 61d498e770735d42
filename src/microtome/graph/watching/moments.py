"""Mean and covariance of what layers see: the inputs of second-order rounding."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from microtome.core.columns import Geometry, columns
from microtome.graph.network import Batch, Layer, Network
from microtome.graph.operators import constant_source, groups, kind
from microtome.graph.watching.observe import Unquantized

MOST_VALUES = 1 << 26  # of gathered columns at a time: 256 MB


def geometry(node: Node) -> Geometry:
    """Return how a weighted layer walks over its input."""
    source = constant_source(node.args[1])
    assert source is not None
    kernel = tuple(int(n) for n in source.meta["val"].shape[2:])
    if kind(node) == "linear":
        return Geometry()
    named = named_arguments(node)
    stride, dilation = (spread(named[key], len(kernel)) for key in ("stride", "dilation"))
    padding = named["padding"]
    if padding == "valid":
        padding = 0
    elif padding == "same":  # what is odd goes behind
        padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
    return Geometry(
        kernel, stride, spread(padding, len(kernel)), dilation, groups(node), kind(node) == "conv_transpose"
    )


def named_arguments(node: Node) -> dict[str, Any]:
    """Return a node's arguments by the operator's own names, defaults included."""
    schema = node.target._schema  # type: ignore[union-attr]
    named = {argument.name: argument.default_value for argument in schema.arguments}
    named.update({argument.name: value for argument, value in zip(schema.arguments, node.args, strict=False)})
    return {**named, **node.kwargs}


class Moments:
    """Mean and covariance of a layer's columns, streamed; block-diagonal where the layer is wide.

    Attributes:
        parts: the slices of columns whose covariance among one another is kept.
        count: columns seen.
    """

    def __init__(self, layer: Layer, widest: int) -> None:
        """Start empty; whole input channels stay together, in as few parts as `widest` columns each allow."""
        self.geometry = geometry(layer.node)
        source = layer.weight
        shape = source.meta["val"].shape
        taps = self.geometry.taps
        channels = shape[0] // self.geometry.groups if self.geometry.transposed else shape[1]
        count = -(-channels // max(1, widest // taps))
        ends = [round(channels * part / count) * taps for part in range(count + 1)]
        self.parts = [slice(a, b) for a, b in itertools.pairwise(ends)]
        self.width = int(channels * taps)
        self.count = 0
        self._shift = torch.zeros(())
        self._first: Tensor = torch.zeros(())
        self._second: list[Tensor] = []

    @property
    def bytes(self) -> int:
        """Memory that the covariances take."""
        return 4 * self.geometry.groups * sum(int((part.stop - part.start) ** 2) for part in self.parts)

    def update(self, x: Tensor, output: Tensor, most: int, generator: torch.Generator) -> None:
        """Add up to `most` output positions of one batch, drawn at random where there are more."""
        linear = not self.geometry.kernel
        size = tuple(output.shape[2:])
        total = output.numel() // output.shape[-1 if linear else 1]
        most = max(1, min(most, MOST_VALUES // (self.width * self.geometry.groups)))
        picked = torch.randint(total, (most,), generator=generator) if total > most else torch.arange(total)
        seen = columns(x.detach().float(), self.geometry, picked.to(x.device), size)
        if not self.count:  # sums around a first guess of the mean do not cancel
            self._shift = seen.mean(1, keepdim=True)
            self._first = torch.zeros_like(self._shift)
            self._second = [seen.new_zeros(len(seen), p.stop - p.start, p.stop - p.start) for p in self.parts]
        seen = seen - self._shift
        self._first += seen.sum(1, keepdim=True)
        for products, part in zip(self._second, self.parts, strict=True):
            products.add_(seen[..., part].transpose(1, 2) @ seen[..., part])
        self.count += seen.shape[1]

    def mean(self) -> Tensor:
        """Return the mean column, (groups, width)."""
        return (self._shift + self._first / self.count)[:, 0]

    def covariance(self, part: int, *, centred: bool) -> Tensor:
        """Return the covariance of a part, or (not centred) the mean outer product; (groups, columns, columns)."""
        at = self.parts[part]
        drift = (self._first[..., at] / self.count).double()
        result = self._second[part].double() / self.count - drift.transpose(1, 2) @ drift
        if centred:
            return result
        mean = self.mean()[:, None, at].double()
        return result + mean.transpose(1, 2) @ mean


def collect(
    network: Network,
    moments: dict[Node, Moments],
    batches: Iterable[Batch],
    *,
    most: int,
    generator: torch.Generator,
) -> None:
    """Fill the moments of layers from a run with quantized activations and weights as they are stored.

    Args:
        network: with quantizers; those of weights are left out.
        moments: of the layers to watch, by node.
        batches: (N, C, *S).
        most: positions per batch and layer.
        generator: draws them.
    """

    def look(node: Node, arguments: Sequence[Any], value: Tensor) -> None:
        moments[node].update(arguments[0], value, most, generator)

    run = Unquantized(network, moments, look, weights_only=True)
    for batch in batches:
        run(batch)


def spread(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    """Return one number per axis."""
    values = [value] if isinstance(value, int) else list(value)
    return tuple(int(v) for v in (values * count if len(values) == 1 else values))
