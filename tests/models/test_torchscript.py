"""TorchScript in: traced and scripted, from files of any name and from Python."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from microtome.errors import CaptureError, OptionError, ReadError
from microtome.graph.capture import capture
from microtome.graph.quiet import quiet
from microtome.models import load_model

SHAPE = (1, 8, 8)
CLOSE = 1e-5


class Small(nn.Module):
    """A layer down and one up."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)

    def forward(self, x):
        return self.up(torch.relu(self.norm(self.down(x))))


def script(kind):
    torch.manual_seed(0)
    module = Small().eval()
    with quiet():
        return module, torch.jit.script(module) if kind == "script" else torch.jit.trace(module, torch.zeros(1, *SHAPE))


@pytest.mark.parametrize(("kind", "name"), [("script", "m.pt"), ("trace", "m.ts")])
def test_a_file_gives_the_network_that_it_was_made_from(tmp_path, kind, name):
    module, made = script(kind)
    with quiet():
        torch.jit.save(made, tmp_path / name)
    loaded = load_model(tmp_path / name, input_shape=SHAPE)
    direct, x = capture(module, SHAPE), torch.randn(3, *SHAPE)
    assert torch.allclose(loaded.network(x), direct(x), atol=CLOSE)
    assert [layer.name for layer in loaded.network.layers] == ["down", "up"]
    targets = [
        [n.target for n in g.graph_module.graph.nodes if n.op == "call_function"] for g in (loaded.network, direct)
    ]
    assert targets[0] == targets[1]
    assert any("Checked against TorchScript" in note for note in loaded.notes)
    assert loaded.files == (tmp_path / name,)


def test_a_script_module_in_python_is_taken_too():
    _, made = script("trace")
    loaded = load_model(made, input_shape=SHAPE)
    assert (loaded.title, loaded.network.outputs[0].shape) == ("Small", (2, 8, 8))


def test_what_is_wrong_is_said(tmp_path):
    _, made = script("trace")
    path = tmp_path / "m.pt"
    with quiet():
        torch.jit.save(made, path)
    with pytest.raises(OptionError, match="own weights"):
        load_model(path, weights=path, input_shape=SHAPE)
    with pytest.raises(CaptureError, match="cannot run on an input of shape"):
        load_model(path, input_shape=(3, 8, 8))
    content = bytearray(path.read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(bytes(content))
    with pytest.raises(ReadError):
        load_model(path, input_shape=SHAPE)
