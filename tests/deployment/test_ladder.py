"""The ladder: silent where a runtime computes what the graph says, and at the right place where it does not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from microtome.deployment import parity
from microtome.graph import edit
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.methods.base import Context
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.runtimes import reference, runtime
from networks import captured, images, randomize
from targets import EVERY


def quantized(target: str, name: str = "unet2d") -> Network:
    network = captured(name)
    context = Context(images(network.shape), capabilities=runtime(target).capabilities())
    return Quantize().run(FoldBatchNorm().run(network), context)


def climbed(network: Network, target: Any, count: int = 2) -> list[dict[str, Any]]:
    ladder = parity.Ladder(network, target, threads=1)
    for x in images(network.shape, seed=3)[:count]:
        ladder.climb(x.numpy())
    return ladder.rungs()


@pytest.mark.parametrize("target", EVERY)
def test_no_runtime_departs_from_its_network(target: str):
    network = quantized(target)
    rungs = climbed(network, runtime(target))
    assert not [rung for rung in rungs if rung["departs"]]
    assert rungs[-1]["layer"] == "(output)"
    assert {rung["layer"] for rung in rungs} >= {"enter.0", "leave.0"}
    if target == "reference":
        assert all(rung["largest"] == 0 for rung in rungs)


def wrong(layer: str) -> Any:
    """A runtime that computes one layer with a bias of its own: half of the values' range too much."""

    def export(network: Network, folder: Path) -> Path:
        network = network.copy()
        found = next(one for one in network.layers if one.name == layer)
        bias = str(found.node.args[2].target)
        edit.set_constant(network.graph_module, bias, network.tensor(bias) + 1.0)
        return reference.export(network, folder)

    return SimpleNamespace(NAME="wrong", PRECISIONS=("f32",), export=export, open_session=reference.open_session)


@pytest.mark.parametrize(("layer", "reader"), [("enter.0", "down.0"), ("up", "leave.0"), ("leave.3", "(output)")])
def test_a_layer_that_is_computed_wrongly_is_named_by_what_reads_it(layer: str, reader: str):
    rungs = climbed(quantized("reference"), wrong(layer))
    assert [rung["layer"] for rung in rungs if rung["departs"]] == [reader]
    behind = rungs[[rung["layer"] for rung in rungs].index(reader) + 1 :]
    assert all(rung["own_largest"] == 0 for rung in behind)  # they compute rightly what they were given
    assert all(rung["largest"] > 0 for rung in behind)  # but it is something else


class Residual(nn.Module):
    """Adds and clamps in place, as residual networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu_()
        y = self.second(x)
        y += x
        return self.third(y.relu_())


@pytest.mark.parametrize("target", EVERY)
def test_what_is_changed_in_place_later_is_compared_as_it_was(target: str):
    network = capture(randomize(Residual()), (4, 12, 10))
    context = Context(images(network.shape), capabilities=runtime(target).capabilities())
    rungs = climbed(Quantize().run(network, context), runtime(target))
    assert not [rung for rung in rungs if rung["departs"]]


def test_outputs_in_real_numbers_are_counted_in_parts_of_their_range():
    network = captured("unet2d")
    (rung,) = climbed(network, wrong("leave.3"))
    x = images(network.shape, seed=3)[0]
    scores = network(x).detach()
    span = float(scores.max() - scores.min())
    assert rung["step"] == pytest.approx(span / 255, rel=1e-4)
    assert rung["own_mean"] == pytest.approx(255 / span, rel=1e-3)


def test_all_outputs_by_name_and_the_memory_that_they_need(monkeypatch: pytest.MonkeyPatch):
    network, watched = parity.tapped(quantized("reference"))
    assert [port.name for port in network.outputs] == ["output", *(one.port for one in watched[:-1])]
    assert parity.fits(quantized("reference"))
    monkeypatch.setattr(parity, "free_bytes", lambda: 1000)
    assert not parity.fits(quantized("reference"))
