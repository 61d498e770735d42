from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from microtome.core.attention_formats import LogGrid
from microtome.core.formats import PowerOfTwo
from microtome.evidence.diagnosis import diagnose, from_history
from microtome.graph import edit
from microtome.graph.dynamic import insert_dynamic_quantizer
from microtome.graph.network import Network
from microtome.graph.nonuniform import insert_uneven
from microtome.graph.operators import kind
from microtome.graph.quantizers import quantizers
from microtome.graph.watching.float_counterpart import float_counterpart
from microtome.graph.watching.grid_use import GridUse, decibels
from microtome.methods.encode import EncodeWeights
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.types import QParams, QType
from networks import REAL, captured, images, sqnr_db, told

ROUNDINGS = 0.02  # decibels: sums in float64 of values in float32, rounded to two digits


def folded(name: str) -> Network:
    return FoldBatchNorm().run(captured(name))


def quantized(name: str, batches: list[Tensor], **settings: Any) -> Network:
    return Quantize(**settings).run(folded(name), told(batches))


@pytest.mark.parametrize("name", REAL)
def test_each_layer_alone_loses_what_a_network_with_only_that_layer_quantized_loses(name: str) -> None:
    batches = images(captured(name).shape, 2)
    network = quantized(name, batches, weight_bits=4, activation_bits=None)
    found = diagnose(captured(name), network, batches)["sensitivity"]
    assert found["reference"] == "parent"
    assert found["complete"]
    assert [row["name"] for row in found["layers"]] == [layer.name for layer in network.layers]
    x = torch.cat(batches)
    for row in found["layers"]:
        others = frozenset(other["name"] for other in found["layers"]) - {row["name"]}
        only = quantized(name, batches, weight_bits=4, activation_bits=None, skip=others)
        expected = sqnr_db(folded(name)(x), only(x))
        assert row["alone_db"] == pytest.approx(expected, abs=ROUNDINGS)
        assert row["bits"] == [4, None]
    assert found["network_db"] == pytest.approx(sqnr_db(folded(name)(x), network(x)), abs=ROUNDINGS)
    assert found["layers"][-1]["accumulated_db"] == pytest.approx(found["network_db"], abs=ROUNDINGS)
    assert found["layers"][0]["accumulated_db"] == found["layers"][0]["own_db"]


def test_inputs_count_too_and_a_layer_of_few_bits_is_found() -> None:
    batches = images(captured("unet2d").shape, 2)
    network = quantized("unet2d", batches, layer_bits={"up": (8, 2)})
    layers = diagnose(captured("unet2d"), network, batches)["sensitivity"]["layers"]
    assert min(layers, key=lambda row: row["alone_db"])["name"] == "up"
    assert min(layers, key=lambda row: row["own_db"])["bits"] == [8, 2]


def test_quantizers_are_those_of_the_graph_with_counts_of_all_values() -> None:
    batches = images(captured("unet2d").shape, 2)
    network = quantized("unet2d", batches, weight_bits=4)
    rows = diagnose(captured("unet2d"), network, batches)["quantizers"]
    assert [(row["name"], row["kind"]) for row in rows] == [(q.name, q.kind) for q in quantizers(network)]
    first = next(row for row in rows if row["kind"] == "activation")
    assert sum(first["histogram"]["counts"]) == sum(batch.numel() for batch in batches)
    assert first["histogram"]["low"] <= min(float(b.min()) for b in batches)
    assert first["histogram"]["high"] >= max(float(b.max()) for b in batches)
    weights = [row for row in rows if row["kind"] == "weight"]
    assert {row["bits"] for row in weights} == {4}
    assert all(5 < row["sqnr_db"] < 30 for row in weights)
    json.dumps(rows, allow_nan=False)


def test_weights_are_compared_with_the_parents_not_with_themselves() -> None:
    batches = images(captured("unet2d").shape, 1)
    network = quantized("unet2d", batches, activation_bits=None)
    encoded = EncodeWeights(PowerOfTwo(3)).run(network, told(batches))
    found = diagnose(captured("unet2d"), encoded, batches)
    assert found["sensitivity"]["reference"] == "parent"
    assert found["sensitivity"]["network_db"] < 25
    assert {row["bits"] for row in found["quantizers"]} == {3}
    assert all(row["sqnr_db"] < 30 for row in found["quantizers"])
    assert all(row["bits"][0] == 3 for row in found["sensitivity"]["layers"])


