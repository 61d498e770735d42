from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import networks_with_ports
from microtome.core.affine import fake_quantize
from microtome.core.distillation import distillation_loss
from microtome.core.formats import PowerOfTwo
from microtome.errors import DataError, OptionError
from microtome.graph import pt2
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.operators import constant_source, kind
from microtome.graph.quantizers import quantizers
from microtome.methods.base import Context
from microtome.methods.encode import EncodeWeights
from microtome.methods.finetune import Finetune
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.progress import Silent
from networks import NETWORKS, captured, images, randomize, sqnr_db, told
from networks_with_ports import prompted


def quantized(name: str = "unet2d", weight_bits: int = 3, activation_bits: int = 4) -> Network:
    network = FoldBatchNorm().run(captured(name))
    quantize = Quantize(weight_bits=weight_bits, activation_bits=activation_bits)
    return quantize.run(network, told(images(network.shape)))


def lost(network: Network, name: str = "unet2d") -> float:
    """Return how far the network is from its float parent on other images."""
    x = images(network.shape, seed=7)[0]
    return float(distillation_loss(network(x), captured(name)(x)).detach())


@pytest.mark.parametrize("ranges", ["learned", "clipped", "observed"])
def test_training_brings_the_network_closer_to_its_parent(ranges: str):
    before = quantized()
    after = Finetune(steps=80, rate=2e-2, ranges=ranges).run(before, Context(training=images(before.shape, count=6)))
    assert lost(after) < 0.6 * lost(before)


@pytest.mark.parametrize(("weights", "values"), [("affine", 4), ("midrise", 4), ("ternary", 3), ("binary", 2)])
def test_two_bit_weights_have_the_values_that_were_asked_for(weights: str, values: int):
    network = quantized(weight_bits=2, activation_bits=8)
    after = Finetune(steps=40, rate=2e-2, weights=weights).run(network, Context(training=images(network.shape)))
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
    after = Finetune(steps=60, rate=3e-2).run(network, Context(training=images(network.shape), teacher=other))
    assert lost(after, "concat_up2d") < 0.7 * lost(network, "concat_up2d")


def test_a_loss_of_ones_own_sees_the_targets():
    network, seen = quantized(), []

    def loss(student: Tensor, teacher: Tensor, target: Tensor | None) -> Tensor:
        assert target is not None
        seen.append(target.shape)
        return nn.functional.cross_entropy(student, target)

    batches = [(x, torch.randint(0, 2, (2, 16, 16))) for x in images(network.shape)]
    Finetune(steps=4).run(network, Context(training=batches, loss=loss))
    assert seen == [(2, 16, 16)] * 4


def test_widths_come_down_in_steps():
    network, widths = quantized(weight_bits=3), []

    class Bar(Silent):
        def track(self, items, title, total=None):
            for step in items:
                widths.append(step)
                yield step

    after = Finetune(steps=8, gradual=(8, 5)).run(network, Context(training=images(network.shape), progress=Bar()))
    assert widths == list(range(8))
    assert {q.qparams.qtype.bits for q in quantizers(after) if q.kind == "weight"} == {3}


def test_the_best_network_by_the_tuning_loss_is_returned():
    network = quantized()
    tuning = images(network.shape, seed=3)
    # a rate at which training goes astray after its first looks
    after = Finetune(steps=40, rate=5.0, grid_rate=0.5, check_every=1).run(
        network, Context(training=images(network.shape), tuning=tuning)
    )
    monitor = after.history[-1]["training"]["monitor"]
    assert min(monitor) < monitor[-1]
    losses = [float(distillation_loss(after(x), captured("unet2d")(x)).detach()) for x in tuning]
    assert sum(losses) / len(losses) == pytest.approx(min(monitor), rel=1e-3)


