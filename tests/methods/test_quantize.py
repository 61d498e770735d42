import gc

import pytest
import torch
from torch import Tensor, nn

from microtome.core.affine import fake_quantize, real_range
from microtome.core.observers import OBSERVERS
from microtome.errors import DataError, OptionError, TargetError
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.quantizers import input_quantizer, quantizers, weight_quantizer
from microtome.methods.base import Context
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from microtome.types import Capabilities, OperatorSupport, Port, QType
from networks import REAL, captured, images, sqnr_db, told

# 8 bits keep a layer's output to about 40 dB (6 dB per bit, less the peak-to-mean ratio of what flows); the noise of up
# to six layers and a norm's gain in between leave 25.
EIGHT_BITS_DB = 25.0


def folded(name: str) -> Network:
    return FoldBatchNorm().run(captured(name))


def minmax(network: Network, batches: list[Tensor], **settings) -> Network:
    return Quantize(observer="minmax", search_weights=False, **settings).run(network, told(batches))


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("observer", OBSERVERS)
def test_eight_bits_stay_close_to_float(name: str, observer: str):
    network = folded(name)
    quantized = Quantize(observer=observer).run(network, told(images(network.shape)))
    x = images(network.shape)[0]
    assert sqnr_db(network(x), quantized(x)) > EIGHT_BITS_DB


def test_the_input_range_is_that_of_the_images():
    network, batches = folded("unet2d"), images((3, 16, 16))
    quantized = minmax(network, batches)
    grid = input_quantizer(quantized, quantized.layers[0])
    assert grid is not None
    low, high = (float(end) for end in real_range(grid))
    values = torch.stack(batches)
    # the zero point is rounded: the grid may be shifted by half a step
    assert low == pytest.approx(float(values.min()), abs=float(grid.scale) * 0.51)
    assert high == pytest.approx(float(values.max()), abs=float(grid.scale) * 0.51)


def test_values_that_share_a_site_share_a_grid_that_holds_both():
    network = folded("unet2d")
    quantized = minmax(network, images(network.shape))
    concat = next(n for n in quantized.graph_module.graph.nodes if "cat" in str(n.target))
    scales = {(q.args[1], q.args[2]) for q in concat.args[0]}
    assert len(scales) == 1


def test_an_output_has_a_range_of_its_own():
    # the conv's input spans 100, its output 1: they are two sites that the same layer names
    conv = nn.Conv2d(1, 2, 1)
    nn.init.constant_(conv.weight, 0.01)
    nn.init.zeros_(conv.bias)
    support = OperatorSupport(QType(8, signed=False, symmetric=False), QType(8, narrow=True), output=(4,))
    quantized = Quantize(observer="minmax").run(
        capture(conv, (1, 8, 8)),
        Context(
            [100 * torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))],
            capabilities=Capabilities("test", {"conv": support}),
        ),
    )
    scales = sorted(float(q.qparams.scale) for q in quantizers(quantized) if q.kind == "activation")
    assert len(scales) == 2
    assert scales[1] / scales[0] == pytest.approx(100, rel=0.02)  # 1 %: the weight 0.01 is itself on a grid


def test_weights_span_their_extremes_per_channel():
    network = folded("concat_up2d")
    quantized = minmax(network, images(network.shape))
    for layer in quantized.layers:
        weight, grid = quantized.tensor(str(layer.weight.target)), weight_quantizer(quantized, layer)
        assert grid is not None
        axis = 1 if layer.op == "conv_transpose" else 0
        assert torch.allclose(grid.scale, weight.abs().movedim(axis, 0).flatten(1).amax(1) / 127)


def test_skipped_layers_stay_in_float():
    network = folded("unet2d")
    quantized = minmax(network, images(network.shape), skip=frozenset({"leave.3"}))
    grids = {layer.name: weight_quantizer(quantized, layer) for layer in quantized.layers}
    assert [name for name, grid in grids.items() if grid is None] == ["leave.3"]


def test_an_unknown_layer_to_skip_is_refused_by_name():
    with pytest.raises(OptionError, match=r"no layer 'leave\.9'"):
        minmax(folded("unet2d"), [], skip=frozenset({"leave.9"}))


@pytest.mark.parametrize("name", ["nothing", "residual3d"])
def test_a_target_without_a_kernel_for_any_layer_is_refused(name: str):
    flat = OperatorSupport(QType(8), QType(8), spatial_dims=(2,))
    with pytest.raises(TargetError, match="integer kernels for none"):
        Quantize().run(
            captured(name), Context(images(captured(name).shape), capabilities=Capabilities("flat", {"conv": flat}))
        )


def test_skipping_everything_is_refused():
    network = folded("unet2d")
    with pytest.raises(TargetError):
        minmax(network, images(network.shape), skip=frozenset(layer.name for layer in network.layers))


@pytest.mark.parametrize("observer", OBSERVERS)
def test_an_image_that_makes_nan_is_refused_in_one_sentence(observer: str):
    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(torch.log(x))

    with pytest.raises(DataError, match=r"^a calibration image makes log NaN or infinite\. [\w ,-]+\.$"):
        Quantize(observer=observer).run(_log_network(Log()), told([-torch.ones((1, 1, 8, 8))]))


def _log_network(module: nn.Module) -> Network:
    # captured on positive images: the check of the capture compares with the module, and NaN equals nothing
    from microtome.graph.program import export_graph, network_from_export

    port = Port("input", (1, 8, 8), (True, False, False, False))
    return network_from_export(export_graph(module, [port]))


