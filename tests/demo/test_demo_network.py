"""The demo's network: the shipped weights fit, do their work on phantoms they never saw, and can be exported."""

from importlib import resources

import numpy as np
import pytest
import torch
from torch.export import Dim

from microtome.demo import network as demo
from microtome.demo.phantom import CLASSES, make_case
from microtome.errors import WeightsError
from microtome.medical.prepare import prepare
from microtome.types import Image

FRESH_SEEDS = range(30_000_000, 30_000_008)  # neither in training nor among its held-out phantoms
# torch.export keeps the operators in their order; another kernel may round differently.
EXPORT_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return demo.demo_network()


def dice_of_fresh_phantoms(network: torch.nn.Module) -> dict[str, float]:
    found, there, both = np.zeros((3, len(CLASSES)))
    for seed in FRESH_SEEDS:
        image, mask, _ = make_case(seed)
        x = prepare(Image(image[None]), demo.pipeline()).array
        with torch.no_grad():
            labels = network(torch.from_numpy(x)[None])[0].argmax(0).numpy()
        for label in range(len(CLASSES)):
            found[label] += np.sum(labels == label)
            there[label] += np.sum(mask == label)
            both[label] += np.sum((labels == label) & (mask == label))
    return dict(zip(CLASSES, 2 * both / (found + there), strict=True))


def test_shipped_weights_segment_fresh_phantoms(network):
    for name, value in dice_of_fresh_phantoms(network).items():
        assert value > 0.85, f"{name}: Dice {value:.3f}"


def test_weights_are_small_and_finite(network):
    assert resources.files("microtome.demo").joinpath(demo.WEIGHTS).stat().st_size < 1_000_000
    for name, value in network.state_dict().items():
        assert torch.isfinite(value).all(), name


def test_network_is_ready_to_use(network):
    assert not network.training
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert sum(p.numel() for p in network.parameters()) == 428_228


def test_two_calls_share_no_weights(network):
    other = demo.demo_network()
    with torch.no_grad():
        other.head.bias += 1
    assert not torch.equal(other.head.bias, network.head.bias)


def test_exports_with_free_batch_and_size(network):
    axes = {0: Dim("batch"), 2: 8 * Dim("rows", min=2), 3: 8 * Dim("columns", min=2)}
    program = torch.export.export(network, (torch.zeros(2, 1, 64, 96),), dynamic_shapes=(axes,))
    for shape in ((1, 1, 192, 192), (3, 1, 128, 40)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected, got = network(x), program.module()(x)
        assert got.shape == (shape[0], len(CLASSES), *shape[2:])
        assert (got - expected).abs().max() < EXPORT_TOLERANCE


def test_pipeline_fits_network_and_phantoms(network):
    declared = demo.pipeline()
    assert declared.input_shape == (1, 192, 192)
    assert declared.classes == CLASSES
    prepared = prepare(Image(make_case(0)[0][None]), declared)
    assert prepared.array.shape == (1, 192, 192)
    assert abs(prepared.array.mean()) < 1e-4
    assert network(torch.from_numpy(prepared.array)[None]).shape == (1, len(CLASSES), 192, 192)


@pytest.mark.parametrize("damage", ["missing", "truncated", "other network"])
def test_damaged_weights_are_refused(damage, tmp_path, monkeypatch):
    stored = resources.files("microtome.demo").joinpath(demo.WEIGHTS).read_bytes()
    if damage == "truncated":
        (tmp_path / demo.WEIGHTS).write_bytes(stored[:1000])
    if damage == "other network":
        (tmp_path / demo.WEIGHTS).write_bytes(stored.replace(b"head.bias", b"tail.bias"))
    monkeypatch.setattr(demo.resources, "files", lambda _: tmp_path)
    with pytest.raises(WeightsError, match="cannot be read"):
        demo.demo_network()