def test_training_stops_when_nothing_improves():
    network = quantized()
    settings = Finetune(steps=400, rate=5.0, grid_rate=0.5, check_every=1, patience=3)
    batches = images(network.shape)
    after = settings.run(network, Context(training=batches, tuning=batches))
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
    settings, tuning = {"steps": 12, "check_every": 2, "gradual": gradual}, images((3, 16, 16), seed=4)
    whole = Finetune(**settings).run(network, Context(training=batches, tuning=tuning))
    checkpoint = tmp_path / "half.training"
    with pytest.raises(KeyboardInterrupt):
        Finetune(**settings).run(
            network, Context(training=Interrupted(batches, 9), tuning=tuning, checkpoint=checkpoint)
        )
    assert checkpoint.exists()
    resumed = Finetune(**settings).run(network, Context(training=batches, tuning=tuning, checkpoint=checkpoint))
    assert not checkpoint.exists()
    assert resumed.fingerprint() == whole.fingerprint()
    assert resumed.history[-1] == whole.history[-1]


def test_a_float_network_learns_too():
    network, teacher = captured("unet2d"), capture(randomize(NETWORKS["unet2d"][0](), seed=5), (3, 16, 16))
    x = images(network.shape, seed=7)[0]

    def apart(one: Network) -> float:
        return float(distillation_loss(one(x), teacher(x)).detach())

    after = Finetune(steps=60).run(network, Context(training=images(network.shape, count=6), teacher=teacher))
    assert apart(after) < 0.7 * apart(network)
    assert after.state == {"finetuned"}
    assert not list(quantizers(after))


def test_the_best_network_by_a_score_is_returned():
    network, seen = quantized(), []

    def score(candidate: Network) -> float:
        seen.append((candidate.fingerprint(), len(seen) == 2))  # the third look is the best
        return float(seen[-1][1])

    batches = images(network.shape)
    after = Finetune(steps=5, check_every=1, watch="score").run(network, Context(training=batches, score=score))
    assert after.fingerprint() == seen[2][0]
    assert after.history[-1]["training"]["score"] == [0, 0, 1, 0, 0]
    assert len({fingerprint for fingerprint, _ in seen}) == 5


def test_weights_in_a_format_of_their_own_do_not_move():
    network = EncodeWeights(PowerOfTwo(4)).run(quantized(), told())
    with pytest.raises(OptionError, match="in the format pot4"):
        Finetune(steps=1).run(network, Context(training=images(network.shape)))


def test_amp_trains_as_well():
    network = quantized()
    after = Finetune(steps=60, rate=2e-2, amp=True).run(network, Context(training=images(network.shape)))
    assert lost(after) < 0.7 * lost(network)


def test_a_loss_that_is_not_finite_is_named():
    network = quantized()
    broken = [torch.full((2, 3, 16, 16), float("nan"))]
    with pytest.raises(DataError, match="loss is nan at step 1"):
        Finetune(steps=2).run(network, Context(training=broken))


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(DataError, match="no training images"):
        Finetune(steps=2).run(quantized(), Context(training=[]))
    with pytest.raises(OptionError, match="no training images"):
        Finetune(steps=2).run(quantized(), told(images((3, 16, 16))))
    with pytest.raises(DataError, match="no tuning images"):
        Finetune(steps=2).run(quantized(), Context(training=images((3, 16, 16)), tuning=[]))


@pytest.mark.parametrize("settings", [{"steps": 0}, {"gradual": (1,)}, {"labels": 1.5}, {"minutes": 0.0}])
def test_settings_without_sense_are_refused(settings: dict):
    with pytest.raises(OptionError):
        Finetune(**settings)


def _train_on_one_process(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    network = pt2.load(Path(folder) / "network.pt2")
    mine = [batch[rank : rank + 1] for batch in torch.load(f"{folder}/batches.pt")]
    pt2.save(Finetune(steps=5).run(network, Context(training=mine)), Path(folder) / f"trained-{rank}.pt2")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path):
    network, batches = quantized("concat_up2d"), images((3, 16, 16), count=5)
    pt2.save(network, tmp_path / "network.pt2")
    torch.save(batches, tmp_path / "batches.pt")
    torch.multiprocessing.spawn(_train_on_one_process, args=(2, str(tmp_path)), nprocs=2)
    first, second = (pt2.load(Path(tmp_path) / f"trained-{rank}.pt2") for rank in (0, 1))
    x = images((3, 16, 16), seed=8)[0]
    assert torch.equal(first(x), second(x))
    alone = Finetune(steps=5).run(network, Context(training=batches))
    assert sqnr_db(alone(x), first(x)) > 15  # the loss of a mean is not the mean of losses where Dice is in it
    assert sqnr_db(network(x), first(x)) < 60


