"""Second moments of what layers see, weight by weight, as far as memory allows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from microtome.core.columns import Geometry
from microtome.errors import DataError
from microtome.graph.network import Batch, Layer, Network
from microtome.graph.watching.moments import Moments, collect

MOST_BYTES = 2 << 30  # of outer products at a time; further weights wait for another pass over the batches


@dataclass(frozen=True, eq=False)
class Gram:
    """What the layers that hold one weight see.

    Attributes:
        name: of the weight.
        layers: that read it.
        parts: the slices of columns that are kept among one another.
        matrices: for each the sum over the layers of the columns' covariances, or mean outer products where the bias
            shall not take up the change of the mean; (groups, columns, columns), float64.
        means: of each layer's columns, (groups, columns).
        geometry: how the first layer walks over its input.
    """

    name: str
    layers: tuple[Layer, ...]
    parts: tuple[slice, ...]
    matrices: tuple[Tensor, ...]
    means: tuple[Tensor, ...]
    geometry: Geometry


def grams(
    network: Network,
    layers: Sequence[Layer],
    batches: Iterable[Batch],
    *,
    widest: int,
    positions: int,
    centred: bool,
    seed: int,
) -> Iterator[Gram]:
    """Yield the second moments for each weight of some layers.

    Args:
        network: it computes with the weights that it has now.
        layers: to look at.
        batches: (N, C, *S), read once for each portion of weights that fits `MOST_BYTES`.
        widest: columns that are kept whole; a wider layer falls apart into blocks of input channels.
        positions: output positions drawn per batch and layer, at most.
        centred: around the mean.
        seed: of the positions.

    Raises:
        DataError: there are no batches, or a value is NaN or infinite.
    """
    for portion in _portions(layers, widest):
        moments = {layer.node: Moments(layer, widest) for one in portion for layer in one}
        generator = torch.Generator().manual_seed(seed)
        collect(network, moments, batches, most=positions, generator=generator)
        if any(not m.count for m in moments.values()):
            raise DataError("there are no calibration images.", "Give at least one training case.")
        for one in portion:
            yield _gram(one, moments, centred=centred)


def _gram(layers: Sequence[Layer], moments: dict[Node, Moments], *, centred: bool) -> Gram:
    parts = moments[layers[0].node].parts
    matrices = [
        torch.stack([moments[layer.node].covariance(k, centred=centred) for layer in layers]).sum(0)
        for k in range(len(parts))
    ]
    if not all(bool(m.isfinite().all()) for m in matrices):
        raise DataError(
            f"a calibration image makes the input of {layers[0].name} NaN or infinite.",
            "Check the pre-processing and the weights.",
        )
    return Gram(
        str(layers[0].weight.target),
        tuple(layers),
        tuple(parts),
        tuple(matrices),
        tuple(moments[layer.node].mean() for layer in layers),
        moments[layers[0].node].geometry,
    )


def _portions(layers: Sequence[Layer], widest: int) -> Iterator[list[list[Layer]]]:
    """Yield weights, each as the layers that read it, in portions for one pass over the batches."""
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(str(layer.weight.target), []).append(layer)
    portion: list[list[Layer]] = []
    used = 0
    for one in found.values():
        needed = sum(Moments(layer, widest).bytes for layer in one)
        if portion and used + needed > MOST_BYTES:
            yield portion
            portion, used = [], 0
        portion.append(one)
        used += needed
    if portion:
        yield portion