def test_no_calibration_images_are_refused():
    with pytest.raises(DataError, match="no calibration images"):
        Quantize().run(folded("unet2d"), told())


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse", "kl"])
def test_the_order_of_the_images_does_not_matter(observer: str):
    network, batches = folded("dense2d"), images((3, 16, 16), count=5)
    one = Quantize(observer=observer).run(network, told(batches))
    other = Quantize(observer=observer).run(network, told(batches[::-1]))
    assert one.fingerprint() == other.fingerprint()


def test_calibration_streams():
    """While calibration runs, the number of live tensors does not grow with the batches that it has seen."""
    network = folded("residual3d")
    held: list[int] = []

    def one_at_a_time():
        for seed in range(6):
            gc.collect()
            held.append(sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()))
            yield images(network.shape, count=1, seed=seed)[0]

    gc.freeze()  # what other tests left behind is not looked at
    try:
        Quantize().run(network, told(one_at_a_time()))
    finally:
        gc.unfreeze()
    assert len(set(held[1:])) == 1  # the first batch starts before the observers have seen anything


def test_calibration_reads_each_batch_once():
    network, seen = folded("concat_up2d"), []

    def batches():
        for x in images(network.shape):
            seen.append(x)
            yield x

    minmax(network, batches())
    assert len(seen) == 3


def test_a_weight_that_is_used_twice_is_quantized_for_each_use():
    network = folded("shared2d")
    quantized = minmax(network, images(network.shape))
    assert all(weight_quantizer(quantized, layer) is not None for layer in quantized.layers)


def weight_grids(network: Network) -> dict[str, QType]:
    return {q.name: q.qparams.qtype for q in quantizers(network) if q.kind == "weight"}


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 12, 16])
def test_weights_get_the_width_asked_for(bits: int):
    network = folded("unet2d")
    quantized = Quantize(weight_bits=bits).run(network, told(images(network.shape)))
    assert {qtype.bits for qtype in weight_grids(quantized).values()} == {bits}
    for layer in quantized.layers:
        grid = weight_quantizer(quantized, layer)
        weight = fake_quantize(quantized.tensor(str(layer.weight.target)), grid)
        for channel in weight.movedim(grid.qtype.axis, 0):
            assert len(channel.unique()) <= 2**bits


def test_more_bits_are_closer_to_float():
    network = folded("unet2d")
    x = images(network.shape)[0]
    widths = [(2, 8), (4, 8), (6, 8), (8, 8), (16, 16)]
    losses = []
    for weight, activation in widths:
        quantize = Quantize(weight_bits=weight, activation_bits=activation)
        losses.append(sqnr_db(network(x), quantize.run(network, told(images(network.shape)))(x)))
    assert losses == sorted(losses)
    assert losses[-1] > 60


@pytest.mark.parametrize(("weight", "activation"), [(None, 8), (8, None)])
def test_one_side_can_stay_in_float(weight: int | None, activation: int | None):
    network = folded("concat_up2d")
    quantized = Quantize(weight_bits=weight, activation_bits=activation).run(network, told(images(network.shape)))
    assert {q.kind for q in quantizers(quantized)} == {"weight" if activation is None else "activation"}


def test_weights_alone_need_no_images():
    quantized = Quantize(activation_bits=None).run(folded("concat_up2d"), told())
    assert len(list(quantizers(quantized))) == len(quantized.layers)


def test_the_first_and_last_layers_keep_more_bits():
    network = folded("unet2d")
    quantize = Quantize(weight_bits=4, activation_bits=4, end_bits=8)
    widths = [qtype.bits for qtype in weight_grids(quantize.run(network, told(images(network.shape)))).values()]
    assert sorted(widths) == [4, 4, 4, 8, 8]
    wider = Quantize(weight_bits=12, end_bits=8).run(network, told(images(network.shape)))
    assert {qtype.bits for qtype in weight_grids(wider).values()} == {12}


def test_single_layers_get_widths_of_their_own():
    network = folded("unet2d")
    chosen = network.layers[1].name
    quantized = Quantize(layer_bits={chosen: (3, 5)}).run(network, told(images(network.shape)))
    grids = weight_grids(quantized)
    assert grids.pop(chosen).bits == 3
    assert {qtype.bits for qtype in grids.values()} == {8}


def test_what_is_read_at_two_widths_gets_the_wider():
    network = folded("unet2d")  # the skip is read by the strided convolution and, in a concatenation, by the last ones
    first = network.layers[1].name
    quantized = Quantize(layer_bits={first: (8, 4)}).run(network, told(images(network.shape)))
    layer = next(layer for layer in quantized.layers if layer.name == first)
    assert input_quantizer(quantized, layer).qtype.bits == 8


@pytest.mark.parametrize("settings", [{"weight_bits": 1}, {"activation_bits": 0}, {"weight_bits": 17}])
def test_widths_without_a_grid_are_refused(settings: dict):
    with pytest.raises(OptionError, match="no "):
        Quantize(**settings).run(folded("unet2d"), told(images((3, 16, 16))))


def test_a_width_for_a_layer_that_is_not_there_is_refused():
    with pytest.raises(OptionError, match="no layer 'nobody'"):
        Quantize(layer_bits={"nobody": (4, 4)}).run(folded("unet2d"), told(images((3, 16, 16))))