def test_a_network_whose_layers_are_not_the_parents_is_compared_with_itself() -> None:
    batches = images(captured("unet2d").shape, 1)
    network = quantized("unet2d", batches)
    rescaled = replace(network, state=network.state | {"equalized"})
    assert diagnose(captured("unet2d"), rescaled, batches)["sensitivity"]["reference"] == "own"
    assert diagnose(captured("concat_up2d"), network, batches)["sensitivity"]["reference"] == "own"


def test_time_that_is_up_leaves_nulls_and_says_so() -> None:
    batches = images(captured("residual3d").shape, 2)
    network = quantized("residual3d", batches)
    found = diagnose(captured("residual3d"), network, batches, seconds=0)
    assert found["sensitivity"]["complete"] is False
    assert {row["alone_db"] for row in found["sensitivity"]["layers"]} == {None}
    assert found["sensitivity"]["network_db"] > 20
    assert all(row["sqnr_db"] is not None for row in found["quantizers"])


@pytest.mark.parametrize("name", ["nothing", "unet2d"])
def test_a_network_in_float_loses_nothing(name: str) -> None:
    found = diagnose(captured(name), captured(name), images(captured(name).shape, 1))
    assert found["quantizers"] == []
    assert found["sensitivity"]["network_db"] == 200
    assert found["sensitivity"]["complete"]
    assert all(row["alone_db"] is None and row["bits"] == [None, None] for row in found["sensitivity"]["layers"])


def test_dynamic_and_logarithmic_roundings_are_taken_out_of_the_twin() -> None:
    network = folded("transformer").copy()
    graph_module = network.graph_module
    softmax_or_norm = next(n for n in graph_module.graph.nodes if kind(n) == "layer_norm")
    reader = next(layer.node for layer in network.layers if layer.name == "mlp.0")
    insert_dynamic_quantizer(graph_module, reader.args[0], [reader], 4)
    insert_uneven(graph_module, softmax_or_norm, list(softmax_or_norm.users), LogGrid(4, 1, 0))
    edit.finish(graph_module)
    x = images(network.shape, 1)[0]
    expected = folded("transformer")(x)
    assert sqnr_db(expected, network(x)) < 40
    assert sqnr_db(expected, float_counterpart(network)(x)) > 90
    found = diagnose(captured("transformer"), network, [x])["sensitivity"]
    row = next(row for row in found["layers"] if row["name"] == "mlp.0")
    assert row["bits"] == [None, 4]
    assert row["alone_db"] < 40


def test_shares_and_ratios_by_hand() -> None:
    grid = QParams(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), QType(2, signed=False, symmetric=False))
    real = torch.tensor([-0.4, 0.0, 1.2, 3.4, 3.6, 9.0])  # the grid is 0, 1, 2, 3
    use = GridUse()
    use.update(real, torch.tensor([0.0, 0.0, 1.0, 3.0, 3.0, 3.0]), grid)
    assert use.clipped == pytest.approx(2 / 6)
    noise = 0.16 + 0.04 + 0.16 + 0.36 + 36
    assert use.sqnr_db == pytest.approx(decibels(float(real.square().sum()), noise), abs=0.01)
    use.update(torch.tensor([float("nan")]), torch.tensor([0.0]), grid)
    bars = use.histogram()
    assert bars is not None
    assert sum(bars.counts) == 6
    assert 2 <= len(bars.counts) <= 64
    assert bars.low <= -0.4
    assert bars.high >= 9.0
    assert GridUse().histogram() is None


def test_channels_are_clipped_by_their_own_scale() -> None:
    grid = QParams(torch.tensor([1.0, 0.1]), torch.zeros(2, dtype=torch.int32), QType(2, narrow=True, axis=0))
    use = GridUse()
    use.update(torch.tensor([[1.4, -1.4], [1.4, 0.1]]), torch.tensor([[1.0, -1.0], [0.1, 0.1]]), grid)
    assert use.clipped == 0.25


def test_what_methods_noted_comes_out_of_the_history() -> None:
    plans = [
        {"bytes": 10, "loss": 0.5, "layer_bits": {"a": [2, 8], "b": [4, 8]}},
        {"bytes": 20, "loss": 0.1, "layer_bits": {"a": [8, 8], "b": [8, 8]}},
    ]
    curve = {"steps": [0, 100], "loss": [0.3, 0.1], "monitor": [None, 0.2]}
    history = ({"method": "Quantize", "plan": plans[1], "pareto": plans}, {"method": "Finetune", "training": curve})
    found = from_history(replace(captured("nothing"), history=history))
    assert [(row["bytes"], row["chosen"]) for row in found["pareto"]] == [(10, False), (20, True)]
    assert found["pareto"][0]["name"] == "weights of 2 to 4 bits"
    assert found["training"] == curve
    assert from_history(captured("nothing")) == {}
