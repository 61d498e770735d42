from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from microtome.core.affine import fake_quantize
from microtome.core.distillation import distillation_loss
from microtome.errors import DataError, OptionError
from microtome.graph import pt2
from microtome.graph.network import Network
from microtome.graph.operators import constant_source
from microtome.graph.quantizers import quantizers
from microtome.methods.finetune import Finetune
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from networks import EVERYTHING, captured, images, sqnr_db


def quantized(name: str = "unet2d", weight_bits: int = 3, activation_bits: int = 4) -> Network:
    network = FoldBatchNorm()(captured(name), [])
    quantize = Quantize(EVERYTHING, weight_bits=weight_bits, activation_bits=activation_bits)
    return quantize(network, images(network.shape))


def lost(network: Network, name: str = "unet2d") -> float:
    """Return how far the network is from its float parent on other images."""
    x = images(network.shape, seed=7)[0]
    return float(distillation_loss(network(x), captured(name)(x)).detach())


@pytest.mark.parametrize("ranges", ["learned", "clipped", "observed"])
def test_training_brings_the_network_closer_to_its_parent(ranges: str):
    before = quantized()
    after = Finetune(steps=80, rate=2e-2, ranges=ranges)(before, images(before.shape, count=6))
    assert lost(after) < 0.6 * lost(before)


@pytest.mark.parametrize(("weights", "values"), [("affine", 4), ("ternary", 3), ("binary", 2)])
def test_two_bit_weights_have_the_values_that_were_asked_for(weights: str, values: int):
    network = quantized(weight_bits=2, activation_bits=8)
    after = Finetune(steps=40, rate=2e-2, weights=weights)(network, images(network.shape))
    assert lost(after) < lost(network)
    for quantizer in quantizers(after):
        if quantizer.kind == "weight":
            weight = after.tensor(str(constant_source(quantizer.node).target))
            torch.testing.assert_close(fake_quantize(weight, quantizer.qparams), weight)
            axis = quantizer.qparams.qtype.axis
            for channel in weight.movedim(axis, 0):
                assert len(channel.unique()) <= values


def test_a_teacher_is_what_is_imitated():
    network = quantized()
    other = captured("concat_up2d")
    after = Finetune(steps=60, rate=3e-2, teacher=other)(network, images(network.shape))
    assert lost(after, "concat_up2d") < 0.7 * lost(network, "concat_up2d")


def test_a_loss_of_ones_own_sees_the_targets():
    network, seen = quantized(), []

    def loss(student: Tensor, teacher: Tensor, target: Tensor | None) -> Tensor:
        assert target is not None
        seen.append(target.shape)
        return nn.functional.cross_entropy(student, target)

    batches = [(x, torch.randint(0, 2, (2, 16, 16))) for x in images(network.shape)]
    Finetune(steps=4, loss=loss)(network, batches)
    assert seen == [(2, 16, 16)] * 4


def test_widths_come_down_in_steps():
    network, widths = quantized(weight_bits=3), []

    def watch(step: int, steps: int, loss: float) -> None:
        widths.append(step)

    after = Finetune(steps=8, gradual=(8, 5), watch=watch)(network, images(network.shape))
    assert widths == list(range(1, 9))
    assert {q.qparams.qtype.bits for q in quantizers(after) if q.kind == "weight"} == {3}


def test_the_best_network_by_the_tuning_loss_is_returned():
    network = quantized()
    tuning = images(network.shape, seed=3)
    # a rate at which training goes astray after its first looks
    after = Finetune(steps=40, rate=5.0, grid_rate=0.5, tuning=tuning, check_every=1)(network, images(network.shape))
    monitor = after.history[-1]["training"]["monitor"]
    assert min(monitor) < monitor[-1]
    losses = [float(distillation_loss(after(x), captured("unet2d")(x)).detach()) for x in tuning]
    assert sum(losses) / len(losses) == pytest.approx(min(monitor), rel=1e-3)


def test_training_stops_when_nothing_improves():
    network = quantized()
    settings = Finetune(steps=400, rate=5.0, grid_rate=0.5, tuning=images(network.shape), check_every=1, patience=3)
    after = settings(network, images(network.shape))
    assert len(after.history[-1]["training"]["steps"]) < 100


class Interrupted:
    """Batches that end in an interrupt."""

    def __init__(self, batches: list[Tensor], after: int) -> None:
        self.batches, self.left = batches, after

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            yield batch


@pytest.mark.parametrize("gradual", [(), (8,)])
def test_interrupted_training_goes_on_to_the_same_result(tmp_path, gradual: tuple[int, ...]):
    network, batches = quantized(), images((3, 16, 16), count=5)
    settings = {"steps": 12, "check_every": 2, "gradual": gradual, "tuning": images((3, 16, 16), seed=4)}
    whole = Finetune(**settings)(network, batches)
    checkpoint = tmp_path / "half.training"
    with pytest.raises(KeyboardInterrupt):
        Finetune(**settings, checkpoint=checkpoint)(network, Interrupted(batches, 9))
    assert checkpoint.exists()
    seen: list[int] = []
    resumed = Finetune(**settings, checkpoint=checkpoint, watch=lambda step, *_: seen.append(step))(network, batches)
    assert seen == list(range(9, 13))
    assert not checkpoint.exists()
    assert resumed.fingerprint() == whole.fingerprint()
    assert resumed.history[-1] == whole.history[-1]


def test_amp_trains_as_well():
    network = quantized()
    after = Finetune(steps=60, rate=2e-2, amp=True)(network, images(network.shape))
    assert lost(after) < 0.7 * lost(network)


def test_a_loss_that_is_not_finite_is_named():
    network = quantized()
    broken = [torch.full((2, 3, 16, 16), float("nan"))]
    with pytest.raises(DataError, match="loss is nan at step 1"):
        Finetune(steps=2)(network, broken)


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(DataError, match="no training images"):
        Finetune(steps=2)(quantized(), [])
    with pytest.raises(DataError, match="no tuning images"):
        Finetune(steps=2, tuning=[])(quantized(), images((3, 16, 16)))


@pytest.mark.parametrize("settings", [{"steps": 0}, {"gradual": (1,)}])
def test_settings_without_sense_are_refused(settings: dict):
    with pytest.raises(OptionError):
        Finetune(**settings)(quantized(), images((3, 16, 16)))


def _train_on_one_process(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    network = pt2.load(Path(folder) / "network.pt2")
    mine = [batch[rank : rank + 1] for batch in torch.load(f"{folder}/batches.pt")]
    pt2.save(Finetune(steps=5)(network, mine), Path(folder) / f"trained-{rank}.pt2")
    torch.distributed.destroy_process_group()


def test_two_processes_train_one_network(tmp_path):
    network, batches = quantized("concat_up2d"), images((3, 16, 16), count=5)
    pt2.save(network, tmp_path / "network.pt2")
    torch.save(batches, tmp_path / "batches.pt")
    torch.multiprocessing.spawn(_train_on_one_process, args=(2, str(tmp_path)), nprocs=2)
    first, second = (pt2.load(Path(tmp_path) / f"trained-{rank}.pt2") for rank in (0, 1))
    x = images((3, 16, 16), seed=8)[0]
    assert torch.equal(first(x), second(x))
    alone = Finetune(steps=5)(network, batches)
    assert sqnr_db(alone(x), first(x)) > 15  # the loss of a mean is not the mean of losses where Dice is in it
    assert sqnr_db(network(x), first(x)) < 60
