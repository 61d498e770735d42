import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from microtome.deployment.placement import Placement, measured_placement
from microtome.graph.capture import capture
from microtome.graph.choosing.placement import readers, rule_of_thumb
from microtome.methods.base import Context
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.progress import Silent
from microtome.runtimes import openvino
from networks import randomize

pytestmark = pytest.mark.slow

SHAPE = (3, 32, 32)


class Residual(nn.Module):
    """Two residual blocks with batch norm, as in a residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.second = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.InstanceNorm2d(16))
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = (self.first(x) + x).relu()
        return self.head((self.second(x) + x).relu())


@pytest.fixture(scope="module")
def network():
    return capture(randomize(Residual()), SHAPE)


def place(network, folder: Path, **options) -> Placement:
    x = np.random.default_rng(0).standard_normal((1, *SHAPE), dtype=np.float32)
    settings = {"threads": 1, "budget": 0.0, "progress": Silent(), "cache": folder} | options
    return measured_placement(network, openvino, x, **settings)


def test_readers_are_sums_with_a_layer_and_norms_behind_one(network):
    found = readers(FoldBatchNorm().run(network), openvino.capabilities())
    assert [(r.node.name.split("_")[0], r.layer) for r in found] == [
        ("add", "first.0"),
        ("instance", "second.0"),
    ]


def test_the_rule_takes_sums_that_stay_integers(network):
    folded = FoldBatchNorm().run(network)
    # The first sum is read by a layer and by the next sum, which a norm keeps in float.
    assert rule_of_thumb(folded, openvino.capabilities()) == frozenset()
    plain = capture(randomize(nn.Sequential(Residual().stem, nn.ReLU(), nn.Conv2d(16, 2, 1))), SHAPE)
    assert rule_of_thumb(plain, openvino.capabilities()) == frozenset()


def test_readers_get_quantizers(network):
    folded = FoldBatchNorm().run(network)
    capabilities = openvino.capabilities()
    named = frozenset(r.node.name for r in readers(folded, capabilities))
    images = [torch.randn(1, *SHAPE)]
    without = Quantize(readers=frozenset()).run(folded, Context(images, capabilities=capabilities))
    quantized = Quantize(readers=named).run(folded, Context(images, capabilities=capabilities))

    def count(network) -> int:
        return sum("per_tensor" in str(node.target) for node in network.graph_module.graph.nodes)

    # The sum's own two values, of which one has a quantizer already; the norm's one.
    assert count(quantized) == count(without) + 2


@pytest.mark.parametrize(("options", "count"), [({}, 1), ({"activation_bits": None}, 0), ({"activation_bits": 4}, 0)])
def test_sums_never_widen_a_grid_nor_round_what_is_float(network, options: dict, count: int):
    folded = FoldBatchNorm().run(network)
    capabilities = openvino.capabilities()
    named = frozenset(r.node.name for r in readers(folded, capabilities))
    images = [torch.randn(1, *SHAPE)]
    quantized = Quantize(readers=named, **options).run(folded, Context(images, capabilities=capabilities))
    plain = Quantize(readers=frozenset(), **options).run(folded, Context(images, capabilities=capabilities))
    assert (quantized.fingerprint() != plain.fingerprint()) == bool(count)


def test_a_layer_left_in_float_is_not_rounded_for_a_sum(network):
    folded = FoldBatchNorm().run(network)
    capabilities = openvino.capabilities()
    named = frozenset(r.node.name for r in readers(folded, capabilities) if r.layer == "first.0")
    assert named
    options = {"skip": frozenset({"first.0"})}
    images = [torch.randn(1, *SHAPE)]
    quantized = Quantize(readers=named, **options).run(folded, Context(images, capabilities=capabilities))
    assert (
        quantized.fingerprint()
        == Quantize(readers=frozenset(), **options)
        .run(folded, Context(images, capabilities=capabilities))
        .fingerprint()
    )


@pytest.mark.slow
def test_decides_from_what_it_measured(network, tmp_path: Path):
    found = place(network, tmp_path, budget=60.0)
    assert np.isfinite(found.milliseconds)
    assert found.precision in openvino.PRECISIONS
    assert {"everything in f32", "everything in bf16"} <= {row["change"] for row in found.tried}
    in_integers = True
    for row in found.tried:
        in_float = row["change"].startswith("everything")
        least = 1 / 0.95 if in_float and in_integers else 0.98  # integers must be clearly faster than none
        assert row["kept"] == (row["after_ms"] < least * row["before_ms"])
        in_integers &= not (in_float and row["kept"])


def test_is_kept_for_the_next_time(network, tmp_path: Path):
    found = place(network, tmp_path)
    (file,) = tmp_path.glob("*.json")
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told | {"milliseconds": 123.0}))
    assert place(network, tmp_path) == replace(found, milliseconds=123.0)
    place(network, tmp_path, threads=2)
    assert len(list(tmp_path.glob("*.json"))) == 2


@pytest.mark.slow
def test_a_broken_entry_is_measured_again(network, tmp_path: Path):
    place(network, tmp_path)
    (file,) = tmp_path.glob("*.json")
    file.write_text("{")
    assert np.isfinite(place(network, tmp_path).milliseconds)


@pytest.mark.slow
def test_layers_that_the_user_left_out_stay_out(network, tmp_path: Path):
    assert "head" in place(network, tmp_path, skip=frozenset({"head"})).skip


def test_says_whether_anything_is_left_in_integers(network, tmp_path: Path):
    assert place(network, tmp_path, skip=frozenset(layer.name for layer in network.layers)).in_float
