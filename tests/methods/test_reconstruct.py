import tempfile
from collections.abc import Callable

import pytest
import torch

from microtome.core.affine import fake_quantize
from microtome.errors import DataError, OptionError
from microtome.graph.network import Network
from microtome.graph.operators import constant_source
from microtome.graph.quantizers import quantizers
from microtome.methods.adaround import AdaRound
from microtome.methods.base import Context, Method
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.methods.reconstruct import Reconstruct
from networks import captured, images, sqnr_db, told

pytestmark = pytest.mark.slow

METHODS: dict[str, Callable[..., Method]] = {"adaround": AdaRound, "reconstruct": Reconstruct}
both = pytest.mark.parametrize("method", METHODS)


def quantized(name: str, weight_bits: int = 3, activation_bits: int = 8) -> Network:
    network = FoldBatchNorm().run(captured(name))
    quantize = Quantize(weight_bits=weight_bits, activation_bits=activation_bits)
    return quantize.run(network, told(images(network.shape, count=8)))


def sqnr(name: str, network: Network) -> float:
    batches = images(network.shape, seed=9, count=4)
    return sqnr_db(torch.cat([captured(name)(x) for x in batches]), torch.cat([network(x) for x in batches]))


@both
@pytest.mark.parametrize(("name", "gain"), [("unet2d", 0.5), pytest.param("residual3d", 1.0, marks=pytest.mark.slow)])
def test_the_output_comes_closer_to_float_than_by_rounding_to_nearest(method: str, name: str, gain: float):
    before = quantized(name)
    after = METHODS[method](steps=200).run(before, told(images(before.shape, count=8)))
    assert sqnr(name, after) > sqnr(name, before) + gain


@both
def test_each_weight_is_one_of_its_two_neighbours_on_the_grid(method: str):
    before = quantized("unet2d")
    after = METHODS[method](steps=20).run(before, told(images(before.shape)))
    changed = 0
    for old, new in zip(quantizers(before), quantizers(after), strict=True):
        if old.kind != "weight":
            continue
        real = before.tensor(str(constant_source(old.node).target))
        weight = after.tensor(str(constant_source(new.node).target))
        torch.testing.assert_close(fake_quantize(weight, new.qparams), weight)
        assert torch.equal(old.qparams.scale, new.qparams.scale)
        step = old.qparams.scale.reshape([-1 if d == old.qparams.qtype.axis else 1 for d in range(real.ndim)])
        inside = fake_quantize(real, old.qparams).sub(real).abs() <= step / 2 + 1e-6  # what is clipped stays clipped
        assert bool(((weight - real).abs() <= step * 1.0001)[inside].all())
        changed += int((weight != fake_quantize(real, old.qparams)).sum())
    assert changed > 0


def test_adaround_leaves_activation_grids_and_reconstruction_learns_them():
    before = quantized("unet2d", activation_bits=4)
    grids = [q.qparams.scale for q in quantizers(before) if q.kind == "activation"]

    def moved(after: Network) -> bool:
        return any(
            not torch.isclose(old, q.qparams.scale, rtol=1e-5)
            for old, q in zip(grids, (q for q in quantizers(after) if q.kind == "activation"), strict=True)
        )

    assert not moved(AdaRound(steps=10).run(before, Context(images(before.shape))))
    assert moved(Reconstruct(steps=10).run(before, Context(images(before.shape))))


@both
def test_nothing_stays_on_the_disk(method: str, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = quantized("concat_up2d")
    METHODS[method](steps=2).run(before, told(images(before.shape)))
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="NaN or infinite"):
        METHODS[method](steps=2).run(before, told([torch.full((1, 3, 16, 16), float("nan"))]))
    assert not list(tmp_path.iterdir())


@both
def test_one_image_is_enough_and_none_is_not(method: str):
    before = quantized("concat_up2d")
    assert "rounded" in METHODS[method](steps=2).run(before, told(images(before.shape)[:1])).state
    with pytest.raises(DataError, match="no calibration images"):
        METHODS[method](steps=2).run(before)


@both
@pytest.mark.parametrize("settings", [{"steps": 0}, {"samples": 0}])
def test_settings_without_sense_are_refused(method: str, settings: dict):
    with pytest.raises(OptionError, match="at least one step"):
        METHODS[method](**settings)


def test_weights_that_stay_in_float_are_no_hindrance():
    network = FoldBatchNorm().run(captured("unet2d"))
    before = Quantize(weight_bits=None, activation_bits=4).run(network, told(images(network.shape)))
    after = Reconstruct(steps=5).run(before, Context(images(network.shape)))
    assert bool(torch.isfinite(after(images(network.shape)[0])).all())


@pytest.mark.parametrize("settings", [{"joint": -1}, {"drop": 1.0}, {"layers": 0}])
def test_blocks_without_sense_are_refused(settings: dict):
    with pytest.raises(OptionError, match="at least one step, sample and layer"):
        Reconstruct(**settings).run(quantized("concat_up2d"), Context(images((3, 16, 16))))


def test_blocks_can_be_joined_and_weighed():
    before = quantized("residual3d")
    batches = images(before.shape, count=8)
    plain, joint, fisher = (
        sqnr("residual3d", Reconstruct(steps=60, layers=2, rate=0.1, **settings).run(before, Context(batches)))
        for settings in ({}, {"joint": 1}, {"fisher": True})
    )
    assert min(plain, joint, fisher) > sqnr("residual3d", before)
    assert len({plain, joint, fisher}) == 3
