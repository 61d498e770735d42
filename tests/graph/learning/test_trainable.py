import pytest
import torch

from microtome.core.affine import fake_quantize
from microtome.graph import pt2
from microtome.graph.learning.learned_grids import BinaryWeight, ClippedGrid, LearnedGrid, ObservedGrid
from microtome.graph.learning.trainable import Trainable
from microtome.graph.network import Network
from microtome.graph.operators import constant_source
from microtome.graph.quantizers import quantizers
from microtome.graph.watching.observe import without_quantizers
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from networks import NETWORKS, captured, images, told

NAMES = [name for name in NETWORKS if name != "nothing"]


def quantized(name: str, **settings) -> Network:
    network = FoldBatchNorm().run(captured(name))
    return Quantize(**{"weight_bits": 4, "activation_bits": 4, **settings}).run(network, told(images(network.shape)))


def learned(network: Network) -> Trainable:
    return Trainable(network, weight=lambda q: LearnedGrid(q.qparams), activation=lambda q: LearnedGrid(q.qparams))


@pytest.mark.parametrize("name", NAMES)
def test_it_computes_what_the_network_computes(name: str):
    network = quantized(name)
    x = images(network.shape, seed=5)[0]
    torch.testing.assert_close(learned(network)(x), network(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weight", [LearnedGrid, BinaryWeight])
@pytest.mark.parametrize("activation", [LearnedGrid, ClippedGrid, ObservedGrid])
def test_training_lowers_the_loss_and_freezing_changes_nothing(name: str, weight: type, activation: type, tmp_path):
    network = quantized(name)
    x = images(network.shape)[0]
    wanted = without_quantizers(network)(x).detach()
    student = Trainable(network, weight=lambda q: weight(q.qparams), activation=lambda q: activation(q.qparams))
    optimizer = torch.optim.Adam([*student.weights(), *student.grids()], 3e-4)
    losses = []
    for _ in range(12):
        loss = (student(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[1:]) < losses[0]
    student.module.eval()
    frozen = student.freeze()
    torch.testing.assert_close(frozen(x), student(x), rtol=1e-4, atol=1e-4)
    assert frozen.fingerprint() != network.fingerprint()
    pt2.save(frozen, tmp_path / "network.pt2")
    assert torch.equal(pt2.load(tmp_path / "network.pt2")(x), frozen(x))


def test_frozen_weights_lie_on_their_grids():
    student = learned(quantized("unet2d"))
    for parameter in student.weights():
        parameter.data.add_(0.01)
    frozen = student.freeze()
    of_weights = [quantizer for quantizer in quantizers(frozen) if quantizer.kind == "weight"]
    assert len(of_weights) == len(frozen.layers)
    for quantizer in of_weights:
        weight = frozen.tensor(str(constant_source(quantizer.node).target))
        torch.testing.assert_close(fake_quantize(weight, quantizer.qparams), weight)


def test_a_quantizer_without_a_module_stays():
    network = quantized("unet2d")
    student = Trainable(network, weight=lambda q: None, activation=lambda q: LearnedGrid(q.qparams))
    assert len(student.slots) == sum(q.kind == "activation" for q in quantizers(network))
    assert [q.kind for q in quantizers(student.freeze())] == [q.kind for q in quantizers(network)]


def test_without_quantizers_is_the_float_network():
    network = FoldBatchNorm().run(captured("dense2d"))
    x = images(network.shape)[0]
    bare = without_quantizers(quantized("dense2d"))
    assert not list(quantizers(bare))
    torch.testing.assert_close(bare(x), network(x))
