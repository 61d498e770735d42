import pytest

from microtome.graph.network import Network
from microtome.graph.quantizers import quantizers
from microtome.graph.structure.shared_grids import meets_others
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.quantize import Quantize
from networks import captured, images, told


def quantized(name: str) -> Network:
    network = FoldBatchNorm().run(captured(name))
    return Quantize().run(network, told(images(network.shape)))


@pytest.mark.parametrize(
    ("name", "expected"), [("unet2d", [False, True, False, True, False]), ("residual3d", [False] * 4)]
)
def test_quantizers_before_a_concatenation_meet(name: str, expected: list[bool]):
    found = [meets_others(q.node) for q in quantizers(quantized(name)) if q.kind == "activation"]
    assert found == expected


@pytest.mark.parametrize("name", ["unet2d", "concat_up2d", "residual3d", "dense2d", "transformer"])
def test_what_meets_nothing_may_have_a_grid_of_its_own(name: str):
    grids = [q for q in quantizers(quantized(name)) if q.kind == "activation"]
    meeting = [float(q.qparams.scale) for q in grids if meets_others(q.node)]
    assert len(meeting) != 1
