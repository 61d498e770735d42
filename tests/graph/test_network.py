from dataclasses import replace

import pytest
import torch
from torch import nn

from microtome.errors import CaptureError, ModelError, ReadError
from microtome.graph import program, pt2
from microtome.graph.capture import capture
from microtome.graph.pt2 import METADATA
from microtome.graph.quiet import quiet


class Constants(nn.Module):
    """Constants made on the fly, a non-persistent buffer, keyword arguments, two outputs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.register_buffer("shift", torch.ones(1), persistent=False)

    def forward(self, x):
        y = nn.functional.interpolate(self.conv(x), scale_factor=2.0, mode="bilinear")
        y = nn.functional.pad(y, (1, 1, 1, 1), mode="reflect")
        return y * torch.tensor([1.0, 2.0]).view(1, 2, 1, 1) + self.shift, x


class Add(nn.Module):
    def __init__(self, flip):
        super().__init__()
        self.a, self.b, self.flip = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1), flip

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        return torch.sub(b, a) if self.flip else torch.sub(a, b)


class TwoInputs(nn.Module):
    def forward(self, image, prompt):
        return image + prompt


@pytest.fixture
def network():
    torch.manual_seed(0)
    return capture(Constants(), (1, 16, 16))


def test_save_and_load_keep_everything(network, tmp_path):
    marked = replace(
        network, state=frozenset({"folded"}), history=({"method": "fold", "seconds": 0.1},), notes=(*network.notes, "x")
    )
    pt2.save(marked, tmp_path / "a.pt2")
    loaded = pt2.load(tmp_path / "a.pt2")
    for name in ("shape", "dynamic", "state", "history", "notes", "parameters"):
        assert getattr(loaded, name) == getattr(marked, name), name
    x = torch.randn(2, 1, 12, 20)
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))


def test_a_loaded_network_can_be_saved_again(network, tmp_path):
    pt2.save(network, tmp_path / "a.pt2")
    pt2.save(pt2.load(tmp_path / "a.pt2"), tmp_path / "b.pt2")
    assert pt2.load(tmp_path / "b.pt2").fingerprint() == network.fingerprint()


def test_the_fingerprint_survives_saving_and_copying_but_no_changed_weight(network, tmp_path):
    pt2.save(network, tmp_path / "a.pt2")
    value = network.fingerprint()
    assert pt2.load(tmp_path / "a.pt2").fingerprint() == value
    changed = network.copy()
    assert changed.fingerprint() == value
    with torch.no_grad():
        changed.tensor("conv.weight")[1, 0, 2, 2] += 1e-6
    assert changed.fingerprint() != value
    assert network.fingerprint() == value


def test_the_fingerprint_sees_settings_and_wiring():
    torch.manual_seed(0)
    add = Add(flip=False)
    flipped = Add(flip=True)
    flipped.load_state_dict(add.state_dict())
    shape = (1, 8, 8)
    assert capture(add, shape).fingerprint() != capture(flipped, shape).fingerprint()
    assert capture(nn.MaxPool2d(2), shape).fingerprint() != capture(nn.MaxPool2d(2, 1), shape).fingerprint()


@pytest.mark.parametrize("part", [0.0, 0.3, 0.95])
def test_a_broken_file_is_a_read_error(network, tmp_path, part):
    path = tmp_path / "a.pt2"
    pt2.save(network, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ReadError, match=r"a\.pt2 is not a \.pt2 file"):
        pt2.load(path)


def test_a_missing_file_is_a_read_error(tmp_path):
    with pytest.raises(ReadError, match=r"a\.pt2 does not exist"):
        pt2.load(tmp_path / "a.pt2")


def test_anybodys_pt2_is_read(tmp_path):
    module = nn.Conv2d(1, 2, 3).eval()
    x = torch.randn(1, 1, 8, 8)
    with quiet():
        torch.export.save(torch.export.export(module, (x,)), tmp_path / "a.pt2")
    loaded = pt2.load(tmp_path / "a.pt2")
    assert loaded.dynamic == (False, False, False, False)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), module(x))


def test_anybodys_pt2_with_two_inputs_takes_them_by_name(tmp_path):
    x, y = torch.randn(2, 1, 1, 8, 8)
    with quiet():
        torch.export.save(torch.export.export(TwoInputs(), (x,), {"prompt": y}), tmp_path / "a.pt2")
    loaded = pt2.load(tmp_path / "a.pt2")
    assert [port.name for port in loaded.inputs] == ["image", "prompt"]
    assert torch.equal(loaded({"prompt": y, "image": x}), x + y)


def test_a_pt2_whose_input_is_no_tensor_is_refused(tmp_path):
    with quiet():
        torch.export.save(torch.export.export(TwoInputs(), (torch.randn(1, 1, 8, 8), 2)), tmp_path / "a.pt2")
    with pytest.raises(CaptureError, match="takes prompt, which is no tensor"):
        pt2.load(tmp_path / "a.pt2")


def test_broken_metadata_are_named(network, tmp_path):
    with quiet():
        torch.export.save(program.exported(network), tmp_path / "a.pt2", extra_files={METADATA: "{"})
    with pytest.raises(ModelError, match="broken microtome metadata"):
        pt2.load(tmp_path / "a.pt2")
