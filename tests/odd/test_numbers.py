"""What a number format cannot hold: refused by the layer's name, scaled, or told; never cut off unseen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from microtome.batches.training import _halved
from microtome.core.affine import fake_quantize, qparams_from_range
from microtome.core.formats import (
    AdditivePowerOfTwo,
    Affine,
    Binary,
    Codebook,
    Format,
    Logarithmic,
    MidRise,
    Minifloat,
    PowerOfTwo,
    Ternary,
)
from microtome.core.observers import OBSERVERS, make_observer
from microtome.core.range_search import weight_qparams
from microtome.deployment.deploy import _Contender, _Timing, deploy, sqnr
from microtome.deployment.timing import Candidate
from microtome.errors import TargetError, WeightsError
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.rewriting.bias_room import room_for_biases
from microtome.methods.base import Context
from microtome.methods.encode import EncodeWeights
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.models import load_model
from microtome.runtimes import runtime
from microtome.staging import Staging
from microtome.types import QType

pytestmark = pytest.mark.slow

SHAPE = (1, 16, 16)


def net(scale: float = 1.0) -> nn.Module:
    """Two convolutions; the first is scaled and the second scaled back, so that the function stays."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))
    with torch.no_grad():
        module[0].weight *= scale
        module[2].weight /= scale
    return module


def quantized(module: nn.Module, target: str = "reference") -> Network:
    torch.manual_seed(1)
    images = [torch.randn(1, *SHAPE) for _ in range(3)]
    folded = FoldBatchNorm().run(capture(module, SHAPE))
    return Quantize().run(folded, Context(images, capabilities=runtime(target).capabilities()))


def decibels(signal: Tensor, other: Tensor) -> float:
    noise = (signal.double() - other.double()).square().sum()
    return float(10 * torch.log10(signal.double().square().sum() / noise.clamp(min=1e-300)))


# Weights that a format of a fixed range cannot hold.

FIXED = [("fp16", 65504.0), ("e4m3fn", 448.0), ("e5m2", 57344.0)]


@pytest.mark.parametrize(("kind", "largest"), FIXED)
def test_weights_beyond_a_formats_largest_are_refused_by_name(kind, largest) -> None:
    network = quantized(net(20 * largest))
    with pytest.raises(WeightsError, match=rf"cannot hold the weight of 0: \d+\.\d% of it lie beyond {largest:.6g}"):
        EncodeWeights(Minifloat(kind)).run(network, Context(capabilities=runtime("reference").capabilities()))


@pytest.mark.parametrize(("kind", "scale"), [("fp16", 1e-6), ("fp16", 1e-9), ("e4m3fn", 1e-2), ("e5m2", 1e-5)])
def test_weights_that_a_format_takes_for_zero_are_refused_by_name(kind, scale) -> None:
    network = quantized(net(scale))
    with pytest.raises(WeightsError, match=r"cannot hold the weight of 0: \d+\.\d% of it lie below"):
        EncodeWeights(Minifloat(kind)).run(network, Context(capabilities=runtime("reference").capabilities()))


@pytest.mark.parametrize(
    ("kind", "scale"), [("fp16", 1.0), ("fp16", 1e3), ("bf16", 1e-20), ("bf16", 1e20), ("e5m2", 1)]
)
def test_weights_that_a_format_holds_are_as_they_are(kind, scale) -> None:
    network = quantized(net(scale))
    encoded = EncodeWeights(Minifloat(kind)).run(network, Context(capabilities=runtime("reference").capabilities()))
    assert decibels(network.tensor("0.weight"), encoded.tensor("0.weight")) > (20 if kind == "e5m2" else 50)


@pytest.mark.parametrize("scaled", ["e4m3fn", "e5m2"])
def test_a_scale_holds_them_all(scaled) -> None:
    network = quantized(net(1e9))
    format_ = Minifloat(scaled, scaled=True)
    encoded = EncodeWeights(format_).run(network, Context(capabilities=runtime("reference").capabilities()))
    assert decibels(network.tensor("0.weight"), encoded.tensor("0.weight")) > 20


# Formats that scale lose the same at any scale.

