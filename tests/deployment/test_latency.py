from __future__ import annotations

import pytest
import torch
from torch import nn

from microtome.deployment import latency
from microtome.deployment.latency import Latency, structure_of
from microtome.graph import edit
from microtome.graph.capture import capture
from microtome.runtimes import runtime
from tiny import Spots

X = torch.rand(1, 1, 32, 32).numpy()


def wide(channels: int) -> nn.Module:
    layers = (nn.Conv2d(1, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1))
    return nn.Sequential(*layers, nn.Conv2d(channels, 1, 1))


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(latency, "SECONDS", 0.05)


def test_a_network_with_more_to_do_takes_longer():
    measure = Latency(runtime("openvino"), X, threads=1)
    slow, fast = (measure(capture(wide(channels), (1, 32, 32))) for channels in (256, 4))
    assert slow > 3 * fast > 0


def test_a_structure_is_measured_once(monkeypatch: pytest.MonkeyPatch):
    network = capture(Spots(), (1, 32, 32))
    measure = Latency(runtime("onnxruntime"), X, threads=1)
    first = measure(network)
    other = network.copy()
    name = str(other.layers[0].weight.target)
    edit.set_constant(other.graph_module, name, 2 * other.tensor(name))
    monkeypatch.setattr(Latency, "_measured", lambda *_: pytest.fail("it was measured again"))
    assert measure(other) == first


def test_what_says_how_long_a_network_takes():
    one, same, other = (capture(wide(channels), (1, 32, 32)) for channels in (4, 4, 5))
    assert structure_of(one) == structure_of(same) != structure_of(other)
    assert structure_of(capture(Spots(), (1, 32, 32))) != structure_of(one)
