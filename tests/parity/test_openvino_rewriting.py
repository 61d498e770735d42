"""OpenVINO's output for the forms that we write for it, in float32 and in bfloat16."""

import os
import platform
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from torch import nn

from microtome import recipes
from microtome.graph.capture import capture
from microtome.graph.program import export_graph, network_from_export
from microtome.methods.base import Context
from microtome.runtimes import openvino
from microtome.types import Port
from networks import images, randomize, sqnr_db

pytestmark = pytest.mark.slow


def upsampling() -> nn.Module:
    """Concatenation, then a transposed convolution to few channels: where OpenVINO 2026.4 errs with a late padding."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv3d(2, 16, 3, padding=1), nn.Conv3d(16, 16, 3, padding=1)
            self.up, self.last = nn.ConvTranspose3d(32, 3, 3, 2, 1, 1), nn.Conv3d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a = self.first(x).relu()
            return self.last(self.up(torch.cat([a, self.second(a)], 1)).relu())

    return Net()


@pytest.mark.parametrize("recipe", ["f32", "ranges"])
def test_sub_pixel_convolution(tmp_path: Path, recipe: str):
    shape = (2, 8, 8, 8)
    network = capture(randomize(upsampling()), shape)
    batches = images(shape)
    simulated = recipes.run(recipes.read(recipe), network, Context(batches, capabilities=openvino.capabilities()))
    session = openvino.open_session(openvino.export(simulated, tmp_path), threads=1)
    x = batches[0]
    assert sqnr_db(simulated(x), torch.from_numpy(session.run(x.numpy()))) > 30
    assert "ConvolutionBackpropData" not in {run.op for run in session.layer_runs(x.numpy())}


@pytest.mark.parametrize("cpu", ["AVX2_VNNI", "AVX512_CORE_VNNI"])
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names of x86 instructions")
def test_cpus_without_tiles_compute_the_same(cpu: str):
    """What a lesser CPU computes, of those that multiply integers without overflow: this one pretends to be it."""
    script = """
import sys, tempfile, torch
from pathlib import Path
from microtome import recipes
from microtome.graph.capture import capture
from microtome.methods.base import Context
from microtome.runtimes import openvino
from networks import images, randomize, sqnr_db
from parity.test_openvino_rewriting import upsampling