SCALING: dict[str, Format] = {
    "int8": Affine(8),
    "int4 by search": Affine(4, search=True),
    "groups": Affine(4, group=16),
    "uint4 by search": Affine(4, symmetric=False, search=True),
    "powers of two": PowerOfTwo(4),
    "their sums": AdditivePowerOfTwo(4),
    "logarithmic": Logarithmic(4),
    "mid-rise": MidRise(),
    "ternary": Ternary(),
    "TWN": Ternary(threshold="twn"),
    "binary": Binary(),
    "codebook": Codebook(4),
    "integer codebook": Codebook(4, integer=True),
    "fp8": Minifloat("e4m3fn", scaled=True),
}
SCALES = [1e-27, 1e-24, 1e-10, 1e20, 1e37]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", SCALING)
def test_a_format_that_scales_loses_the_same_at_any_scale(name, scale) -> None:
    torch.manual_seed(0)
    values, made = torch.randn(8, 64).double(), SCALING[name]
    usual = decibels(values, made.encode(values.float(), 0).decode())
    small = (values * scale).float()
    assert decibels(small, made.encode(small, 0).decode()) == pytest.approx(usual, abs=0.6)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("observer", OBSERVERS)
def test_a_range_that_is_observed_fits_at_any_scale(observer, scale) -> None:
    torch.manual_seed(0)
    values, qtype = (torch.randn(4000).double() * scale).float(), QType(8, signed=False, symmetric=False)
    watching = make_observer(observer)
    watching.update(values)
    low, high = watching.range(qtype)
    grid = qparams_from_range(torch.tensor(low), torch.tensor(high), qtype)
    assert decibels(values, fake_quantize(values, grid)) > 35


@pytest.mark.parametrize("scale", SCALES)
def test_the_search_of_weights_is_the_same_at_any_scale(scale) -> None:
    torch.manual_seed(0)
    values, qtype = torch.randn(8, 64).double(), QType(4, narrow=True, axis=0)
    usual = fake_quantize(values.float(), weight_qparams(values.float(), qtype, search=True))
    small = (values * scale).float()
    grid = weight_qparams(small, qtype, search=True)
    assert decibels(small, fake_quantize(small, grid)) == pytest.approx(decibels(values, usual), abs=0.1)


@pytest.mark.parametrize("name", [name for name in SCALING if "codebook" not in name])  # which all channels share
def test_a_channel_that_training_has_left_with_next_to_nothing_stays_next_to_nothing(name) -> None:
    torch.manual_seed(0)
    values = torch.randn(4, 32)
    values[1] *= 1e-34
    decoded = SCALING[name].encode(values, 0).decode()
    assert float(decoded[1].abs().max()) < 1e-28


def test_a_layer_of_which_nothing_would_be_left_is_refused_by_name() -> None:
    with pytest.raises(WeightsError, match="the weight of 0 is so small"):
        quantized(net(1e-34))
    image = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 2, 3, padding=1))
    network = FoldBatchNorm().run(capture(image, SHAPE))
    tiny = [1e-33 * torch.rand(1, *SHAPE)]
    with pytest.raises(WeightsError, match="what relu returns is so small"):
        Quantize().run(network, Context(tiny, capabilities=runtime("reference").capabilities()))


def test_a_norm_that_takes_a_weight_beyond_float32_is_told_by_the_layers_name() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2))
    with torch.no_grad():
        module[0].weight *= 1e10
        module[1].weight *= 1e38
    with pytest.raises(WeightsError, match="the weight of 0 is NaN or infinite"):
        quantized(module)


# Biases beside weights that are next to nothing.


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("left", [1e-3, 1e-6, 1e-12, 1e-24, 0.0])
def test_a_bias_survives_weights_that_are_next_to_nothing(target, left, tmp_path) -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    with torch.no_grad():
        module[0].weight[0] *= left
        module[2].weight[1] *= left
        module[0].bias[0], module[2].bias[1] = 0.5, 0.7
    network = quantized(module, target)
    chosen = runtime(target)
    session = chosen.open_session(chosen.export(network, tmp_path), threads=1, precision="f32")
    x = torch.randn(1, *SHAPE)
    with torch.no_grad():
        simulated = network(x).numpy()
    assert sqnr(simulated, session.run(x.numpy())) > 45


def test_a_network_whose_biases_fit_is_left_alone() -> None:
    network = quantized(net())
    assert room_for_biases(network) is network


# Weights that a type had cut off before.


@pytest.mark.parametrize("stored", ["float16", "float32", "float64"])
def test_weights_that_were_cut_off_before_are_told(tmp_path, stored) -> None:
    module = net()
    state = module.state_dict()
    large = (state["0.weight"] * 1e6).clamp(-65504, 65504).half()
    share = float((large.abs() == 65504).double().mean())
    torch.save({**state, "0.weight": large.to(getattr(torch, stored))}, tmp_path / "w.pt")
    notes = load_model(net(), weights=tmp_path / "w.pt", input_shape=SHAPE).notes
    assert any(f"{share:.1%} of 0.weight sit at exactly 65504" in note for note in notes)


