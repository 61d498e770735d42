"""From what layers lose at each width to the widths that lose least within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from microtome.core.allocation import allocate
from microtome.errors import OptionError
from microtome.graph.choosing.sensitivity import Batches, Objective, Sensitivity, measure
from microtome.graph.network import Network
from microtome.types import Bits, Capabilities

FLOAT = 32
WIDTHS = (8, 6, 5, 4, 3, 2)
BudgetKind = Literal["bytes", "bitops", "ms"]
Milliseconds = Mapping[tuple[str, Bits], float]
"""Measured time of a layer at a pair of widths."""


@dataclass(frozen=True)
class BitPlan:
    """The widths chosen.

    Attributes:
        layer_bits: (weight, input) widths by layer.
        budget: what was allowed.
        cost: what they cost, in the budget's unit.
        bytes: of the weights of these layers.
        loss: the sum of the layers' losses.
        front: the best choices of other budgets, cheapest first, where they were asked for.
    """

    layer_bits: Mapping[str, Bits]
    budget: float
    cost: float
    bytes: float
    loss: float
    front: tuple[BitPlan, ...] = ()

    def as_row(self) -> dict[str, Any]:
        """Return plain values, such as JSON holds."""
        bits = {name: list(pair) for name, pair in self.layer_bits.items()}
        return {
            "budget": self.budget,
            "cost": self.cost,
            "bytes": self.bytes,
            "loss": self.loss,
            "layer_bits": bits,
        }


def cost(row: Sensitivity, kind: BudgetKind, milliseconds: Milliseconds | None = None) -> float:
    """Return what a layer costs at a pair of widths; float counts as 32 bits.

    `bytes`: its weights. `bitops`: multiply-accumulates × both widths (Yao et al., "HAWQ-V3", ICML 2021, section 3.4).
    `ms`: as measured.

    Raises:
        OptionError: the measured time is missing, or an unknown kind.
    """
    weight, activation = (bits or FLOAT for bits in row.bits)
    if kind == "bytes":
        return row.weights * weight / 8
    if kind == "bitops":
        return float(row.macs) * weight * activation
    if kind == "ms":
        if milliseconds is None or (row.layer, row.bits) not in milliseconds:
            raise OptionError(f"there is no measured time of {row.layer} at {row.bits}.")
        return float(milliseconds[row.layer, row.bits])
    raise OptionError(f"there is no budget in {kind!r}.", "Choose one of bytes, bitops, ms.")


def budget_of_bits(table: Sequence[Sensitivity], bits: float, kind: BudgetKind = "bytes") -> float:
    """Return the cost of all layers at an average width (of weights; for `bitops` of both sides).

    Raises:
        OptionError: times have no average width.
    """
    sizes = {row.layer: row for row in table}.values()
    if kind == "bytes":
        return sum(row.weights for row in sizes) * bits / 8
    if kind == "bitops":
        return float(sum(row.macs for row in sizes)) * bits * bits
    raise OptionError("an average width is no budget of milliseconds.", "Give a share of the time at 8 bits.")


def budget_of_share(
    table: Sequence[Sensitivity], share: float, kind: BudgetKind = "bytes", milliseconds: Milliseconds | None = None
) -> float:
    """Return a share of the cost at 8 bits on both sides.

    Raises:
        OptionError: as `cost`.
    """
    if kind != "ms":
        return share * budget_of_bits(table, 8, kind)
    names = {row.layer: row for row in table}
    if milliseconds is None or any((name, (8, 8)) not in milliseconds for name in names):
        raise OptionError("a share of the time needs the measured times of all layers at (8, 8).")
    return share * sum(milliseconds[name, (8, 8)] for name in names)


def choose(
    table: Sequence[Sensitivity],
    budget: float,
    *,
    kind: BudgetKind = "bytes",
    milliseconds: Milliseconds | None = None,
) -> BitPlan:
    """Return the widths of least total loss within a budget.

    Args:
        table: of `sensitivity.measure`.
        budget: bytes, bit operations or milliseconds of the table's layers.
        kind: the unit.
        milliseconds: for `ms`.

    Raises:
        OptionError: the budget is below the narrowest widths.
    """
    layers: dict[str, list[Sensitivity]] = {}
    for row in table:
        layers.setdefault(row.layer, []).append(row)
    costs = [[cost(row, kind, milliseconds) for row in rows] for rows in layers.values()]
    least = sum(min(row) for row in costs)
    try:
        chosen = allocate(costs, [[row.loss for row in rows] for rows in layers.values()], budget)
    except ValueError as error:
        raise OptionError(
            f"no choice of widths fits into {budget:g} {kind}: {error}.",
            f"Allow {least:g} or more, or narrower widths.",
        ) from error
    taken = [rows[option] for rows, option in zip(layers.values(), chosen, strict=True)]
    return BitPlan(
        layer_bits={row.layer: row.bits for row in taken},
        budget=float(budget),
        cost=sum(row[option] for row, option in zip(costs, chosen, strict=True)),
        bytes=sum(cost(row, "bytes") for row in taken),
        loss=sum(row.loss for row in taken),
    )


def front(
    table: Sequence[Sensitivity],
    budgets: Sequence[float] | int = 16,
    *,
    kind: BudgetKind = "bytes",
    milliseconds: Milliseconds | None = None,
) -> tuple[BitPlan, ...]:
    """Return the best widths of several budgets, cheapest first: the Pareto front, without points that others beat.

    Args:
        table: of `sensitivity.measure`.
        budgets: in the unit; a number is that many even steps from the narrowest to the widest choice.
        kind: the unit.
        milliseconds: for `ms`.

    Raises:
        OptionError: a budget is below the narrowest widths.
    """
    if isinstance(budgets, int):
        spans: dict[str, list[float]] = {}
        for row in table:
            spans.setdefault(row.layer, []).append(cost(row, kind, milliseconds))
        low, high = (sum(end(costs) for costs in spans.values()) for end in (min, max))
        budgets = [float(budget) for budget in np.linspace(low, high, budgets)]
    found: list[BitPlan] = []
    for budget in sorted(budgets):
        plan = choose(table, budget, kind=kind, milliseconds=milliseconds)
        if not found or plan.loss < found[-1].loss:
            found.append(plan)
    return tuple(found)


@dataclass(frozen=True)
class Budget:
    """What mixed precision may cost, and how widths are chosen.

    Exactly one of `bits`, `share` and `amount` says how much.

    Attributes:
        bits: average width of weights (for `bitops`: of both sides).
        share: of the cost at 8 bits on both sides, 0.5 being half.
        amount: bytes, bit operations or milliseconds of the layers that are quantized.
        kind: the unit.
        widths: to choose from: bits of weights, or pairs of (weight, input) bits.
        objective: what is lost: `kl`, `sqnr` or `fisher`.
        milliseconds: for `ms`.
    """

    bits: float | None = None
    share: float | None = None
    amount: float | None = None
    kind: BudgetKind = "bytes"
    widths: tuple[int | Bits, ...] = WIDTHS
    objective: Objective = "kl"
    milliseconds: Milliseconds | None = None

    def __post_init__(self) -> None:
        """Refuse none, or more than one, of the three ways to say how much."""
        if sum(value is not None for value in (self.bits, self.share, self.amount)) != 1:
            raise OptionError("a budget is an average width, or a share of the 8-bit cost, or an amount: one of them.")

    def plan(
        self,
        network: Network,
        capabilities: Capabilities,
        batches: Batches,
        *,
        skip: frozenset[str] = frozenset(),
        activation_bits: int | None = 8,
        sigmoid: bool = False,
    ) -> BitPlan:
        """Measure a float network with folded batch norms, and choose; the Pareto front comes with it.

        Args:
            network: what is to be quantized.
            capabilities: of the target.
            batches: (N, C, *S); iterated twice.
            skip: layers that stay in float.
            activation_bits: of inputs, where `widths` says nothing of them.
            sigmoid: the network's channels are probabilities of their own.

        Raises:
            OptionError: the budget is below the narrowest widths.
            DataError: there are no batches.
        """
        table = measure(
            network,
            capabilities,
            batches,
            widths=[bits if isinstance(bits, tuple) else (bits, activation_bits) for bits in self.widths],
            objective=self.objective,
            sigmoid=sigmoid,
            skip=skip,
        )
        options: dict[str, Any] = {"kind": self.kind, "milliseconds": self.milliseconds}
        return replace(choose(table, self.total(table), **options), front=front(table, **options))

    def total(self, table: Sequence[Sensitivity]) -> float:
        """Return the budget in its unit."""
        if self.bits is not None:
            return budget_of_bits(table, self.bits, self.kind)
        if self.share is not None:
            return budget_of_share(table, self.share, self.kind, self.milliseconds)
        assert self.amount is not None
        return self.amount
