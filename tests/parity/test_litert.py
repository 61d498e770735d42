"""Operators and layers as LiteRT has them: the numbers of the graph, in integers where the graph is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from microtome.deployment.parity import Ladder
from microtome.errors import ReadError, TargetError
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.methods.base import Context
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.runtimes import litert
from microtome.runtimes.litert import Session
from networks import Of, captured, images, randomize, sqnr_db

FLOAT_DB = 90.0  # another order of summation
ROUNDED_DB = 28.0  # a value on the edge between two integers, behind every operator


def session(network: Network, folder: Path) -> Session:
    return litert.open_session(litert.export(network, folder), threads=1)


def quantized(network: Network) -> Network:
    context = Context(images(network.shape), capabilities=litert.capabilities())
    return Quantize().run(FoldBatchNorm().run(network), context)


def check(module: nn.Module, shape: tuple[int, ...], folder: Path, *, integer: bool = True) -> Session:
    """Compare a network in float and in integers; with `integer`, all of it must run in integers."""
    network = capture(randomize(module), shape)
    x = images(shape, seed=5)[0]
    assert sqnr_db(network(x).detach(), torch.from_numpy(session(network, folder).run(x.numpy()))) > FLOAT_DB
    whole = quantized(network)
    opened = session(whole, folder)
    assert sqnr_db(whole(x).detach(), torch.from_numpy(opened.run(x.numpy()))) > ROUNDED_DB
    if integer:
        assert {run.executed for run in opened.layer_runs(x.numpy())} == {"int8"}
    return opened


PLANE, VOLUME = (4, 12, 10), (3, 8, 6, 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, 2, 1),
        nn.Conv2d(4, 6, (3, 5), (1, 2), (0, 2)),
        nn.Conv2d(4, 6, 3, padding="same", dilation=2),
        nn.Conv2d(4, 6, 4, padding=1),
        nn.Conv2d(4, 8, 3, padding=1, groups=4),
        nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False),
        nn.Conv2d(4, 6, 7, 2, 3),
        nn.ConvTranspose2d(4, 6, 2, 2),
        nn.ConvTranspose2d(4, 6, 3, 2, 1, 1),
        nn.ConvTranspose2d(4, 6, (4, 3), (2, 1), (1, 0), bias=False),
    ],
)
def test_layers_over_images(layer: nn.Module, tmp_path: Path):
    check(nn.Sequential(layer, nn.ReLU(), nn.Conv2d(layer.out_channels, 3, 1)), PLANE, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(3, 5, 3, padding=1),
        nn.Conv3d(3, 5, 3, 2, 1),
        nn.Conv3d(3, 5, (1, 3, 3), padding=(0, 1, 1)),
        nn.Conv3d(3, 5, (5, 3, 1), (2, 1, 1), (2, 0, 0)),
        nn.Conv3d(3, 5, 3, padding=2, dilation=2),
        nn.ConvTranspose3d(3, 5, 2, 2),
        nn.ConvTranspose3d(3, 5, 3, 2, 1, 1),
        nn.ConvTranspose3d(3, 5, 3, 2, 1),
        nn.ConvTranspose3d(3, 5, 4, 2, 1),
        nn.ConvTranspose3d(3, 5, 3, 1, 1),
        nn.ConvTranspose3d(3, 5, (1, 2, 2), (1, 2, 2)),
    ],
)
def test_layers_over_volumes_are_layers_over_slices(layer: nn.Module, tmp_path: Path):
    opened = check(nn.Sequential(layer, nn.LeakyReLU(0.1), nn.Conv3d(layer.out_channels, 2, 1)), VOLUME, tmp_path)
    codes = {run.op for run in opened.layer_runs(images(VOLUME)[0].numpy())}
    assert not codes & {"CONV_3D", "CONV_3D_TRANSPOSE"}


def test_rows(tmp_path: Path):
    module = nn.Sequential(nn.Conv1d(3, 6, 5, 2, 2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(6, 4, 3, padding=1))
    network, x = capture(randomize(module), (3, 32)), torch.randn(1, 3, 32)
    whole = Quantize().run(FoldBatchNorm().run(network), Context([x], capabilities=litert.capabilities()))
    for one, least in ((network, FLOAT_DB), (whole, ROUNDED_DB)):
        assert sqnr_db(one(x).detach(), torch.from_numpy(session(one, tmp_path).run(x.numpy()))) > least


@pytest.mark.parametrize(
    "function",
    [
        lambda x, one, other: one(x) + other(x),
        lambda x, one, other: F.relu(one(x) - other(x)),
        lambda x, one, other: one(x) * torch.sigmoid(other(x).mean((2, 3), keepdim=True)),
        lambda x, one, other: torch.cat([one(x), F.relu6(other(x))], 1),
        lambda x, one, other: F.max_pool2d(one(x), 2) + F.avg_pool2d(other(x), 2),
        lambda x, one, other: F.max_pool2d(one(x), 3, 2, 1),
        lambda x, one, other: F.interpolate(one(x), scale_factor=2, mode="nearest"),
        lambda x, one, other: F.interpolate(one(x), scale_factor=2, mode="bilinear"),
        lambda x, one, other: F.interpolate(one(x), size=(24, 20), mode="bilinear", align_corners=True),
        lambda x, one, other: F.silu(one(x)) + F.hardswish(other(x)),
        lambda x, one, other: torch.tanh(one(x)) * F.elu(other(x)),
        lambda x, one, other: F.pad(one(x), (1, 0, 2, 1)),
        lambda x, one, other: one(x)[:, :, 2:8, 1::2],
        lambda x, one, other: F.pixel_shuffle(one(x), 2),
        lambda x, one, other: F.adaptive_avg_pool2d(one(x), 1).flatten(1),
        lambda x, one, other: F.adaptive_avg_pool2d(one(x), (3, 5)),
        lambda x, one, other: one(x).flatten(2).transpose(1, 2),
        lambda x, one, other: F.softmax(one(x), 1),
        lambda x, one, other: one(x) * 0.5 + 1.0,
        lambda x, one, other: torch.clamp(one(x), min=0.0) + F.hardtanh(other(x)),
    ],
)
def test_operators_run_in_integers(function, tmp_path: Path):
    module = Of(function, nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 8, 1))
    check(module, PLANE, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "function",
    [
        lambda x, one, other: F.max_pool3d(one(x), 2),
        lambda x, one, other: F.max_pool3d(one(x), 3, 2, 1),
        lambda x, one, other: F.avg_pool3d(one(x), 2),
        lambda x, one, other: F.interpolate(one(x), scale_factor=2, mode="nearest"),
        lambda x, one, other: F.interpolate(one(x), scale_factor=2, mode="trilinear"),
        lambda x, one, other: torch.cat([one(x), other(x)], 1),
        lambda x, one, other: one(x).mean((2, 3, 4)),
    ],
)
def test_operators_on_volumes_run_in_integers(function, tmp_path: Path):
    check(Of(function, nn.Conv3d(3, 8, 3, padding=1), nn.Conv3d(3, 8, 1)), VOLUME, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "function",
    [
        lambda x, one, other: F.instance_norm(one(x)),
        lambda x, one, other: F.group_norm(one(x), 2),
        lambda x, one, other: F.layer_norm(one(x).flatten(2).transpose(1, 2), (8,)),
        lambda x, one, other: F.hardsigmoid(one(x)),
        lambda x, one, other: one(x).flatten(2).transpose(1, 2) @ other(x).flatten(2),
        lambda x, one, other: torch.sqrt(torch.exp(one(x)) / 2),
        lambda x, one, other: torch.maximum(*one(x).chunk(2, 1)),
        lambda x, one, other: one(x)[:, 1],
    ],
)
def test_others_run_in_float_between(function, tmp_path: Path):
    check(Of(function, nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 8, 1)), PLANE, tmp_path, integer=False)


def test_inputs_and_outputs_are_integers_with_their_channels_last(tmp_path: Path):
    opened = session(quantized(captured("unet2d")), tmp_path)
    runner = opened._runner.get_signature_runner()
    assert {name: (d["dtype"], tuple(d["shape"])) for name, d in runner.get_input_details().items()} == {
        "input": (np.int8, (1, 16, 16, 3))
    }
    assert {name: (d["dtype"], tuple(d["shape"])) for name, d in runner.get_output_details().items()} == {
        "output": (np.int8, (1, 16, 16, 2))
    }


def test_no_transpose_is_left_in_a_network_of_convolutions(tmp_path: Path):
    opened = session(quantized(captured("unet2d")), tmp_path)
    assert "TRANSPOSE" not in {run.op for run in opened.layer_runs(images((3, 16, 16))[0].numpy())}


def test_what_is_rounded_to_another_grid_is_rounded_exactly(tmp_path: Path):
    """Values whose grids differ meet in a concatenation: what one of them loses there is what the graph says."""
    module = Of(lambda x, one, other: torch.cat([one(x), 0.3 * other(x)], 1), nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 1))
    whole = quantized(capture(randomize(module), PLANE))
    ladder = Ladder(whole, litert, threads=1)
    for x in images(PLANE, seed=5):
        ladder.climb(x.numpy())
    assert max(rung["own_mean"] for rung in ladder.rungs()) < 0.02


def test_the_file_shrinks_to_a_quarter(tmp_path: Path):
    network = capture(randomize(nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))), (3, 16, 16))
    sizes = [litert.export(one, tmp_path).stat().st_size for one in (network, quantized(network))]
    assert sizes[0] > 3.5 * sizes[1]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x, one: torch.cumsum(one(x), 1), "the operator cumsum has no form"),
        (lambda x, one: F.pad(one(x), (1, 1, 1, 1), mode="reflect"), "no form in TensorFlow Lite"),
        (lambda x, one: F.adaptive_avg_pool2d(one(x), 5), "windows of several sizes"),
        (lambda x, one: F.softmax(one(x), 2), "neither the channels nor the last"),
    ],
)
def test_what_has_no_form_is_named(function, reason: str, tmp_path: Path):
    network = capture(randomize(Of(function, nn.Conv2d(4, 8, 3, padding=1))), PLANE)
    with pytest.raises(TargetError, match=reason):
        litert.export(network, tmp_path)


def test_a_layer_without_a_form_is_named(tmp_path: Path):
    module = nn.Sequential(nn.Conv3d(4, 8, 3, padding=1, groups=2))
    with pytest.raises(TargetError, match=r"a grouped 3-D convolution has no form in TensorFlow Lite \(layer 0\)"):
        litert.export(capture(randomize(module), (4, 4, 4, 4)), tmp_path)


def test_other_widths_are_refused(tmp_path: Path):
    network = captured("unet2d")
    context = Context(images(network.shape), capabilities=litert.capabilities())
    narrow = Quantize(activation_bits=4).run(FoldBatchNorm().run(network), context)
    with pytest.raises(TargetError, match="an activation of 4 bits has no form"):
        litert.export(narrow, tmp_path)


def test_narrow_weights_lie_in_eight_bits(tmp_path: Path):
    network = captured("unet2d")
    context = Context(images(network.shape), capabilities=litert.capabilities())
    narrow = Quantize(weight_bits=4).run(FoldBatchNorm().run(network), context)
    x = images(network.shape, seed=5)[0]
    assert sqnr_db(narrow(x).detach(), torch.from_numpy(session(narrow, tmp_path).run(x.numpy()))) > ROUNDED_DB


def test_files_that_are_damaged_or_of_others_are_refused(tmp_path: Path):
    path = litert.export(captured("unet2d"), tmp_path)
    content = path.read_bytes()
    for wrong, reason in (
        (content[: len(content) // 2], "damaged|cannot|can read"),
        (b"\x00" * 64, "no TensorFlow Lite file"),
        (content.replace(b"microtome", b"somebody_"), "not written by microtome"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(ReadError, match=reason):
            litert.open_session(path)