def test_a_mask_of_minus_65504_is_no_weight_that_was_cut_off() -> None:
    module = net()
    module.register_buffer("mask", torch.zeros(4, 4).fill_diagonal_(-65504.0))
    assert capture(module, SHAPE).notes == ()


def test_float64_that_float32_cannot_hold(tmp_path) -> None:
    state = {name: value.double() for name, value in net().state_dict().items()}
    state["0.weight"][0] *= 1e300
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"holds \d\.\d+e\+299 in 0\.weight: float32 ends at 3\.4e\+38"):
        load_model(net(), weights=tmp_path / "w.pt", input_shape=SHAPE)
    state["0.weight"][0] = 1e-300
    torch.save(state, tmp_path / "w.pt")
    notes = load_model(net(), weights=tmp_path / "w.pt", input_shape=SHAPE).notes
    assert any("12.5% of 0.weight are so small that they are 0 in float32" in note for note in notes)


# Images that are kept in half precision for training.

IMAGES = {
    "normalized": (lambda x: x, np.float16),
    "ADC in m²/s": (lambda x: 1e-9 * (x + 3), np.float32),
    "perfusion": (lambda x: 1e-6 * x, np.float32),
    "counts": (lambda x: 1e5 * x, np.float32),
    "contrast on an offset": (lambda x: 20_000 + 10 * x, np.float32),
    "CT": (lambda x: 500 * x, np.float16),
    "nothing": (lambda x: 0 * x, np.float16),
    "a constant": (lambda x: 0 * x + 5000, np.float16),
    "a constant that is no half": (lambda x: 0 * x + 5001.3, np.float32),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_of_training_keep_their_contrast(name) -> None:
    make, dtype = IMAGES[name]
    rng = np.random.default_rng(0)
    image = make(rng.standard_normal((1, 32, 32))).astype(np.float32)
    kept = _halved(image)
    assert kept.dtype == dtype
    assert np.sqrt(np.square(kept.astype(np.float64) - image).mean()) <= 2e-3 * image.std(dtype=np.float64) + 1e-30
    both = np.concatenate([rng.standard_normal((1, 32, 32)).astype(np.float32), image])
    assert _halved(both).dtype == dtype  # the worst channel decides


# What a runtime returns.


def test_the_ratio_of_what_is_not_finite() -> None:
    signal = np.array([1.0, 2.0, -np.inf, np.nan])
    assert sqnr(signal, signal) == 200.0
    assert sqnr(signal, np.array([1.0, np.nan, -np.inf, np.nan])) == -200.0
    assert sqnr(signal, np.array([1.0, np.inf, -np.inf, np.nan])) == -200.0
    assert sqnr(signal, np.array([1.0, 2.0, 0.0, np.nan])) == -200.0
    assert sqnr(np.array([1.0, 2.0]), np.array([1.0, 2.2])) == pytest.approx(10 * np.log10(5 / 0.04), abs=0.01)
    assert sqnr(np.array([1e200, 2e200]), np.array([1e200, 2.2e200])) == pytest.approx(
        10 * np.log10(5 / 0.04), abs=0.01
    )


class Broken:
    """A runtime that returns NaN in bf16."""

    NAME, PRECISIONS = "broken", ("f32", "bf16")

    def open_session(self, path: Path, *, threads: int, precision: str):
        class Session:
            def run(self, x):
                return x if precision == "f32" else x * np.nan

        return Session()


def test_a_precision_that_returns_nan_is_not_chosen() -> None:
    x = np.ones((1, 1, 4, 4), np.float32)

    def timed(*precisions: str) -> list[str]:
        timing = _Timing(Broken(), x, 1, Candidate("eager", "pytorch", "f32", lambda x: x))
        runs = timing.interleaved([_Contender(p, Path(), p, p, 1, x, True) for p in precisions])
        return [run["name"] for run in runs]

    assert timed("f32", "bf16") == ["eager", "f32"]
    with pytest.raises(TargetError, match="returns NaN or infinity in bf16"):
        timed("bf16")


def test_a_network_that_masks_with_infinity_is_deployed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("microtome.deployment.timing.MOST_ROUNDS", 1)

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, self.inner(x), float("-inf"))

    network = capture(Masked(), SHAPE)
    x = torch.randn(1, *SHAPE).numpy()
    place = Staging(tmp_path / "out", {}).part("reference", "targets/reference")
    deployed = deploy(network, network, runtime("reference"), x, place, title="f32")
    assert deployed.parity_db > 100
