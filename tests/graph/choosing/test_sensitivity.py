import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from microtome.core.distillation import divergence
from microtome.errors import DataError, OptionError
from microtome.graph.capture import capture
from microtome.graph.choosing.sensitivity import Sensitivity, measure
from microtome.graph.network import Network
from microtome.graph.watching.fisher import fisher_gradients
from microtome.graph.watching.replay import without_mutation
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from networks import EVERYTHING, REAL, captured, images, randomize, sqnr_db, told

SUMS = 1e-4  # float32 sums of another order, and of batches instead of all images


def folded(name: str) -> Network:
    return FoldBatchNorm().run(captured(name))


def alone(network: Network, row: Sensitivity, batches: list[Tensor]) -> Network:
    """Return the network with only that layer quantized, by the method itself."""
    others = {layer.name for layer in network.layers} - {row.layer}
    return Quantize(skip=frozenset(others), layer_bits={row.layer: row.bits}).run(network, told(batches))


@pytest.mark.parametrize("name", REAL)
def test_weights_alone_lose_what_the_quantized_network_loses(name: str):
    network, batches = folded(name), images(captured(name).shape)
    x = torch.cat(batches)
    for row in measure(network, EVERYTHING, batches, widths=[(3, None)]):
        actual, expected = alone(network, row, batches)(x).detach(), network(x).detach()
        assert row.sqnr_db == pytest.approx(sqnr_db(expected, actual), abs=0.01)
        assert row.loss == pytest.approx(float(divergence(actual, expected)), rel=0.01, abs=1e-6)


def test_inputs_lose_what_the_quantized_network_loses():
    network, batches = folded("transformer"), images(captured("transformer").shape)
    x = torch.cat(batches)
    for row in measure(network, EVERYTHING, batches, widths=[(None, 4), (4, 3)]):
        actual, expected = alone(network, row, batches)(x).detach(), network(x).detach()
        assert row.sqnr_db == pytest.approx(sqnr_db(expected, actual), abs=0.01)


def test_rows_are_layers_in_order_times_widths_with_their_costs():
    network, batches = folded("unet2d"), images(captured("unet2d").shape)
    table = measure(network, EVERYTHING, batches, widths=[(8, 8), (2, 8)], skip=frozenset({"up"}))
    names = [layer.name for layer in network.layers if layer.name != "up"]
    assert [(row.layer, row.bits) for row in table] == [(n, b) for n in names for b in [(8, 8), (2, 8)]]
    assert (table[0].weights, table[0].macs) == (3 * 16 * 9, 16 * 16 * 3 * 16 * 9)


@pytest.mark.parametrize("objective", ["kl", "sqnr", "fisher"])
def test_fewer_bits_lose_more(objective: str):
    network, batches = folded("unet2d"), images(captured("unet2d").shape)
    table = measure(network, EVERYTHING, batches, widths=[(8, 8), (4, 8), (2, 8)], objective=objective)
    for eight, four, two in zip(table[::3], table[1::3], table[2::3], strict=True):
        assert 0 <= eight.loss < four.loss < two.loss


def test_float_loses_nothing():
    network, batches = folded("dense2d"), images(captured("dense2d").shape)
    for row in measure(network, EVERYTHING, batches, widths=[(None, None)]):
        assert (row.loss, row.sqnr_db) == (0, math.inf)


def test_the_noise_ratio_is_the_sqnr():
    network, batches = folded("unet2d"), images(captured("unet2d").shape)
    for row in measure(network, EVERYTHING, batches, widths=[(4, 8)], objective="sqnr"):
        assert -10 * math.log10(row.loss) == pytest.approx(row.sqnr_db)


def test_batches_of_other_sizes_give_the_same():
    network, batches = folded("unet2d"), images(captured("unet2d").shape)
    one = measure(network, EVERYTHING, batches, widths=[(4, None)])
    other = measure(network, EVERYTHING, [torch.cat(batches[:2]), batches[2]], widths=[(4, None)])
    for a, b in zip(one, other, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=SUMS)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_the_fisher_diagonal_is_the_hessians(sigmoid: bool):
    """Against the Hessian of the divergence itself, by automatic differentiation."""
    layer = randomize(nn.Conv2d(2, 3, 2))
    network = without_mutation(capture(layer, (2, 3, 3)))
    x = images((2, 3, 3))[0]
    node = network.layers[0].node
    given, of_input, of_weight = fisher_gradients(network, [node], x, sigmoid=sigmoid, probes=3000, seed=0)[node]
    teacher = layer(x).detach()

    def of_weights(weight: Tensor) -> Tensor:
        output = torch.nn.functional.conv2d(x, weight, layer.bias)
        return divergence(output, teacher, sigmoid=sigmoid)

    def of_inputs(value: Tensor) -> Tensor:
        return divergence(layer(value), teacher, sigmoid=sigmoid)

    assert torch.equal(given, x)
    for function, at, estimate in ((of_weights, layer.weight.detach(), of_weight), (of_inputs, x, of_input)):
        hessian = torch.autograd.functional.hessian(function, at).reshape(at.numel(), -1)
        exact = hessian.diagonal().reshape(at.shape)
        assert float((estimate - exact).abs().max()) < 0.15 * float(exact.max())  # 3000 probes: 1/√1500 per entry
        assert float(estimate.sum()) == pytest.approx(float(exact.sum()), rel=0.03)


def test_the_fisher_estimate_is_near_the_divergence_that_was_run():
    network, batches = folded("unet2d"), images(captured("unet2d").shape, count=4)
    widths = [(6, None), (None, 6)]
    run = measure(network, EVERYTHING, batches, widths=widths)
    estimated = measure(network, EVERYTHING, batches, widths=widths, objective="fisher")
    for one, other in zip(run, estimated, strict=True):
        assert other.sqnr_db is None
        assert one.loss / 4 < other.loss < one.loss * 4


def test_the_same_data_give_the_same_table():
    network, batches = folded("unet2d"), images(captured("unet2d").shape)
    tables = [measure(network, EVERYTHING, batches, widths=[(4, 8)], objective="fisher") for _ in range(2)]
    assert tables[0] == tables[1]


def test_the_network_passed_is_not_changed():
    network, batches = folded("unet2d"), images(captured("unet2d").shape)
    before = network.fingerprint()
    for objective in ("kl", "fisher"):
        measure(network, EVERYTHING, batches, widths=[(4, 8)], objective=objective)
    assert network.fingerprint() == before


@pytest.mark.parametrize("objective", ["kl", "fisher"])
def test_what_cannot_be_measured_is_refused(objective: str):
    network, batches = folded("unet2d"), images(captured("unet2d").shape)
    for widths in ([(4, 8)], [(4, None)]):
        with pytest.raises(DataError, match="no calibration images"):
            measure(network, EVERYTHING, [], widths=widths, objective=objective)
        with pytest.raises(DataError, match="NaN or infinite"):
            measure(network, EVERYTHING, [batches[0] * float("nan")], widths=widths, objective=objective)
    with pytest.raises(OptionError, match="already quantized"):
        measure(replace(network, state=network.state | {"quantized"}), EVERYTHING, batches)
    with pytest.raises(OptionError, match="no objective 'mse'"):
        measure(network, EVERYTHING, batches, objective="mse")
    with pytest.raises(OptionError, match="no widths"):
        measure(network, EVERYTHING, batches, widths=[])
    with pytest.raises(OptionError, match="no pair of widths"):
        measure(network, EVERYTHING, batches, widths=[(1, 8)])
