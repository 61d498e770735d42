"""ExecuTorch: the numbers of the graph, all of a network in XNNPACK; and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from microtome.errors import MissingExtraError, ReadError, TargetError
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.rewriting.integers import with_integers
from microtome.methods.base import Context
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.runtimes import executorch, litert
from networks import Of, captured, images, randomize, sqnr_db

FLOAT_DB, ROUNDED_DB = 90.0, 28.0
SAME_DB = 40.0  # a scale of another precision: single values on the edge between two integers
installed = pytest.mark.skipif(
    not executorch.measurable(), reason="executorch is not installed: pip install 'microtome[executorch]'"
)


def quantized(network: Network) -> Network:
    context = Context(images(network.shape), capabilities=litert.capabilities())
    return Quantize().run(FoldBatchNorm().run(network), context)


@pytest.mark.parametrize("name", ["unet2d", "concat_up2d", "dense2d", "shared2d", "tied2d", "transformer"])
def test_pairs_of_operators_compute_what_the_graph_does(name: str):
    """Needs no ExecuTorch: what its compiler is given is the same network."""
    network = quantized(captured(name))
    rewritten = with_integers(network)
    x = images(network.shape, seed=3)[0]
    assert sqnr_db(network(x).detach(), rewritten(x).detach()) > SAME_DB
    operators = {str(node.target) for node in rewritten.graph_module.graph.nodes}
    assert not [operator for operator in operators if "fake_quantize" in operator]
    readers = [
        len(node.users) for node in rewritten.graph_module.graph.nodes if "dequantize_per_tensor" in str(node.target)
    ]
    assert set(readers) == {1}
    weights = {tensor.dtype for name, tensor in rewritten.constants().items() if name.endswith("_int8")}
    assert weights == {torch.int8}


@installed
@pytest.mark.slow
@pytest.mark.parametrize(
    "function",
    [
        lambda x, one, other: one(x) + other(x),
        lambda x, one, other: torch.cat([one(x), F.relu6(other(x))], 1),
        lambda x, one, other: F.max_pool2d(one(x), 2) * torch.sigmoid(F.avg_pool2d(other(x), 2)),
        lambda x, one, other: F.interpolate(one(x), scale_factor=2, mode="bilinear"),
        lambda x, one, other: F.instance_norm(one(x)) + F.silu(other(x)),
        lambda x, one, other: F.adaptive_avg_pool2d(one(x), 1).flatten(1),
    ],
)
def test_operators(function, tmp_path: Path):
    network = capture(randomize(Of(function, nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 8, 1))), (4, 12, 10))
    x = images(network.shape, seed=5)[0]
    for one, least in ((network, FLOAT_DB), (quantized(network), ROUNDED_DB)):
        session = executorch.open_session(executorch.export(one, tmp_path), threads=1)
        assert sqnr_db(one(x).detach(), torch.from_numpy(session.run(x.numpy()))) > least
    assert {run.kernel for run in session.layer_runs(x.numpy())} == {"XNNPACK"}
    assert {run.executed for run in session.layer_runs(x.numpy())} == {"int8"}


@installed
def test_volumes_are_refused_with_the_layer_and_where_they_run(tmp_path: Path):
    with pytest.raises(TargetError, match=r"enter\.0 is a 3-D conv.*--target litert"):
        executorch.export(capture(Enter(), (1, 8, 8, 8)), tmp_path)


class Enter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.enter(x)


@installed
def test_files_that_are_damaged_or_missing_are_refused(tmp_path: Path):
    path = executorch.export(captured("tied2d"), tmp_path)
    content, notes = path.read_bytes(), path.with_name("model.json").read_text()
    for wrong, reason in ((b"\x00" * 64, "no ExecuTorch program"), (content[: len(content) // 2], "can load")):
        path.write_bytes(wrong)
        with pytest.raises(ReadError, match=reason):
            executorch.open_session(path)
    path.write_bytes(content)
    path.with_name("model.json").write_text(notes[:20])
    with pytest.raises(ReadError, match=r"model\.json is broken"):
        executorch.open_session(path)
    path.with_name("model.json").unlink()
    with pytest.raises(ReadError, match=r"model\.json does not exist"):
        executorch.open_session(path)


def test_without_it_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(executorch, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"microtome\[executorch\]"):
        executorch.capabilities()
