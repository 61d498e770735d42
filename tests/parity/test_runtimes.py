"""Each runtime against the same graph in torch: same numbers, integer kernels where they were asked for."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from microtome.errors import DataError, OptionError, ReadError, TargetError
from microtome.graph.network import Network
from microtome.graph.quantizers import input_quantizer, weight_quantizer
from microtome.methods.base import Context
from microtome.recipes import read, run
from microtome.runtimes import TARGETS, runtime
from microtome.runtimes.base import Session
from networks import REAL, captured, images, sqnr_db
from targets import EVERY, FIXED, FLAT, param

# The same float operators in another order of summation: 2^-24 times some hundred terms, and a norm's division.
FLOAT_DB = 90.0
# The runtime accumulates in int32 and requantizes once where the simulation multiplies rounded floats: a value on the
# edge between two integers may fall to the other side (one step, a few values in a thousand), and what a layer gets
# wrong the next layers pass on. The int8 network itself is 28 to 43 dB away from float; the runtime stays 10 closer.
INTEGER_DB = 38.0
# LiteRT rounds behind every operator: so many more values lie on an edge.
ROUNDED_DB = 30.0
# Float operators on the same rounded weights.
WEIGHTS_ONLY_DB = 60.0
# With wide steps a value on the edge between two integers costs more when it falls to the other side.
NARROW_DB = 20.0
# The reference runs the very same graph.
EXACT_DB = float("inf")

# What a target cannot run in integers at all.
NOTHING_TO_DO = {("onnxruntime", "residual3d")}
PAIRS = [
    (target, name)
    for target in TARGETS
    for name in REAL
    if (target, name) not in NOTHING_TO_DO and not (target in FLAT and name.endswith("3d"))
]
FLOATS = [
    param(target, name)
    for target in TARGETS
    for name in ("unet2d", "residual3d")
    if not (target in FLAT and name == "residual3d")
]
AT_EACH_EDIT = ("unet2d", "transformer")
both = pytest.mark.parametrize(
    ("target", "name"),
    [param(*pair, slow=pair[1] not in AT_EACH_EDIT) for pair in PAIRS],
)


@dataclass(frozen=True)
class Exported:
    network: Network
    path: Path
    session: Session
    bytes: int


@functools.cache
def exported(target: str, name: str, recipe_name: str = "int8") -> Exported:
    module, parent = runtime(target), captured(name)
    network = run(read(recipe_name), parent, Context(images(parent.shape), capabilities=module.capabilities()))
    folder = Path(tempfile.mkdtemp())
    path = module.export(network, folder)
    size = sum(file.stat().st_size for file in module.files(path))
    return Exported(network, path, module.open_session(path, threads=1, precision="f32"), size)


def requested(network: Network) -> list[str]:
    """Return the layers whose weight and input are both quantized."""
    return [
        layer.name
        for layer in network.layers
        if weight_quantizer(network, layer) is not None and input_quantizer(network, layer) is not None
    ]


def run_both(what: Exported, seed: int = 5, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.cat(images(what.network.shape, seed=seed))[:batch]
    return what.network(x).detach(), torch.from_numpy(what.session.run(x.numpy()))


@both
def test_the_runtime_computes_what_the_simulation_does(target: str, name: str):
    expected, actual = run_both(exported(target, name))
    assert actual.dtype == torch.float32
    assert actual.shape == expected.shape
    assert sqnr_db(expected, actual) >= {"reference": EXACT_DB, "litert": ROUNDED_DB, "executorch": ROUNDED_DB}.get(
        target, INTEGER_DB
    )


@pytest.mark.parametrize(("target", "name"), FLOATS)
def test_the_runtime_computes_the_float_network(target: str, name: str):
    expected, actual = run_both(exported(target, name, "f32"))
    assert sqnr_db(expected, actual) >= (EXACT_DB if target == "reference" else FLOAT_DB)


@both
def test_every_layer_asked_for_ran_in_integers(target: str, name: str):
    what = exported(target, name)
    runs = what.session.layer_runs(images(what.network.shape)[0].numpy())
    asked = requested(what.network)
    assert asked
    executed = {layer: {r.executed for r in runs if r.runs(layer) and "reorder" not in r.op.lower()} for layer in asked}
    if target == "reference":  # it simulates: nothing runs in integers, and it says so
        assert executed == {layer: {"f32"} for layer in asked}
    else:
        assert executed == {layer: {"int8"} for layer in asked}


@pytest.mark.parametrize(
    ("target", "name", "asked"),
    [
        ("openvino", "unet2d", ["enter.0", "down.0", "up", "leave.0", "leave.3"]),
        ("openvino", "residual3d", ["enter", "first.0", "second.0", "leave"]),
        ("onnxruntime", "unet2d", ["enter.0", "down.0", "leave.0", "leave.3"]),  # no integer ConvTranspose
        ("onnxruntime", "dense2d", ["enter", "convs.0", "convs.1", "head"]),
        ("reference", "concat_up2d", ["enter", "deep", "up", "leave"]),
    ],
)
def test_what_is_asked_for(target: str, name: str, asked: list[str]):
    assert requested(exported(target, name).network) == asked


@both
def test_every_layer_is_found_among_the_runs(target: str, name: str):
    what = exported(target, name)
    runs = what.session.layer_runs(images(what.network.shape)[0].numpy())
    for layer in what.network.layers:
        assert any(r.runs(layer.name) for r in runs), layer.name
    assert all(r.latency_ms is None or r.latency_ms >= 0 for r in runs)


def test_onnxruntime_refuses_a_network_of_three_dimensional_convolutions():
    parent = captured("residual3d")
    with pytest.raises(TargetError, match="integer kernels for none of the 4 layers"):
        run(read("int8"), parent, Context(images(parent.shape), capabilities=runtime("onnxruntime").capabilities()))


@pytest.mark.parametrize("target", [target for target in TARGETS if target not in FIXED])
def test_other_batch_and_image_sizes_run_too(target: str):
    what = exported(target, "unet2d")
    x = images((3, 24, 8))[0][:1]
    actual = torch.from_numpy(what.session.run(x.numpy()))
    assert actual.shape == (1, 2, 24, 8)
    assert sqnr_db(what.network(x).detach(), actual) >= INTEGER_DB


def test_litert_takes_any_batch_of_one_size():
    what = exported("litert", "unet2d")
    x = torch.cat(images((3, 16, 16), 3)).numpy()
    alone = np.concatenate([what.session.run(x[place : place + 1]) for place in range(len(x))])
    assert np.array_equal(what.session.run(x), alone)
    with pytest.raises(DataError, match=r"takes input of shape \(3, 16, 16\), not \(3, 24, 8\)"):
        what.session.run(images((3, 24, 8))[0].numpy())


@pytest.mark.parametrize("target", EVERY)
def test_the_same_image_gives_the_same_numbers(target: str):
    what = exported(target, "unet2d")
    x = images(what.network.shape)[0].numpy()
    first = what.session.run(x)
    what.session.run(x * 2)
    assert np.array_equal(what.session.run(x), first)


@pytest.mark.parametrize("target", EVERY)
def test_the_session_takes_arrays_as_they_come(target: str):
    what = exported(target, "unet2d")
    x = images(what.network.shape)[0].numpy()
    turned = np.asfortranarray(x).astype(np.float64)
    before = turned.copy()
    assert np.array_equal(what.session.run(turned), what.session.run(x))
    assert np.array_equal(turned, before)


def test_the_result_is_not_overwritten_by_the_next_run():
    what = exported("openvino", "unet2d")
    x = images(what.network.shape)[0].numpy()
    first = what.session.run(x)
    copy = first.copy()
    what.session.run(x + 1)
    assert np.array_equal(first, copy)


def test_openvino_in_bf16_stays_near_f32():
    what = exported("openvino", "unet2d", "f32")
    session = runtime("openvino").open_session(what.path, threads=1, precision="bf16")
    x = images(what.network.shape)[0]
    # bf16 keeps 8 bits of mantissa: 2^-9 per rounding is 54 dB, less some for the depth
    assert sqnr_db(what.network(x).detach(), torch.from_numpy(session.run(x.numpy()))) >= 35


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_the_file_shrinks(target: str):
    # 12,000 weights; the graph itself weighs tens of kilobytes, so only the saving is compared
    float_bytes, integer_bytes = (exported(target, "unet2d", name).bytes for name in ("f32", "int8"))
    weights = sum(t.numel() for n, t in exported(target, "unet2d").network.constants().items() if "weight" in n)
    assert weights > 10_000
    assert integer_bytes < float_bytes


def test_openvino_stores_weights_as_integers():
    sizes = [exported("openvino", "unet2d", name).path.with_suffix(".bin").stat().st_size for name in ("f32", "int8")]
    # four bytes become one; scales, biases and constants of shape arithmetic stay
    assert sizes[0] / sizes[1] > 3


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "executorch"])  # it has two files
def test_a_missing_and_a_broken_file_are_refused(target: str, tmp_path: Path):
    module = runtime(target)
    suffix = {"openvino": ".xml", "onnxruntime": ".onnx", "litert": ".tflite", "reference": ".pt2"}[target]
    broken = tmp_path / f"broken{suffix}"
    broken.write_bytes(b"nothing that a runtime could read")
    for path in (broken, tmp_path / f"missing{suffix}"):
        with pytest.raises(ReadError, match=path.name):
            module.open_session(path, threads=1, precision="f32")


def test_the_onnx_file_says_nothing_about_this_machine():
    content = exported("onnxruntime", "unet2d").path.read_bytes()
    for secret in (b"networks.py", str(Path.cwd()).encode(), b"site-packages"):
        assert secret not in content


def test_an_unknown_target_is_refused_with_the_choice():
    with pytest.raises(OptionError, match="openvino, onnxruntime, litert, executorch, reference"):
        runtime("tensorrt")


WIDTHS = [(4, 8), (2, 8), (4, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(("target", "name"), [pair for pair in PAIRS if pair[0] == "openvino"])
def test_narrow_grids_run_in_the_same_kernels(target: str, name: str, bits: tuple[int, int]):
    module, parent = runtime(target), captured(name)
    settings = {"quantize.weight_bits": bits[0], "quantize.activation_bits": bits[1]}
    network = run(read("ranges", settings), parent, Context(images(parent.shape), capabilities=module.capabilities()))
    x = images(parent.shape)[0]
    with tempfile.TemporaryDirectory() as folder:
        session = module.open_session(module.export(network, Path(folder)), threads=1, precision="f32")
        assert sqnr_db(network(x), torch.from_numpy(session.run(x.numpy()))) > NARROW_DB
        runs = session.layer_runs(x.numpy())
    for layer in requested(network):
        assert any(r.runs(layer) and r.executed == "int8" for r in runs), layer


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(
    ("recipe", "settings"), [("w2", {"finetune.steps": 2}), ("encoded", {"encode.format": "midrise2"})]
)
def test_two_bits_without_a_zero_run_in_the_same_kernels(target: str, recipe: str, settings: dict[str, object]):
    module, parent = runtime(target), captured("unet2d")
    batches = images(parent.shape)
    context = Context(batches, training=batches, capabilities=module.capabilities())
    network = run(read(recipe, settings), parent, context)
    assert "midrise2" in {encoding.format.name for encoding in network.formats.values()}
    x = images(parent.shape)[0]
    with tempfile.TemporaryDirectory() as folder:
        session = module.open_session(module.export(network, Path(folder)), threads=1, precision="f32")
        assert sqnr_db(network(x).detach(), torch.from_numpy(session.run(x.numpy()))) > NARROW_DB
        runs = session.layer_runs(x.numpy())
    for layer in requested(network):
        assert any(r.runs(layer) and r.executed == "int8" for r in runs), layer


@pytest.mark.slow
@pytest.mark.parametrize("bits", [(12, 8), (16, 16), (8, 12), (None, 8), (4, None)])
def test_wide_grids_and_one_sided_ones_compute_the_same(bits: tuple[int | None, int | None]):
    module, parent = runtime("openvino"), captured("unet2d")
    settings = {"quantize.weight_bits": bits[0], "quantize.activation_bits": bits[1]}
    network = run(read("ranges", settings), parent, Context(images(parent.shape), capabilities=module.capabilities()))
    x = images(parent.shape)[0]
    with tempfile.TemporaryDirectory() as folder:
        session = module.open_session(module.export(network, Path(folder)), threads=1, precision="f32")
        assert sqnr_db(network(x), torch.from_numpy(session.run(x.numpy()))) > INTEGER_DB


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_weights_alone_take_four_bits_in_the_file(target: str):
    module, parent = runtime(target), captured("unet2d")
    sizes = {}
    for bits in (4, 8):
        settings = {"quantize.weight_bits": bits, "quantize.activation_bits": None, "quantize.end_bits": None}
        network = run(
            read("ranges", settings), parent, Context(images(parent.shape), capabilities=module.capabilities())
        )
        x = images(parent.shape)[0]
        with tempfile.TemporaryDirectory() as folder:
            path = module.export(network, Path(folder))
            sizes[bits] = module.files(path)[-1].stat().st_size
            session = module.open_session(path, threads=1, precision="f32")
            assert sqnr_db(network(x), torch.from_numpy(session.run(x.numpy()))) > WEIGHTS_ONLY_DB
    weights = sum(parent.tensor(str(layer.weight.target)).numel() for layer in network.layers)
    assert sizes[8] - sizes[4] > 0.2 * weights  # half a byte each, less what ONNX Runtime does not run in integers