shape = (2, 8, 8, 8)
batches = images(shape)
context = Context(batches, capabilities=openvino.capabilities())
simulated = recipes.run(recipes.read("ranges"), capture(randomize(upsampling()), shape), context)
path = openvino.export(simulated, Path(tempfile.mkdtemp()))
output = openvino.open_session(path, threads=1).run(batches[0].numpy())
print(sqnr_db(simulated(batches[0]), torch.from_numpy(output)))
"""
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": cpu, "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) > 30


@pytest.mark.parametrize("dims", [2, 3])
def test_convolutions_pad_for_themselves(tmp_path: Path, dims: int):
    conv, up = (nn.Conv2d, nn.ConvTranspose2d) if dims == 2 else (nn.Conv3d, nn.ConvTranspose3d)
    module = nn.Sequential(conv(1, 16, 3, 2, 1), nn.ReLU(), conv(16, 16, 3, padding=1), up(16, 3, 3, 2, 1, 1))
    shape = (1, *[12] * dims)
    batches = [x + 0.5 for x in images(shape)]  # a zero is not in the middle of the grid
    context = Context(batches, capabilities=openvino.capabilities())
    simulated = recipes.run(recipes.read("ranges"), capture(randomize(module), shape), context)
    session = openvino.open_session(openvino.export(simulated, tmp_path), threads=1)
    assert "Pad" not in {run.op for run in session.layer_runs(batches[0].numpy())}
    x = torch.randn(1, 1, *range(13, 13 + dims))  # blocks of the image are not full at its end
    assert sqnr_db(simulated(x), torch.from_numpy(session.run(x.numpy()))) > 40


def test_padding_before_a_layer_that_pads_by_itself_is_kept(tmp_path: Path):
    module = nn.Sequential(nn.ConstantPad2d((0, 1, 2, 0), 0.0), nn.Conv2d(2, 8, 3, padding="same"))
    shape = (2, 10, 12)
    network = capture(randomize(module), shape)
    context = Context(images(shape), capabilities=openvino.capabilities())
    for recipe, least in (("f32", 80), ("ranges", 40)):
        simulated = recipes.run(recipes.read(recipe), network, context)
        x = images(shape)[0]
        output = openvino.open_session(openvino.export(simulated, tmp_path), threads=1).run(x.numpy())
        assert sqnr_db(simulated(x), torch.from_numpy(output)) > least


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_statistics_of_norms_stay_precise_in_bfloat16(tmp_path: Path, offset: float):
    shape = (2, 16, 16, 16)
    module = randomize(
        nn.Sequential(nn.Conv3d(2, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv3d(16, 2, 1))
    )
    with torch.no_grad():
        deviation = module[0](images(shape)[0]).std()
        module[0].bias += offset * deviation  # the mean of each channel lies so many deviations from zero
    network = capture(module, shape)
    path = openvino.export(network, tmp_path)
    x = images(shape)[0]
    expected = network(x)
    for precision, least in (("f32", 60), ("bf16", 27)):
        output = openvino.open_session(path, threads=1, precision=precision).run(x.numpy())
        assert sqnr_db(expected, torch.from_numpy(output)) > least
    runs = openvino.open_session(path, threads=1).layer_runs(x.numpy())
    assert "MVN" not in {run.op for run in runs}


def test_attention_in_shifted_windows_is_one_kernel(tmp_path: Path):
    module = pytest.importorskip("monai.networks.nets.swin_unetr")
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 2, 1)
            settings = {"dim": 16, "depth": 2, "num_heads": 2, "window_size": (4, 4), "drop_path": [0.0, 0.0]}
            self.blocks = module.BasicLayer(**settings, downsample=None)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.blocks(self.stem(x)))

    port = Port("input", (1, 16, 16), (True, False, False, False))
    network = network_from_export(export_graph(Net().eval(), [port]))
    session = openvino.open_session(openvino.export(network, tmp_path), threads=1, precision="bf16")
    x = images((1, 16, 16))[0]
    assert sqnr_db(network(x), torch.from_numpy(session.run(x.numpy()))) > 27
    assert "Softmax" not in {run.op for run in session.layer_runs(x.numpy())}


class NarrowUNet(nn.Module):
    """Eight channels at full size, a pooling, a transposed convolution, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.deep, self.up = nn.Conv2d(8, 16, 3, padding=1), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.last, self.leave = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.second(self.first(x).relu()).relu()
        b = self.deep(nn.functional.max_pool2d(a, 2)).relu()
        return self.leave(self.last(torch.cat([self.up(b), a], 1)).relu())


def test_columns_side_by_side_cost_no_reorder(tmp_path: Path):
    shape = (3, 32, 32)
    batches = images(shape)
    simulated = recipes.run(
        recipes.read("ranges"),
        capture(randomize(NarrowUNet()), shape),
        Context(batches, capabilities=openvino.capabilities()),
    )
    session = openvino.open_session(openvino.export(simulated, tmp_path), threads=1)
    for x in (batches[0], torch.randn(1, 3, 32, 48)):
        assert sqnr_db(simulated(x), torch.from_numpy(session.run(x.numpy()))) > 40
    runs = session.layer_runs(batches[0].numpy())
    layers = [run for run in runs if run.op in ("Convolution", "ConvolutionBackpropData", "Deconvolution")]
    assert len(layers) == 7  # the one that read the concatenation is two
    assert {run.executed for run in layers} == {"int8"}
    assert not {"Transpose", "Concatenation"} & {run.op for run in runs if run.latency_ms}


class Cascade(nn.Module):
    """A map of one value per pixel, and a second look at the image beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 1, 3, padding=1), nn.Conv2d(4, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.cat([x, self.first(x).sigmoid()], 1))


def test_an_image_and_a_map_are_joined_by_rows(tmp_path: Path):
    shape = (3, 32, 32)
    batches = images(shape)
    simulated = recipes.run(
        recipes.read("ranges"),
        capture(randomize(Cascade()), shape),
        Context(batches, capabilities=openvino.capabilities()),
    )
    path = openvino.export(simulated, tmp_path)
    session = openvino.open_session(path, threads=1)
    for x in (batches[0], torch.randn(2, 3, 31, 45)):
        assert sqnr_db(simulated(x), torch.from_numpy(session.run(x.numpy()))) > 40
    (joined,) = [
        layer
        for layer in ET.parse(path).getroot().iter("layer")
        if layer.get("type") == "Concat" and not _is_shape(layer)
    ]
    assert all(len(port.findall("dim")) == 3 for port in joined.iterfind("input/port"))


def _is_shape(layer: ET.Element) -> bool:
    """Whether a layer computes with sizes."""
    return layer.find("output/port").get("precision") == "I64"
