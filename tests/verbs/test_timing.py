"""Timing in turn, and what was asked of layers beside what was done."""

from __future__ import annotations

import numpy as np
import torch
from tiny import Spots

from microtome.graph.capture import capture
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.runtimes import runtime
from microtome.runtimes.base import LayerRun
from microtome.verbs.deploy import sqnr
from microtome.verbs.layers import integer_counts, layer_table
from microtome.verbs.timing import LEAST_ROUNDS, Candidate, interleaved


def quantized():
    batches = [torch.rand(1, 1, 32, 32)]
    network = FoldBatchNorm()(capture(Spots(), (1, 32, 32)), batches)
    return Quantize(runtime("openvino").capabilities())(network, batches)


def test_candidates_run_in_turn():
    order: list[str] = []
    candidates = [Candidate(name, name, "f32", lambda _, name=name: order.append(name)) for name in "abc"]
    rows = interleaved(candidates, np.zeros((1, 1)), budget=0)
    rounds = LEAST_ROUNDS[0][1]
    assert order == list("abc") * rounds
    assert [row["rounds"] for row in rows] == [rounds] * 3
    assert all(row["quartiles_ms"][0] <= row["latency_ms"] <= row["quartiles_ms"][1] for row in rows)


def test_a_layer_that_runs_in_float_is_counted():
    network = quantized()
    names = [layer.name for layer in network.layers]
    runs = [LayerRun((f"{name}/WithoutBiases", "other"), "Convolution", "int8", "conv_I8", 1.0) for name in names]
    assert integer_counts(layer_table(network, runs)) == {"requested": 3, "executed": 3}
    runs[1] = LayerRun((names[1],), "Convolution", "f32", "conv_f32", 1.0)
    table = layer_table(network, runs)
    assert integer_counts(table) == {"requested": 3, "executed": 2}
    assert table[1]["executed"] == "f32"
    assert integer_counts(layer_table(network, [])) == {"requested": 3, "executed": 0}


def test_a_reorder_is_not_the_layer_that_it_serves():
    network = quantized()
    name = network.layers[0].name
    runs = [
        LayerRun((name,), "Convolution", "int8", "conv_I8", 0.1),
        LayerRun((f"{name}/WithoutBiases_f32_i8",), "Reorder", "f32", "reorder", 9.0),
    ]
    assert layer_table(network, runs)[0]["executed"] == "int8"


def test_sqnr():
    signal = np.ones((4, 4), np.float32)
    assert sqnr(signal, signal) == 200.0
    assert sqnr(signal, signal * 0.9) == 20.0
