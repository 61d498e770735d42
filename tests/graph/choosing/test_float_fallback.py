import pytest
import torch

from microtome.errors import DataError, OptionError
from microtome.graph import edit
from microtome.graph.choosing.float_fallback import keep_float, skipped
from microtome.graph.network import Network
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from networks import captured, images, sqnr_db, told


def folded(name: str) -> Network:
    return FoldBatchNorm().run(captured(name))


def quantizer(network: Network, bits: int = 4):
    return lambda skip: Quantize(weight_bits=bits, skip=skip).run(network, told(images(network.shape)))


def test_the_rows_are_what_is_measured_by_hand():
    network, batches = folded("unet2d"), images((3, 16, 16))
    rows = keep_float(network, quantizer(network), batches, least_gain_db=1000.0)
    assert [row.layer for row in rows] == ["enter.0", "leave.3"]
    x = torch.cat(batches)
    everywhere = sqnr_db(network(x), quantizer(network)(frozenset())(x))
    for row in rows:
        alone = sqnr_db(network(x), quantizer(network)(frozenset({row.layer}))(x))
        assert row.sqnr_db == pytest.approx(alone, abs=1e-3)
        assert row.gain_db == pytest.approx(alone - everywhere, abs=1e-3)
    # 28 of 32 bits per weight: 16 × 3 × 3 × 3, and 2 × 16
    assert [row.extra_bytes for row in rows] == [432 * 28 // 8, 32 * 28 // 8]
    assert skipped(rows) == frozenset()


def test_the_layer_that_ruins_the_output_is_kept():
    network = folded("unet2d").copy()
    head = network.layers[-1]
    weight = network.tensor(str(head.weight.target)).clone()
    weight[:, 0] = 40 * weight.abs().max()  # an outlier that two bits cannot hold beside the others
    edit.set_constant(network.graph_module, str(head.weight.target), weight)
    batches = images(network.shape)

    def quantize(skip: frozenset[str]) -> Network:
        bits = {head.name: (2, 8)}
        return Quantize(layer_bits={} if head.name in skip else bits, skip=skip).run(network, told(batches))

    assert skipped(keep_float(network, quantize, batches)) == {head.name}
    assert skipped(keep_float(network, quantize, batches, most_bytes=10)) == frozenset()


def test_what_is_kept_counts_for_those_that_follow():
    network, batches = folded("shared2d"), images((1, 8, 8))
    names = [layer.name for layer in network.layers]
    seen = []

    def quantize(skip: frozenset[str]) -> Network:
        seen.append(skip)
        return Quantize(weight_bits=4, skip=skip).run(network, told(batches))

    rows = keep_float(network, quantize, batches, candidates=names, least_gain_db=-1000.0)
    assert seen == [frozenset(names[:count]) for count in range(len(names))]  # the last one stays quantized
    assert skipped(rows) == frozenset(names[:-1])


def test_unknown_layers_and_missing_data_are_refused():
    network = folded("shared2d")
    with pytest.raises(OptionError, match="no layer 'elsewhere'"):
        keep_float(network, quantizer(network), images((1, 8, 8)), candidates=["elsewhere"])
    with pytest.raises(DataError, match="no calibration images"):
        keep_float(network, quantizer(network), [])
