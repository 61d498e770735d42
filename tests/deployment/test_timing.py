"""Timing in turn, and what was asked of layers beside what was done."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from microtome.deployment import timing
from microtome.deployment.deploy import sqnr
from microtome.deployment.layers import integer_counts, layer_table
from microtome.deployment.timing import LEAST_ROUNDS, MOST_REST_SECONDS, PROBE_SECONDS, Candidate, interleaved
from microtome.graph.capture import capture
from microtome.methods.base import Context
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.runtimes import runtime
from microtome.runtimes.base import LayerRun
from tiny import Spots


def quantized():
    batches = [torch.rand(1, 1, 32, 32)]
    network = FoldBatchNorm().run(capture(Spots(), (1, 32, 32)))
    return Quantize().run(network, Context(batches, capabilities=runtime("openvino").capabilities()))


def test_candidates_run_in_turn():
    order: list[str] = []
    candidates = [Candidate(name, name, "f32", lambda _, name=name: order.append(name)) for name in "abc"]
    rows = interleaved(candidates, np.zeros((1, 1)), budget=0)
    rounds = LEAST_ROUNDS[0][1]
    assert order == list("aabbcc") * rounds  # the first of two warms up
    assert [row["rounds"] for row in rows] == [rounds] * 3
    assert all(row["quartiles_ms"][0] <= row["latency_ms"] <= row["quartiles_ms"][1] for row in rows)


def test_a_long_run_needs_no_warming_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timing, "LONG_SECONDS", 0.0)
    order: list[str] = []
    candidates = [Candidate(name, name, "f32", lambda _, name=name: order.append(name)) for name in "ab"]
    interleaved(candidates, np.zeros((1, 1)), budget=0)
    assert order == list("ab") * LEAST_ROUNDS[0][1]


class Clock:
    """Time that passes by sleeping only, while so many threads work for so long after each run of a candidate."""

    def __init__(self, threads: float, until: float) -> None:
        self.now = self.worked = 0.0
        self.threads, self.until = threads, until

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.worked

    def sleep(self, seconds: float) -> None:
        self.worked += self.threads * max(0.0, min(seconds, self.until - self.now))
        self.now += seconds


@pytest.mark.parametrize(
    ("threads", "until", "least", "most"),
    [
        (0.0, 0.0, PROBE_SECONDS, PROBE_SECONDS),
        (1.0, 0.015, 0.015, 0.025),
        (3.0, 0.2, 0.2, 0.21),
        (0.1, 9.0, PROBE_SECONDS, PROBE_SECONDS),
        (1.0, 9.0, MOST_REST_SECONDS, MOST_REST_SECONDS),
    ],
)
def test_a_rest_ends_when_threads_sleep(threads, until, least, most, monkeypatch: pytest.MonkeyPatch):
    clock = Clock(threads, until)
    monkeypatch.setattr(timing, "time", clock)
    timing.rest()
    assert least - 1e-9 <= clock.now <= most + 1e-9


def test_nobody_runs_beside_threads_that_still_look_for_work(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(1.0, 0.0)
    monkeypatch.setattr(timing, "time", clock)
    begun: list[float] = []

    def eager(_: np.ndarray) -> None:
        begun.append(clock.now)
        clock.until = clock.now + 0.1

    def other(_: np.ndarray) -> None:
        begun.append(clock.now)
        assert clock.now >= clock.until

    interleaved([Candidate("eager", "", "", eager), Candidate("other", "", "", other)], np.zeros((1, 1)), budget=0)
    assert len(begun) == 4 * LEAST_ROUNDS[0][1]


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
