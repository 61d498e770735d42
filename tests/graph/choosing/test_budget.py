import itertools
import json
from dataclasses import replace

import pytest

from microtome.errors import OptionError
from microtome.graph.choosing.budget import Budget, budget_of_bits, budget_of_share, choose, cost, front
from microtome.graph.choosing.sensitivity import Sensitivity, measure
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from networks import EVERYTHING, captured, images, told

WIDTHS = ((8, 8), (4, 8), (2, 8), (4, 4))
SIZES = {"a": (100, 9000), "b": (1000, 500), "c": (40, 40)}  # weights, multiply-accumulates
TABLE = [
    Sensitivity(name, bits, position * (1 + i) / (bits[0] * bits[1]), 30.0, macs, weights)
    for position, (name, (weights, macs)) in enumerate(SIZES.items(), start=1)
    for i, bits in enumerate(WIDTHS)
]
TIMES = {(name, bits): 0.001 * sum(SIZES[name]) * bits[1] for name in SIZES for bits in WIDTHS}


def best(kind: str, budget: float) -> float:
    """Return the least loss of all choices."""
    groups = [[row for row in TABLE if row.layer == name] for name in SIZES]
    fitting = (c for c in itertools.product(*groups) if sum(cost(row, kind, TIMES) for row in c) <= budget)
    return min(sum(row.loss for row in c) for c in fitting)


def test_costs_by_hand():
    row = Sensitivity("a", (4, 8), 0.0, None, macs=10, weights=6)
    assert cost(row, "bytes") == 3
    assert cost(row, "bitops") == 10 * 4 * 8
    assert cost(row, "ms", {("a", (4, 8)): 0.25}) == 0.25
    assert cost(Sensitivity("a", (4, None), 0.0, None, 10, 6), "bitops") == 10 * 4 * 32
    assert cost(Sensitivity("a", (None, 8), 0.0, None, 10, 6), "bytes") == 24


@pytest.mark.parametrize("kind", ["bytes", "bitops", "ms"])
@pytest.mark.parametrize("share", [0.55, 0.7, 0.9, 1.0])
def test_widths_within_the_budget_lose_least(kind: str, share: float):
    budget = budget_of_share(TABLE, share, kind, TIMES)
    plan = choose(TABLE, budget, kind=kind, milliseconds=TIMES)
    assert plan.loss == pytest.approx(best(kind, budget))
    assert plan.cost <= budget
    chosen = [row for row in TABLE if plan.layer_bits[row.layer] == row.bits]
    assert plan.loss == sum(row.loss for row in chosen)
    assert plan.bytes == sum(row.weights * row.bits[0] / 8 for row in chosen)


def test_budgets_by_hand():
    assert budget_of_bits(TABLE, 4) == 1140 / 2
    assert budget_of_bits(TABLE, 4, "bitops") == 9540 * 16
    assert budget_of_share(TABLE, 0.5) == 1140 / 2
    assert budget_of_share(TABLE, 0.5, "ms", TIMES) == pytest.approx(0.5 * 8 * 0.001 * (9540 + 1140))


def test_the_front_falls_and_has_no_beaten_points():
    plans = front(TABLE, 12)
    assert plans[0].cost == 1140 * 2 / 8
    assert plans[-1].loss == sum(min(r.loss for r in TABLE if r.layer == name) for name in SIZES)
    for one, other in itertools.pairwise(plans):
        assert one.cost < other.cost
        assert one.loss > other.loss
    rows = [plan.as_row() for plan in front(TABLE, [600.0, 400.0])]
    assert [row["budget"] for row in rows] == [400.0, 600.0]
    assert json.loads(json.dumps(rows)) == rows


def test_what_does_not_fit_is_refused():
    with pytest.raises(OptionError, match="no choice of widths fits into 10 bytes") as caught:
        choose(TABLE, 10)
    assert "Allow 285 or more" in caught.value.hint
    with pytest.raises(OptionError, match="no measured time of a"):
        choose(TABLE, 10, kind="ms")
    with pytest.raises(OptionError, match="no budget in 'joules'"):
        choose(TABLE, 10, kind="joules")
    with pytest.raises(OptionError, match="needs the measured times"):
        budget_of_share(TABLE, 0.5, "ms", {})
    with pytest.raises(OptionError, match="no budget of milliseconds"):
        budget_of_bits(TABLE, 4, "ms")
    for settings in ({}, {"bits": 4.0, "share": 0.5}):
        with pytest.raises(OptionError, match="one of them"):
            Budget(**settings)


def test_a_budget_chooses_for_a_network():
    network, batches = FoldBatchNorm().run(captured("unet2d")), images(captured("unet2d").shape)
    budget = Budget(bits=4.5, widths=WIDTHS[:3], objective="fisher")
    plan = budget.plan(network, EVERYTHING, batches, skip=frozenset({"up"}))
    table = measure(network, EVERYTHING, batches, widths=WIDTHS[:3], objective="fisher", skip=frozenset({"up"}))
    assert replace(plan, front=()) == choose(table, budget_of_bits(table, 4.5))
    assert [p.bytes for p in plan.front] == sorted(p.bytes for p in plan.front)
    assert set(plan.layer_bits) == {layer.name for layer in network.layers} - {"up"}
    assert len(set(plan.layer_bits.values())) > 1
    assert "quantized" in Quantize(layer_bits=plan.layer_bits).run(network, told(batches)).state
    assert Budget(share=0.5).total(table) == budget_of_bits(table, 4)
    assert Budget(amount=7).total(table) == 7
