"""Weight sharing: a code is a place in a list of values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from microtome.core.affine import usable_scale
from microtome.core.formats.base import LARGEST_INT8, Parameters, check_bits, per_row
from microtome.core.formats.levels import LevelFormat

ROUNDS = 2000  # of Lloyd's; it stands still before, and a round costs next to nothing


@dataclass(frozen=True)
class Codebook(LevelFormat):
    """2^b values found by k-means, each weight takes the nearest.

    Centroids start at equal steps from the smallest to the largest weight and are then moved by Lloyd's rounds.
    Source: Han et al., "Deep Compression", ICLR 2016, section 3 (linear initialization).

    Attributes:
        bits: 1 to 8.
        per_channel: a codebook for each channel, not one for the tensor.
        integer: snap the values to integers of an 8-bit grid, scale = max|value| / 127, so that an integer kernel runs
            the layer.
        zero: one of the values is 0, and the others are found among weights that are not: those of a pruned network
            that are 0 stay so.
    """

    bits: int = 4
    per_channel: bool = False
    integer: bool = False
    zero: bool = False

    def __post_init__(self) -> None:
        """Refuse other widths."""
        check_bits(self.bits, 8)

    @property
    def name(self) -> str:
        """Such as `codebook4`, or `codebook4i` with integers; `codebook4z` and `codebook4iz` with a zero."""
        return f"codebook{self.bits}{'i' if self.integer else ''}{'z' if self.zero else ''}"

    def keeping_zeros(self) -> Codebook:
        """Return the same with a zero."""
        return replace(self, zero=True)

    def fit(self, values: Tensor) -> Parameters:
        """Return `codebook` (K,), or (C, K) per channel; with `integer` as int8, and its `scale` () or (C,)."""
        if not self.per_channel:
            values = values.reshape(1, -1)
        find = k_means_beside_zero if self.zero else k_means
        found = self._snapped(find(values, 1 << self.bits))
        return found if self.per_channel else {name: value.squeeze(0) for name, value in found.items()}

    def fit_shared(self, tensors: Sequence[Tensor]) -> Parameters:
        """Return the parameters of one codebook for several tensors, to be given to `encode` of each.

        Raises:
            ValueError: there are no tensors, or the codebook is per channel.
        """
        if self.per_channel or not tensors:
            raise ValueError("a shared codebook is for at least one tensor, and not per channel")
        return self.fit(torch.cat([t.detach().float().flatten() for t in tensors])[None])

    def table(self, parameters: Parameters) -> Tensor:
        """Return the values, ascending."""
        book = parameters["codebook"].reshape(-1, 1 << self.bits).float()
        return book * per_row(parameters["scale"]) if self.integer else book

    def integers(self, codes: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor] | None:
        """Return the codebook's integers, if it has any."""
        if not self.integer:
            return None
        book = parameters["codebook"].reshape(-1, 1 << self.bits)
        index = codes.long()
        return (book[0][index] if len(book) == 1 else book.gather(1, index)), parameters["scale"]

    def _snapped(self, book: Tensor) -> dict[str, Tensor]:
        if not self.integer:
            return {"codebook": book}
        scale = book.abs().amax(1) / LARGEST_INT8
        scale = usable_scale(scale)
        return {"codebook": (book / scale[:, None]).round().to(torch.int8), "scale": scale}


def k_means(values: Tensor, count: int) -> Tensor:
    """Return `count` centroids of each row of (C, N), ascending: (C, count), float32.

    In one dimension clusters are stretches of the sorted values, so that a round costs no pass over them. A cluster
    that loses all its values keeps its place.
    """
    ordered = values.double().sort(1).values.contiguous()
    sums = torch.cat([torch.zeros_like(ordered[:, :1]), ordered.cumsum(1)], 1)
    low, high = ordered[:, :1], ordered[:, -1:]
    step = torch.arange(count, device=values.device, dtype=torch.float64) / max(count - 1, 1)
    book = low + step * (high - low)
    start = torch.zeros_like(low, dtype=torch.int64)
    end = torch.full_like(start, ordered.shape[1])
    for _ in range(ROUNDS):
        middles = ((book[:, 1:] + book[:, :-1]) / 2).contiguous()
        cuts = torch.cat([start, torch.searchsorted(ordered, middles), end], 1)
        sizes = cuts.diff(dim=1)
        means = sums.gather(1, cuts).diff(dim=1) / sizes.clamp(min=1)
        moved = torch.where(sizes > 0, means, book)
        if torch.equal(moved, book):
            break
        book = moved
    return book.float()


def k_means_beside_zero(values: Tensor, count: int) -> Tensor:
    """Return 0 and `count - 1` centroids of what is not 0 in each row of (C, N), ascending: (C, count), float32.

    A row of zeros gets zeros only.
    """
    book = torch.zeros((len(values), count), device=values.device)
    for place, row in enumerate(values):
        others = row[row != 0]
        if len(others):
            book[place, 1:] = k_means(others[None], count - 1)[0]
    return book.sort(1).values
