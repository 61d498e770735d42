"""What a case looks like, in a few numbers: to choose calibration cases that differ from one another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from microtome.batches.calibration import tensors
from microtome.graph.network import Network
from microtome.graph.watching.observe import Observed
from microtome.medical.resampling import resample
from microtome.types import Array, Batch

SIDE = 8  # of a thumbnail
QUANTILES = 33


def thumbnail(array: Array, side: int = SIDE) -> Array:
    """Return the image (C, *S) averaged down to (C, side, …)."""
    return resample(array, (side,) * (array.ndim - 1), antialias=True)


def contrast(array: Array) -> float:
    """Return how much of an image's spread is left in its thumbnail: noise averages out, structures stay."""
    return float(thumbnail(array, 2 * SIDE).std())


def image_features(array: Array) -> list[Array]:
    """Return intensities and layout of a prepared image (C, *S), as two vectors.

    Intensities are quantiles, which say what a histogram says and need no bins: the distance between those of two
    images is that between their cumulative histograms.
    """
    shares = np.linspace(0, 1, QUANTILES)
    quantiles = [np.quantile(channel, shares) for channel in array]
    return [np.concatenate(quantiles).astype(np.float32), thumbnail(array).ravel()]


class NetworkFeatures:
    """Mean of each channel of each layer's input, in float: one vector for an image."""

    def __init__(self, network: Network) -> None:
        """Prepare to watch the inputs of all layers."""
        self._network = network
        self._channels: dict[Node, int] = {}
        for layer in network.layers:
            source = layer.node.args[0]
            if isinstance(source, Node):
                self._channels.setdefault(source, 1 if layer.op.startswith("conv") else -1)

    def __call__(self, images: Sequence[Batch]) -> Array:
        """Return the features of a case, the average over what the network is given of it; float32."""
        rows = []
        for image in images:
            found: dict[Node, Tensor] = {}

            def look(node: Node, value: Tensor, found: dict[Node, Tensor] = found) -> None:
                found[node] = value.movedim(self._channels[node], 0).flatten(1).mean(1).cpu()

            Observed(self._network, self._channels, look)(tensors(image))
            rows.append(torch.cat([found[node] for node in self._channels]) if found else torch.zeros(0))
        mean: Array = torch.stack(rows).mean(0).numpy()
        return mean


def joined(rows: Sequence[Sequence[Array]]) -> Array:
    """Join the vectors of each case to one row, (cases, features).

    Each feature gets mean 0 and standard deviation 1 over the cases, and each kind of feature the same weight, however
    many numbers it has.
    """
    blocks = []
    for vectors in zip(*rows, strict=True):
        block = np.stack(vectors).astype(np.float64)
        block -= block.mean(0)
        spread = block.std(0)
        block = np.divide(block, spread, out=np.zeros_like(block), where=spread > 0)
        blocks.append(block / np.sqrt(max(1, block.shape[1])))
    return np.concatenate(blocks, axis=1)


def farthest_first(points: Array, groups: Sequence[str], count: int, rng: np.random.Generator) -> list[int]:
    """Return rows of `points` such that every row is near one of them: greedy k-center.

    Start anywhere, then always take what is farthest from all taken so far (Gonzalez 1985; for choosing training images
    Sener and Savarese, ICLR 2018, algorithm 1): no row is more than twice as far from its nearest one as with the best
    choice. Groups, such as patients, take turns.

    Args:
        points: (n, features).
        groups: of each row.
        count: how many to take, at most n.
        rng: chooses the first one.
    """
    count = min(count, len(points))
    names = np.unique(groups, return_inverse=True)[1]
    used = np.zeros(names.max(initial=-1) + 1, int)
    distance = np.full(len(points), np.inf)
    left = np.ones(len(points), bool)
    chosen = []
    for step in range(count):
        turn = left & (used[names] == used[names[left]].min())
        best = int(rng.integers(len(points))) if step == 0 else int(np.argmax(np.where(turn, distance, -1.0)))
        chosen.append(best)
        left[best] = False
        used[names[best]] += 1
        distance = np.minimum(distance, np.linalg.norm(points - points[best], axis=1))
    return chosen


def tertiles(values: Sequence[float]) -> list[int]:
    """Return for each value whether it lies in the lower, middle or upper third: 0, 1, 2; equal values lie together."""
    ordered = sorted(values)
    cuts = [ordered[len(ordered) * k // 3] for k in (1, 2)] if ordered else []
    return [sum(value >= cut for cut in cuts) for value in values]


def in_turn(groups: Sequence[str], rng: np.random.Generator) -> list[int]:
    """Return all positions in random order, one of each group before the second of any."""
    order = [int(k) for k in rng.permutation(len(groups))]
    seen = {name: itertools.count() for name in groups}
    return [k for _, k in sorted(((next(seen[groups[k]]), k) for k in order), key=lambda pair: pair[0])]
