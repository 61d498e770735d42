"""Several inputs and outputs by name, through capture, methods and files."""

from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from torch import nn

from microtome.errors import CaptureError, DataError
from microtome.graph import program, pt2
from microtome.graph.capture import CAPTURE_TOLERANCE, capture
from microtome.graph.quiet import quiet
from microtome.graph.structure.blocks import blocks, run_block
from microtome.graph.watching.macs import layer_sizes
from microtome.graph.watching.observe import Observed
from microtome.graph.watching.replay import Replay, without_mutation
from microtome.types import Port
from networks import captured, randomize
from networks_with_ports import KEPT, SHAPES, Prompted, batches, prompted

Pair = namedtuple("Pair", "scores aux")


class Outputs(nn.Module):
    """Returns two values in the structure that `form` makes."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x):
        return self.form(x + 1, x * 2)


class Difference(nn.Module):
    def __init__(self, flip):
        super().__init__()
        self.flip = flip

    def forward(self, image, prompt):
        return prompt - image if self.flip else image - prompt


def test_ports_say_names_shapes_and_what_is_free():
    network = prompted()
    assert network.inputs == (
        Port("image", (1, 8, 8), (True, False, True, True)),
        Port("prompt", (3,), (True, False)),
    )
    assert network.outputs == (
        Port("scores", (2, 16, 16), (True, False, True, True)),
        Port("relu", (4, 8, 8), (True, False, True, True)),
        Port("mean", (2,), (True, False)),
    )
    assert (network.shape, network.dynamic) == (network.inputs[0].shape, network.inputs[0].dynamic)


def test_one_tensor_is_the_case_of_one():
    network = captured("unet2d")
    assert [port.name for port in (*network.inputs, *network.outputs)] == ["input", "output"]
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(network(x), network({"input": x}))
        assert torch.equal(network(x), network.run(x)["output"])


def test_the_graph_computes_what_the_module_does_also_for_other_sizes():
    module, (given,) = randomize(Prompted()), batches(1, size=3, side=(12, 10))
    with torch.no_grad():
        expected, actual = module(**given), prompted().run(given)
        first = prompted()(given)
    assert list(actual) == list(KEPT)
    for name, value in actual.items():
        torch.testing.assert_close(value, expected[name], rtol=CAPTURE_TOLERANCE, atol=1e-6)
    assert torch.equal(first, actual["scores"])


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (lambda a, b: (a, b), ["output", "output_1"]),
        (lambda a, b: [a, (None, b)], ["output", "output_2"]),
        (lambda a, b: {"scores": a, "deep": [b]}, ["scores", "deep.0"]),
        (Pair, ["scores", "aux"]),
        (lambda a, b: {"scores": a, "input": b}, ["scores", "input_1"]),  # the input has that name
    ],
)
def test_outputs_are_called_as_the_module_calls_them(form, names):
    network = capture(Outputs(form), (1, 8, 8), keep=names)
    assert [port.name for port in network.outputs] == names
    x = torch.randn(1, 1, 8, 8)
    assert torch.equal(network.run(x)[names[0]], x + 1)
    assert torch.equal(network.run(x)[names[1]], x * 2)


def test_outputs_come_in_the_order_wanted_and_what_no_output_needs_is_gone():
    both = capture(Outputs(Pair), (1, 8, 8), keep=("aux", "scores"))
    assert [port.name for port in both.outputs] == ["aux", "scores"]
    network = capture(randomize(Prompted()), SHAPES, keep=["relu"])
    assert [layer.name for layer in network.layers] == ["enter"]
    assert network.notes == ()
    (given,) = batches(1)
    with torch.no_grad():
        assert torch.equal(network(given), prompted().run(given)["relu"])  # the prompt is taken, and not needed


@pytest.mark.parametrize(
    ("shapes", "keep", "problem"),
    [
        ({"image": (1, 8, 8)}, None, "takes prompt too"),
        ({**SHAPES, "mask": (1,)}, None, "has no input 'mask'"),
        (SHAPES, ["score"], r"no output 'score'"),
        (SHAPES, [], "no output of the network is to be kept"),
    ],
)
def test_names_that_the_module_does_not_have_are_refused(shapes, keep, problem):
    with pytest.raises(CaptureError, match=problem):
        capture(Prompted(), shapes, keep=keep)


def test_an_input_that_is_missing_is_named():
    (given,) = batches(1)
    for wrong in (given["image"], {"image": given["image"]}, {**given, "mask": given["image"]}):
        with pytest.raises(DataError, match="the network takes image, prompt, not image"):
            prompted()(wrong)


def test_the_fingerprint_sees_which_input_is_which_and_the_order_of_outputs():
    shapes = {"image": (1, 8, 8), "prompt": (1, 8, 8)}
    values = {capture(Difference(flip), shapes).fingerprint() for flip in (False, True)}
    values |= {
        capture(Outputs(Pair), (1, 8, 8), keep=keep).fingerprint() for keep in (Pair._fields, Pair._fields[::-1])
    }
    assert len(values) == 4


def test_a_file_keeps_ports(tmp_path):
    pt2.save(prompted(), tmp_path / "a.pt2")
    loaded = pt2.load(tmp_path / "a.pt2")
    assert (loaded.inputs, loaded.outputs) == (prompted().inputs, prompted().outputs)
    assert loaded.fingerprint() == prompted().fingerprint()
    (given,) = batches(1)
    with torch.no_grad():
        for name, value in prompted().run(given).items():
            assert torch.equal(loaded.run(given)[name], value)


def test_a_file_from_before_there_were_names_opens(tmp_path):
    network = captured("unet2d")
    metadata = {
        "shape": list(network.shape), "dynamic": list(network.dynamic), "state": ["folded"], "history": [],
        "notes": [], "formats": {},
    }  # fmt: skip
    with quiet():
        extra = {pt2.METADATA: json.dumps(metadata)}
        torch.export.save(program.exported(network), tmp_path / "a.pt2", extra_files=extra)
    loaded = pt2.load(tmp_path / "a.pt2")
    assert (loaded.inputs, loaded.outputs, loaded.state) == (network.inputs, network.outputs, {"folded"})


def test_the_watchers_take_inputs_by_name():
    network, (given,) = without_mutation(prompted()), batches(1)
    with torch.no_grad():
        expected = network(given)
        seen = {}
        Observed(network, [layer.node for layer in network.layers], lambda n, v: seen.update({n: v}))(given)
        stops = [
            (node, torch.allclose(resume(seen[node]), expected, atol=1e-5))  # kernels of two layouts
            for node, _, resume in Replay(network, [layer.node for layer in network.layers])(given)
        ]
    assert stops == [(layer.node, True) for layer in network.layers]
    assert [(size.name, size.output) for size in layer_sizes(network)] == [
        ("enter", (1, 4, 8, 8)), ("mix", (1, 4)), ("head", (1, 2, 8, 8)),
    ]  # fmt: skip


def test_blocks_run_from_all_inputs_to_the_first_output():
    network, (given,) = without_mutation(prompted()), batches(1)
    module = network.graph_module
    values = dict(zip(module.graph.find_nodes(op="placeholder"), network.arguments(given), strict=True))
    cut = blocks(module, layers=1)
    assert len(cut) > 1
    with torch.no_grad():
        for block in cut:
            values |= run_block(module, block, {node: values[node] for node in block.inputs})
        (end,) = module.graph.find_nodes(op="output")
        assert torch.equal(values[end], network(given))


def test_another_device_and_a_copy_keep_the_ports():
    assert prompted().to("cpu").outputs == prompted().copy().outputs == prompted().outputs
    wider = replace(prompted(), inputs=(Port("image", (1, 12, 12), (True,) * 4), prompted().inputs[1]))
    assert {name: tuple(value.shape) for name, value in wider.blank(2).items()} == {
        "image": (2, 1, 12, 12), "prompt": (2, 3),
    }  # fmt: skip