def test_a_score_is_asked_for_only_where_it_is_watched():
    network = quantized()
    batches = images(network.shape)
    context = Context(training=batches, tuning=batches, score=lambda _: pytest.fail("scored"))
    after = Finetune(steps=2, check_every=1).run(network, context)
    assert all(value is not None for value in after.history[-1]["training"]["monitor"])
    with pytest.raises(OptionError, match="no score to watch"):
        Finetune(steps=2, watch="score").run(network, Context(training=batches))


def test_a_network_of_several_inputs_and_outputs_is_trained():
    network, batches = prompted(), networks_with_ports.batches(4)
    after = Finetune(steps=20, check_every=10).run(network, Context(training=batches, tuning=batches[:1]))
    assert after.fingerprint() != network.fingerprint()
    assert after.outputs == network.outputs
    assert len(after.history[-1]["training"]["monitor"]) == 2


def pruned(name: str = "unet2d", bits: int | None = None) -> Network:
    """Return a network whose smaller half of each weight is zero; quantized with so many bits."""
    network = FoldBatchNorm().run(captured(name)).copy()
    for layer in network.layers:
        weight = network.graph_module.get_parameter(str(layer.weight.target))
        weight.data *= weight.abs() > weight.abs().median()
    network = replace(network, state=network.state | {"sparse"})
    return network if bits is None else Quantize(weight_bits=bits).run(network, told(images(network.shape)))


def zeros(network: Network) -> list[Tensor]:
    return [network.tensor(str(layer.weight.target)) == 0 for layer in network.layers]


@pytest.mark.parametrize("bits", [None, 8, 2])
def test_zeros_stay_zero_where_the_network_is_sparse(bits: int | None):
    network = pruned(bits=bits)
    batches, weights = images(network.shape), "ternary" if bits == 2 else "affine"
    after = Finetune(steps=10, rate=3e-2, decay=0.1, weights=weights).run(network, Context(training=batches))
    assert "sparse" in after.state
    for before, now in zip(zeros(network), zeros(after), strict=True):
        assert bool(now[before].all())
        assert float(now.float().mean()) >= 0.49
    dense = replace(network, state=network.state - {"sparse"})
    moved = Finetune(steps=10, rate=3e-2).run(dense, Context(training=batches))
    assert sum(int(z.sum()) for z in zeros(moved)) < sum(int(z.sum()) for z in zeros(after))


def test_binary_weights_have_no_zero():
    network = pruned(bits=2)
    with pytest.raises(OptionError, match="binary weights have no zero"):
        Finetune(steps=2, weights="binary").run(network, Context(training=images(network.shape)))


def statistics(network: Network) -> list[Tensor]:
    found = network.constants()
    return [found[name] for name in sorted(found) if "running" in name]


@pytest.mark.parametrize(("norms", "learned"), [("auto", True), ("learned", True), ("fixed", False)])
def test_statistics_of_batch_norms_follow_where_they_are_learned(norms: str, learned: bool):
    network = captured("unet2d")
    assert len(statistics(network)) == 6
    after = Finetune(steps=3, norms=norms).run(network, Context(training=images(network.shape)))
    same = [torch.equal(a, b) for a, b in zip(statistics(network), statistics(after), strict=True)]
    assert same == [not learned] * 6


def test_statistics_of_a_quantized_network_stay_unless_that_is_asked_for():
    network = Quantize().run(replace(captured("dense2d"), state=frozenset({"folded"})), told(images((3, 16, 16))))
    batches = images(network.shape)
    for norms, learned in (("auto", False), ("learned", True)):
        after = Finetune(steps=2, norms=norms).run(network, Context(training=batches))
        same = [torch.equal(a, b) for a, b in zip(statistics(network), statistics(after), strict=True)]
        assert same == [not learned] * len(same)


