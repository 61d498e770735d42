"""What layers see, axis by axis: the mean kernel-sized patch, and covariances of channels and of places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from microtome.core.columns import columns
from microtome.errors import DataError
from microtome.graph.network import Batch, Layer, Network
from microtome.graph.watching.moments import geometry
from microtome.graph.watching.observe import Unquantized

MOST_VALUES = 1 << 25  # of gathered columns at a time: 128 MB


class AxisMoments:
    """Streamed moments of the patches (channels, *kernel) that a layer without groups sees.

    Attributes:
        count: patches seen.
    """

    def __init__(self, layer: Layer) -> None:
        """Start empty."""
        self.geometry = geometry(layer.node)
        self.count = 0
        self._shift = torch.zeros(())
        self._first: Tensor = torch.zeros(())
        self._second: list[Tensor] = []

    def update(self, x: Tensor, output: Tensor, most: int, generator: torch.Generator) -> None:
        """Add up to `most` output positions of one batch, drawn at random where there are more.

        Raises:
            ValueError: what the layer sees is NaN or infinite.
        """
        seen = drawn_columns(self.geometry, x, output, drawn(self.geometry, x, output, most, generator))
        patches = seen.reshape(len(seen), -1, *self.geometry.kernel)
        if not bool(torch.isfinite(patches).all()):
            raise ValueError("values are NaN or infinite")
        axes = range(1, patches.ndim)
        if not self.count:  # sums around a first guess of the mean do not cancel
            self._shift = patches.mean(0)
            self._first = torch.zeros_like(self._shift, dtype=torch.float64)
            self._second = [torch.zeros(patches.shape[a], patches.shape[a], dtype=torch.float64) for a in axes]
        patches = patches - self._shift
        self._first += patches.sum(0, dtype=torch.float64)
        for axis in axes:
            rows = patches.movedim(axis, 0).reshape(patches.shape[axis], -1)
            self._second[axis - 1] += (rows @ rows.T).double()
        self.count += len(patches)

    def mean(self) -> Tensor:
        """Return the mean patch, (channels, *kernel)."""
        return self._shift.double() + self._first / self.count

    def covariances(self) -> tuple[Tensor, ...]:
        """Return covariances about the mean patch: of channels, in total over the kernel; of places along each axis.

        The latter have a mean variance of 1.
        """
        drift = self._first / self.count
        found = []
        for axis, products in enumerate(self._second):
            rows = drift.movedim(axis, 0).reshape(drift.shape[axis], -1)
            found.append(products / self.count - rows @ rows.T)
        channels, *places = found
        return channels, *(p / p.diagonal().mean().clamp(min=1e-30) for p in places)


def drawn(where: Any, x: Tensor, output: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Return up to `most` output positions of a layer, at random where there are more."""
    linear = not where.kernel
    width = x.shape[-1] if linear else x.shape[1] * where.taps
    total = output.numel() // output.shape[-1 if linear else 1]
    most = max(1, min(most, MOST_VALUES // width))
    return torch.randint(total, (most,), generator=generator) if total > most else torch.arange(total)


def drawn_columns(where: Any, x: Tensor, output: Tensor, positions: Tensor) -> Tensor:
    """Return what a layer without groups sees at some output positions: (positions, channels * taps)."""
    return columns(x.detach().float(), where, positions.to(x.device), tuple(output.shape[2:]))[0].cpu()


def collect_axes(
    network: Network, layers: Iterable[Layer], batches: Iterable[Batch], *, most: int, seed: int = 0
) -> Mapping[str, AxisMoments]:
    """Return the moments of layers, by name, from one run over some batches.

    Args:
        network: in float.
        layers: without groups.
        batches: (N, C, *S).
        most: positions per batch and layer.
        seed: of the draw.

    Raises:
        DataError: there are no batches, or one makes a value NaN or infinite.
    """
    moments = {layer.node: AxisMoments(layer) for layer in layers}
    names = {layer.node: layer.name for layer in layers}
    generator = torch.Generator().manual_seed(seed)

    def look(node: Node, arguments: tuple[Any, ...], value: Tensor) -> None:
        try:
            moments[node].update(arguments[0], value, most, generator)
        except ValueError as error:
            raise DataError(
                f"a calibration image makes the input of {names[node]} NaN or infinite.",
                "Check the pre-processing and the weights.",
            ) from error

    if moments:
        run, count = Unquantized(network, moments, look), 0
        for batch in batches:
            run(batch)
            count += 1
        if not count:
            raise DataError("there are no calibration images.", "Give at least one training case.")
    return {names[node]: moment for node, moment in moments.items()}
