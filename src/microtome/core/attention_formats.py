"""Grids for what flows in attention and behind GELU: logarithmic ones, and twins of two uniform ranges.

Softmax outputs are many small values and a few near one; GELU outputs a short negative side and a long positive one.
One uniform grid serves neither well.

Source: Yuan et al., "PTQ4ViT", ECCV 2022, section 3.2 and equations 6 to 8 (twin uniform). Lin et al., "FQ-ViT", IJCAI
2022, equation 9 (base 2); Li et al., "RepQ-ViT", ICCV 2023, equations 15 to 17 (base √2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from microtome.core.affine import fake_quantize
from microtome.types import QParams, QType

TwinKind = Literal["softmax", "gelu"]
UnevenKind = Literal["log2", "logsqrt2", "twin_softmax", "twin_gelu"]

# GELU is nowhere below -0.17 (its minimum is -0.169971 at -0.7518; the tanh form's is -0.170041).
GELU_REACH = 0.1701
# Softmax outputs reach 1, GELU outputs may reach 0.17 * 2^16: no network's are larger.
MOST_DOUBLINGS = 16
MOST_OCTAVES = 12  # the largest of 4096 equal shares
# Smaller powers of two are no normal float32, and kernels may flush them to zero.
LEAST_EXPONENT = -126


@dataclass(frozen=True)
class LogGrid:
    """Zero, and the values `2^(-exponent / steps)` for exponents from `offset` on, for values in [0, 1].

    The last of the 2^bits codes is zero: as the published implementations do, what lies below the smallest value goes
    to zero, not up to it, or the many small values of a row would add up to too much.

    Attributes:
        bits: width of a code, 2 to 8.
        steps: values per octave: 1 is base 2 (FQ-ViT), 2 is base √2 (RepQ-ViT).
        offset: exponent of the largest value; 0 is 1.
    """

    bits: int = 4
    steps: int = 1
    offset: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no grid."""
        if not 2 <= self.bits <= 8 or self.steps < 1 or not 0 <= self.offset <= -LEAST_EXPONENT:
            raise ValueError(
                f"no logarithmic grid has {self.bits} bits, {self.steps} steps per octave and offset {self.offset}"
            )

    @property
    def last(self) -> int:
        """Exponent of the smallest value above zero."""
        return min(self.offset + (1 << self.bits) - 2, -(LEAST_EXPONENT + 1) * self.steps)


def fake_quantize_log(real: Tensor, grid: LogGrid) -> Tensor:
    """Round values to the nearest exponent of the grid; same shape."""
    exponent = (real.clamp(2.0**LEAST_EXPONENT, 1.0).log2() * -grid.steps).round().clamp(min=grid.offset)
    return torch.where(exponent > grid.last, 0.0, (exponent / -grid.steps).exp2())


@dataclass(frozen=True)
class TwinGrid:
    """Two uniform grids of bits - 1 each: `below` for values less than `border`, `above` for the others.

    The larger scale is the smaller one times a power of two, so that integer kernels align both by a shift; the code's
    first bit says which grid it is.

    Attributes:
        below: grid of [0, border) for softmax outputs, of [-0.17, 0] for GELU outputs.
        above: grid from zero upwards.
        border: where one ends and the other begins.
    """

    below: QParams
    above: QParams
    border: float


def twin_grid(kind: TwinKind, bits: int, doublings: int) -> TwinGrid:
    """Return the twin grid whose larger scale is the smaller one times 2^doublings.

    Args:
        kind: `softmax`: the grid above reaches 1, the grid below is that many times finer. `gelu`: the grid below holds
            exactly GELU's negative side, the grid above is that many times coarser.
        bits: of both together, 3 to 9.
        doublings: 0 to MOST_DOUBLINGS.

    Raises:
        ValueError: a width or a number of doublings out of range.
    """
    if not 3 <= bits <= 9 or not 0 <= doublings <= MOST_DOUBLINGS:
        raise ValueError(f"no twin grid has {bits} bits and {doublings} doublings")
    qtype = QType(bits - 1, signed=False, symmetric=False)
    ratio = float(2**doublings)
    if kind == "softmax":
        large = 1.0 / qtype.qmax
        return TwinGrid(_at(large / ratio, 0, qtype), _at(large, 0, qtype), large / ratio * (qtype.qmax + 1))
    small = GELU_REACH / qtype.qmax
    return TwinGrid(_at(small, qtype.qmax, qtype), _at(small * ratio, 0, qtype), 0.0)


def fake_quantize_twin(real: Tensor, grid: TwinGrid) -> Tensor:
    """Round each value on the grid of the range that it lies in; same shape."""
    return torch.where(real < grid.border, fake_quantize(real, grid.below), fake_quantize(real, grid.above))


def fake_quantize_uneven(real: Tensor, grid: LogGrid | TwinGrid) -> Tensor:
    """Round values to a grid of either kind; same shape."""
    return fake_quantize_log(real, grid) if isinstance(grid, LogGrid) else fake_quantize_twin(real, grid)


def uneven_grids(kind: UnevenKind, bits: int) -> tuple[LogGrid | TwinGrid, ...]:
    """Return the grids that a search chooses from: log grids by offset, twin grids by doublings."""
    if kind in ("log2", "logsqrt2"):
        steps = 1 if kind == "log2" else 2
        return tuple(LogGrid(bits, steps, offset) for offset in range(MOST_OCTAVES * steps + 1))
    twin: TwinKind = "softmax" if kind == "twin_softmax" else "gelu"
    return tuple(twin_grid(twin, bits, doublings) for doublings in range(MOST_DOUBLINGS + 1))


class UnevenSearch:
    """Finds the grid with the least squared error among several, over a stream of tensors.

    PTQ4ViT weighs errors by a Hessian; here they count alike.

    Attributes:
        errors: summed squared error of each grid; float64, shape (grids,).
    """

    def __init__(self, grids: Sequence[LogGrid | TwinGrid]) -> None:
        """Start with no values seen."""
        self.grids = tuple(grids)
        self.errors = torch.zeros(len(self.grids), dtype=torch.float64)

    def update(self, values: Tensor) -> None:
        """Add one batch.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        values = values.detach().float()
        if not bool(torch.isfinite(values).all()):
            raise ValueError("the tensor holds NaN or infinity")
        for position, grid in enumerate(self.grids):
            error = (fake_quantize_uneven(values, grid) - values).square().sum(dtype=torch.float64)
            self.errors[position] += error.cpu()

    @property
    def best(self) -> LogGrid | TwinGrid:
        """The grid of least error so far, the first of equals."""
        return self.grids[int(self.errors.argmin())]


def _at(scale: float, zero_point: int, qtype: QType) -> QParams:
    return QParams(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), qtype)