def test_statistics_are_kept_with_the_best_network_and_through_an_interruption(tmp_path):
    network, batches = captured("dense2d"), images((3, 16, 16), count=5)
    settings, tuning = {"steps": 12, "check_every": 2}, images((3, 16, 16), seed=4)
    whole = Finetune(**settings).run(network, Context(training=batches, tuning=tuning))
    checkpoint = tmp_path / "half.training"
    with pytest.raises(KeyboardInterrupt):
        Finetune(**settings).run(
            network, Context(training=Interrupted(batches, 9), tuning=tuning, checkpoint=checkpoint)
        )
    resumed = Finetune(**settings).run(network, Context(training=batches, tuning=tuning, checkpoint=checkpoint))
    assert resumed.fingerprint() == whole.fingerprint()


def test_learned_statistics_heal_a_network_whose_values_have_moved():
    network = captured("dense2d").copy()
    for layer in network.layers[:-1]:
        network.graph_module.get_parameter(str(layer.weight.target)).data *= 0.3
    teacher, batches = captured("dense2d"), images(network.shape, count=6)
    losses = {}
    for norms in ("fixed", "learned"):
        after = Finetune(steps=40, rate=1e-4, norms=norms).run(network, Context(training=batches, teacher=teacher))
        losses[norms] = lost(after, "dense2d")
    assert losses["learned"] < 0.6 * losses["fixed"]


def agreement(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


def test_references_have_their_share_of_the_loss():
    network = captured("unet2d")
    batches = [(x, torch.ones(2, 16, 16, dtype=torch.int64)) for x in images(network.shape)]
    found = {}
    for labels in (0.0, 0.5, 1.0):
        context = Context(training=batches, label_loss=agreement)
        after = Finetune(steps=30, labels=labels, norms="fixed").run(network, context)
        found[labels] = float(after(batches[0][0]).softmax(1)[:, 1].mean())
    assert found[0.0] + 0.05 < found[0.5] < found[1.0]


def test_labels_without_references_are_refused():
    network = captured("unet2d")
    with pytest.raises(OptionError, match="there is no reference to train on"):
        Finetune(steps=1, labels=0.5).run(network, Context(training=images(network.shape)))


def rows_of(network: Network) -> Tensor:
    return torch.cat([network.tensor(str(layer.weight.target)).flatten(1).norm(dim=1) for layer in network.layers])


@pytest.mark.parametrize("penalty", ["l1", "group_lasso", "bn_scale"])
def test_a_penalty_draws_to_zero_what_it_counts(penalty: str):
    network, batches = captured("dense2d"), images((3, 16, 16))

    def counted(after: Network) -> float:
        weights = [after.tensor(str(layer.weight.target)) for layer in after.layers]
        if penalty == "l1":
            return sum(float(weight.abs().sum()) for weight in weights)
        if penalty == "group_lasso":
            return float(rows_of(after).sum())
        scales = {str(node.args[1].target) for node in after.graph_module.graph.nodes if kind(node) == "batch_norm"}
        assert len(scales) == 3
        return sum(float(after.tensor(name).abs().sum()) for name in scales)

    plain = Finetune(steps=20).run(network, Context(training=batches))
    drawn = Finetune(steps=20, penalty=penalty, penalty_weight=1e-2).run(network, Context(training=batches))
    assert counted(drawn) < 0.98 * counted(plain)


def test_a_penalty_of_nothing_is_refused():
    network = FoldBatchNorm().run(captured("unet2d"))
    with pytest.raises(OptionError, match="bn_scale has nothing to draw to zero"):
        Finetune(steps=1, penalty="bn_scale").run(network, Context(training=images(network.shape)))


def test_minutes_end_training():
    network = captured("unet2d")
    after = Finetune(steps=100000, minutes=0.02, check_every=100000).run(network, Context(training=images((3, 16, 16))))
    (made,) = after.history[-1]["training"]["steps"]
    assert 1 <= made < 5000
