"""Inputs and outputs of a layer in groups, so that little is lost between groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

ROUNDS = 100  # of turns; few are ever needed


@dataclass(frozen=True, eq=False)
class Grouping:
    """Orders in which equal stretches are groups.

    Attributes:
        outputs: numbers of the outputs, (O,): the first O / groups of them are the first group, and so on.
        inputs: likewise, (I,).
        kept: share of the energy inside the groups.
    """

    outputs: Tensor
    inputs: Tensor
    kept: float

    def mask(self, groups: int) -> Tensor:
        """Return what is inside the groups, (O, I)."""
        of_output, of_input = (_members(order, groups) for order in (self.outputs, self.inputs))
        return of_output[:, None] == of_input[None]


def grouping(
    energy: Tensor,
    groups: int,
    *,
    fixed_outputs: bool = False,
    fixed_inputs: bool = False,
    restarts: int = 8,
    seed: int = 0,
) -> Grouping:
    """Return groups of outputs and inputs, equally many in each, with as much energy inside as can be found.

    Outputs and inputs take turns: each is assigned, in equal shares, to the groups of the other where it has most
    energy (an assignment problem, solved exactly); this never loses, and ends where neither side gains. It begins with
    the order of the second singular vector of the normalised energy (Dhillon, "Co-clustering documents and words using
    bipartite spectral graph partitioning", KDD 2001, section 4), and with some at random; the best end counts.

    Args:
        energy: not negative, (O, I): what the output loses without the input.
        groups: divides both.
        fixed_outputs: outputs keep their order: equal stretches are groups as they are.
        fixed_inputs: likewise.
        restarts: beginnings at random.
        seed: of these.
    """
    energy = energy.double().cpu()
    outputs, inputs = energy.shape
    own = torch.arange(inputs) // (inputs // groups)
    generator = torch.Generator().manual_seed(seed)
    starts = [own]
    if not fixed_inputs:
        starts = [own[torch.argsort(torch.argsort(_second_vector(energy)))]]
        starts += [own[torch.randperm(inputs, generator=generator)] for _ in range(restarts)]
    best: tuple[float, Tensor, Tensor] | None = None
    for start in starts:
        of_input = start
        of_output = torch.arange(outputs) // (outputs // groups)
        kept = -1.0
        for _ in range(ROUNDS):
            if not fixed_outputs:
                of_output = _assigned(_sums(energy, of_input, groups))
            if not fixed_inputs:
                of_input = _assigned(_sums(energy.T, of_output, groups))
            now = float(energy[of_output[:, None] == of_input[None]].sum())
            if now <= kept:
                break
            kept = now
        if best is None or kept > best[0]:
            best = (kept, of_output, of_input)
    assert best is not None
    whole = float(energy.sum())
    outputs_order, inputs_order = (torch.argsort(members, stable=True) for members in best[1:])
    return Grouping(outputs_order, inputs_order, best[0] / whole if whole else 1.0)


def _second_vector(energy: Tensor) -> Tensor:
    """Return the second right singular vector of D₁^(-½) E D₂^(-½), scaled by D₂^(-½)."""
    one, other = (energy.sum(axis).clamp(min=1e-30).rsqrt() for axis in (1, 0))
    _, _, right = torch.linalg.svd(one[:, None] * energy * other, full_matrices=False)
    second: Tensor = other * right[min(1, len(right) - 1)]
    return second


def _sums(energy: Tensor, of_column: Tensor, groups: int) -> Tensor:
    """Return the energy of each row in each group of columns, (R, groups)."""
    return torch.zeros((len(energy), groups), dtype=energy.dtype).index_add_(1, of_column, energy)


def _assigned(gain: Tensor) -> Tensor:
    """Return the group of each row, equally many in each, with the largest sum of gains."""
    rows, groups = gain.shape
    slots = np.repeat(np.arange(groups), rows // groups)
    found, places = linear_sum_assignment(gain.numpy()[:, slots], maximize=True)
    result = torch.empty(rows, dtype=torch.int64)
    result[torch.from_numpy(found)] = torch.from_numpy(slots[places])
    return result


def _members(order: Tensor, groups: int) -> Tensor:
    """Return the group of each number in an order."""
    result = torch.empty_like(order)
    result[order] = torch.arange(len(order)) // (len(order) // groups)
    return result
