"""Every target takes all inputs and returns all outputs by name."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from microtome.errors import DataError
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.quantizers import quantizers
from microtome.methods.base import Context
from microtome.methods.quantize import Quantize
from microtome.runtimes import runtime
from microtome.runtimes.base import Session
from microtome.types import FREE, Port
from networks import captured, images, sqnr_db
from networks_with_ports import KEPT, batches, prompted
from targets import EVERY, FIXED

# As in test_runtimes: a value on the edge between two integers may fall to the other side.
INTEGER_DB = 38.0
ROUNDED_DB = 30.0
ROUNDING = 1e-4  # one thread sums in another order than all threads do
every = pytest.mark.parametrize("target", EVERY)


@functools.cache
def exported(target: str) -> tuple[Network, Path, Session]:
    """The network with two inputs and three outputs, calibrated on mappings."""
    module = runtime(target)
    network = Quantize().run(prompted(), Context(batches(), capabilities=module.capabilities()))
    path = module.export(network, Path(tempfile.mkdtemp()))
    return network, path, module.open_session(path, threads=1, precision="f32")


@every
def test_all_outputs_by_name(target: str) -> None:
    network, _, session = exported(target)
    assert {q.kind for q in quantizers(network)} == {"activation", "weight"}
    side = (8, 8) if target in FIXED else (12, 10)  # their files have one size
    (given,) = batches(1, size=3, side=side, seed=1)
    with torch.no_grad():
        expected = network.run(given)
    arrays = {name: value.numpy() for name, value in reversed(given.items())}
    actual = session.run(arrays)
    assert list(actual) == list(KEPT)
    for name, value in expected.items():
        assert actual[name].dtype == np.float32
        assert sqnr_db(value, torch.from_numpy(actual[name])) > (ROUNDED_DB if target in FIXED else INTEGER_DB), name
    assert {run.names[0].split("/")[0] for run in session.layer_runs(arrays)} >= {"enter", "mix", "head"}


@every
@pytest.mark.parametrize("threads", [1, 2])
def test_a_stream_gives_for_a_mapping_what_run_gives(target: str, threads: int) -> None:
    _, path, _ = exported(target)
    session = runtime(target).open_session(path, threads=threads, precision="f32")
    given = [{name: value.numpy() for name, value in batch.items()} for batch in batches(4)]
    results = [{name: np.array(value) for name, value in result.items()} for result in session.stream(iter(given))]
    assert len(results) == len(given)
    for one, result in zip(given, results, strict=True):
        expected = session.run(one)
        assert list(result) == list(expected) == list(KEPT)
        for name, value in expected.items():
            np.testing.assert_allclose(result[name], value, rtol=0, atol=ROUNDING * np.abs(value).max())
    assert not np.allclose(results[0]["scores"], results[1]["scores"])


@every
def test_a_session_says_what_it_takes_and_returns(target: str) -> None:
    network, _, session = exported(target)
    for ours, theirs in zip((*network.inputs, *network.outputs), (*session.inputs, *session.outputs), strict=True):
        free = tuple(FREE if open_ else n for n, open_ in zip(ours.shape, ours.dynamic[1:], strict=True))
        fixed = Port(ours.name, ours.shape, (False,) * len(ours.dynamic))
        assert theirs in ((fixed,) if target in FIXED else (ours, Port(ours.name, free, ours.dynamic)))


@every
def test_one_array_is_the_case_of_one(target: str) -> None:
    module, network = runtime(target), captured("unet2d")
    x = images(network.shape)[0].numpy()
    with tempfile.TemporaryDirectory() as folder:
        session = module.open_session(module.export(network, Path(folder)), threads=1, precision="f32")
        named = session.run({"input": x})
        assert list(named) == ["output"]
        assert np.array_equal(named["output"], session.run(x))


@every
def test_inputs_that_do_not_fit_are_named(target: str) -> None:
    _, _, session = exported(target)
    (given,) = ({name: value.numpy() for name, value in batch.items()} for batch in batches(1))
    for wrong in (given["image"], {"prompt": given["prompt"]}):
        with pytest.raises(DataError, match="takes image, prompt, not"):
            session.run(wrong)
    with pytest.raises(DataError, match="takes image, prompt, not"):
        list(session.stream([given["image"]] * 3))


def test_onnx_files_name_their_sizes() -> None:
    onnx = pytest.importorskip("onnx")
    _, path, _ = exported("onnxruntime")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert sizes(model.graph.input) == {"image": ["batch", 1, "height", "width"], "prompt": ["batch", 3]}
    assert sizes(model.graph.output) == {
        "scores": ["batch", 2, "2*height", "2*width"], "relu": ["batch", 4, "height", "width"], "mean": ["batch", 2],
    }  # fmt: skip


class Unrelated(nn.Module):
    """Two images whose sizes have nothing to do with one another."""

    def forward(self, image: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return image * other.mean((2, 3), keepdim=True)


@pytest.mark.parametrize(
    ("module", "shape", "names"),
    [
        (nn.Conv1d(1, 2, 3, padding=1), (1, 16), [["batch", 1, "length"]]),
        (nn.Conv3d(1, 2, 3, padding=1), (1, 8, 8, 8), [["batch", 1, "depth", "height", "width"]]),
        (nn.Linear(4, 2), (4,), [["batch", 4]]),
        (
            Unrelated(),
            {"image": (1, 8, 8), "other": (1, 6, 6)},
            [["batch", 1, "height", "width"], ["batch", 1, "other_height", "other_width"]],
        ),
    ],
)
def test_sizes_are_called_by_their_axis(module: nn.Module, shape: object, names: list[object], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = runtime("onnxruntime").export(capture(module, shape), tmp_path)  # type: ignore[arg-type]
    assert list(sizes(onnx.load(path).graph.input).values()) == names


def sizes(values: object) -> dict[str, list[object]]:
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}  # type: ignore[attr-defined]
