from __future__ import annotations

import pytest
from torch import nn

from microtome import environment
from microtome.deployment.gain import no_gain
from microtome.graph.capture import capture


def network(*, groups: int = 1):
    return capture(nn.Sequential(nn.Conv2d(4, 4, 3, groups=groups), nn.ReLU(), nn.Conv2d(4, 2, 1)), (4, 8, 8))


def runs(ours: float, **floats: float) -> list[dict]:
    rows = [
        {"name": name, "runtime": "openvino", "precision": name, "latency_ms": ms, "bytes": 4000}
        for name, ms in floats.items()
    ]
    return [
        {"name": "eager", "runtime": "pytorch", "precision": "f32", "latency_ms": 0.1, "bytes": None},
        *rows,
        {
            "name": "ours",
            "runtime": "openvino",
            "precision": "int8",
            "latency_ms": ours,
            "bytes": 1000,
            "compressed": True,
        },
    ]


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        (10.0, None),
        (20.1, "as fast on openvino in bf16 (21.00 ms; compressed 20.10 ms)"),
        (21.5, "as fast"),
        (25.0, "faster on openvino in bf16"),
    ],
)
def test_a_float_precision_that_is_as_fast_is_offered(ours: float, words: str | None) -> None:
    found = no_gain(network(), runs(ours, f32=30.0, bf16=21.0), "openvino")
    assert (found is None) if words is None else (words in found)
    if found:
        assert "--recipe f32 --precision bf16" in found
        assert "4.0× smaller" in found
        assert "depthwise" not in found


def test_depthwise_layers_are_named() -> None:
    found = no_gain(network(groups=4), runs(22.0, bf16=21.0), "openvino")
    assert "1 of its 2 layers are depthwise" in found
    assert "depthwise" not in no_gain(network(groups=2), runs(22.0, bf16=21.0), "openvino")


def test_nothing_is_said_without_a_float_run_of_the_same_runtime() -> None:
    assert no_gain(network(), runs(22.0), "openvino") is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("avx512_vnni", "amx_int8", "avx512_bf16"), "CPU has int8 dot products (VNNI) and int8 tiles (AMX) and bf16."),
        (("avx2", "avx_vnni"), "CPU has int8 dot products (VNNI), not int8 tiles (AMX) or bf16."),
        (("avx2",), "CPU has no fast arithmetic for integers or bf16."),
        ((), "it is not known"),
    ],
)
def test_what_the_processor_has_is_said(flags, words, monkeypatch) -> None:
    monkeypatch.setattr(environment, "processor", lambda: ("CPU", flags))
    assert words in environment.arithmetic()
