"""Each operator against ONNX's own reference evaluator, at several opsets."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx_files import model, node, weights

from microtome.models.foreign.module import Graphed
from microtome.models.foreign.patterns import put_together
from microtome.models.foreign.steps import read_graph

WAY = "coordinate_transformation_mode"
CLOSE = 2e-5  # of values around 1


def ints(*values):
    return np.array(values, np.int64)


def floats(*values):
    return np.array(values, np.float32)


CASES = {
    "conv same": ([node("Conv", ["x", "w"], "y", auto_pad="SAME_UPPER", strides=[2, 2])], {"w": weights(4, 3, 3, 3)}),
    "conv uneven": ([node("Conv", ["x", "w"], "y", pads=[0, 0, 1, 1])], {"w": weights(4, 3, 3, 3)}),
    "conv groups": ([node("Conv", ["x", "w"], "y", group=3, dilations=[2, 2])], {"w": weights(6, 1, 3, 3)}),
    "transposed": (
        [node("ConvTranspose", ["x", "w"], "y", strides=[2, 2], pads=[0, 0, 1, 1])],
        {"w": weights(3, 4, 3, 3)},
    ),
    "transposed more": (
        [node("ConvTranspose", ["x", "w"], "y", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])],
        {"w": weights(3, 4, 3, 3)},
    ),
    "max pool": ([node("MaxPool", ["x"], "y", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])], {}),
    "mean pool": ([node("AveragePool", ["x"], "y", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])], {}),
    "global pool": ([node("GlobalAveragePool", ["x"], "y")], {}),
    "batch norm": (
        [node("BatchNormalization", ["x", "s", "b", "m", "v"], "y", epsilon=1e-3)],
        {"s": weights(3), "b": weights(3, seed=1), "m": weights(3, seed=2), "v": floats(1, 2, 3)},
    ),
    "instance norm": (
        [node("InstanceNormalization", ["x", "s", "b"], "y")],
        {"s": weights(3), "b": weights(3, seed=1)},
    ),
    "layer norm": (
        [node("LayerNormalization", ["x", "s", "b"], "y")],
        {"s": weights(8), "b": weights(8, seed=1)},
    ),
    "prelu": ([node("PRelu", ["x", "s"], "y")], {"s": weights(3, 1, 1)}),
    "prelu last": ([node("PRelu", ["x", "s"], "y")], {"s": weights(8)}),
    "leaky": ([node("LeakyRelu", ["x"], "y", alpha=0.2)], {}),
    "hard sigmoid": ([node("HardSigmoid", ["x"], "y", alpha=0.2, beta=0.5)], {}),
    "hard swish": ([node("HardSwish", ["x"], "y")], {}),
    "clip": ([node("Clip", ["x", "l", "h"], "y")], {"l": np.float32(-0.5), "h": np.float32(0.5)}),
    "clip low": ([node("Clip", ["x", "l"], "y")], {"l": np.float32(-0.5)}),
    "where": ([node("Greater", ["x", "t"], "c"), node("Where", ["c", "x", "t"], "y")], {"t": np.float32(0.1)}),
    "gather": ([node("Gather", ["x", "i"], "y", axis=1)], {"i": ints(2, 0)}),
    "gather one": ([node("Gather", ["x", "i"], "y", axis=2)], {"i": np.array(-1)}),
    "slice": (
        [node("Slice", ["x", "s", "e", "a", "t"], "y")],
        {"s": ints(1, 0), "e": ints(-1, 8), "a": ints(2, 3), "t": ints(1, 2)},
    ),
    "split": (
        [node("Split", ["x", "n"], ["a", "b"], axis=2), node("Concat", ["b", "a"], "y", axis=1)],
        {"n": ints(4, 4)},
    ),
    "pad": ([node("Pad", ["x", "p", "v"], "y")], {"p": ints(0, 0, 1, 2, 0, 0, 0, 3), "v": np.float32(2)}),
    "pad reflected": ([node("Pad", ["x", "p"], "y", mode="reflect")], {"p": ints(0, 0, 1, 2, 0, 0, 0, 3)}),
    "depth to space": (
        [node("Conv", ["x", "w"], "c"), node("DepthToSpace", ["c"], "y", blocksize=2)],
        {"w": weights(8, 3, 1, 1)},
    ),
    "space to depth": ([node("SpaceToDepth", ["x"], "y", blocksize=2)], {}),
    "reduced": ([node("ReduceMean", ["x", "a"], "y", keepdims=0)], {"a": ints(2, 3)}),
    "reduced l2": ([node("ReduceL2", ["x", "a"], "y")], {"a": ints(1)}),
    "arg max": ([node("ArgMax", ["x"], "a", axis=1), node("Cast", ["a"], "y", to=1)], {}),
    "einsum": ([node("Einsum", ["x", "w"], "y", equation="nchw,kc->nkhw")], {"w": weights(5, 3)}),
    "gemm": (
        [node("Flatten", ["x"], "f"), node("Gemm", ["f", "w", "b"], "y", alpha=0.5, beta=2.0)],
        {"w": weights(192, 5), "b": weights(5)},
    ),
    "linear": ([node("MatMul", ["x", "w"], "m"), node("Add", ["m", "b"], "y")], {"w": weights(8, 5), "b": weights(5)}),
    "sizes": (
        [
            node("Shape", ["x"], "s"),
            node("Slice", ["s", "k", "l"], "t"),
            node("Concat", ["t", "r"], "u", axis=0),
            node("Reshape", ["x", "u"], "y"),
        ],
        {"k": ints(0), "l": ints(2), "r": ints(-1)},
    ),
    "expand": ([node("Expand", ["x", "s"], "y")], {"s": ints(2, 1, 1, 1, 1)}),
    "tile": ([node("Tile", ["x", "s"], "y")], {"s": ints(1, 2, 1, 3)}),
    "nearest": (
        [node("Resize", ["x", "", "f"], "y", mode="nearest", nearest_mode="floor", **{WAY: "asymmetric"})],
        {"f": floats(1, 1, 2, 2)},
    ),
    "nearest half": ([node("Resize", ["x", "", "", "n"], "y", mode="nearest")], {"n": ints(1, 3, 5, 20)}),
    "linear half": ([node("Resize", ["x", "", "f"], "y", mode="linear")], {"f": floats(1, 1, 2, 3)}),
    "linear corners": (
        [node("Resize", ["x", "", "", "n"], "y", mode="linear", **{WAY: "align_corners"})],
        {"n": ints(1, 3, 12, 5)},
    ),
    "linear asymmetric": (
        [node("Resize", ["x", "", "f"], "y", mode="linear", **{WAY: "asymmetric"})],
        {"f": floats(1, 1, 2, 2)},
    ),
    "trilu": ([node("Trilu", ["x"], "y", upper=0)], {}),
    "cumulated": ([node("CumSum", ["x", "a"], "y")], {"a": np.array(2)}),
    "largest": ([node("TopK", ["x", "k"], ["y", "i"], axis=3)], {"k": ints(3)}),
    "turned around": (
        [
            node("Transpose", ["x"], "t", perm=[0, 2, 3, 1]),
            node("Mul", ["t", "s"], "u"),
            node("ReduceMax", ["u", "a"], "r"),
            node("Sub", ["u", "r"], "y"),
        ],
        {"s": weights(3), "a": ints(1)},
    ),
}
OLD = {
    "unsqueeze": (11, [node("Unsqueeze", ["x"], "u", axes=[1]), node("Squeeze", ["u"], "y", axes=[1])], {}),
    "reduced": (11, [node("ReduceSum", ["x"], "y", axes=[1], keepdims=1)], {}),
    "split": (
        11,
        [node("Split", ["x"], ["a", "b"], axis=2, split=[2, 6]), node("Concat", ["b", "a"], "y", axis=2)],
        {},
    ),
    "upsample": (9, [node("Upsample", ["x", "f"], "y", mode="nearest")], {"f": floats(1, 1, 2, 2)}),
    "clip": (7, [node("Clip", ["x"], "y", min=0.0, max=6.0)], {}),
}


def outputs(made):
    x = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    wanted = ReferenceEvaluator(made).run(["y"], {"x": x})[0]
    module = Graphed(put_together(read_graph(made)))
    with torch.no_grad():
        found = module(torch.from_numpy(x))["y"].numpy()
        again = module(torch.from_numpy(np.concatenate([x, 2 * x])))["y"].numpy() if wanted.shape[0] == 1 else None
    return found, wanted, again


@pytest.mark.parametrize("name", CASES)
def test_operator(name):
    nodes, constants = CASES[name]
    found, wanted, again = outputs(model(nodes, constants))
    assert found.shape == wanted.shape
    assert np.allclose(found, wanted, atol=CLOSE)
    assert again is None or name == "expand" or np.allclose(again[:1], wanted, atol=CLOSE)


@pytest.mark.parametrize("name", [name for name in OLD if name not in ("upsample",)])
def test_operator_of_an_old_opset(name):
    opset, nodes, constants = OLD[name]
    found, wanted, _ = outputs(model(nodes, constants, opset=opset))
    assert np.allclose(found, wanted, atol=CLOSE)


def test_an_old_softmax_is_over_all_axes_behind():
    module = Graphed(read_graph(model([node("Softmax", ["x"], "y", axis=1)], {}, opset=11)))
    x = torch.randn(2, 3, 4, 4)
    assert torch.allclose(module(x)["y"], x.flatten(1).softmax(1).reshape(x.shape))


def test_upsample_repeats_values():
    opset, nodes, constants = OLD["upsample"]
    module = Graphed(read_graph(model(nodes, constants, opset=opset)))
    x = torch.randn(1, 3, 2, 2)
    assert torch.equal(module(x)["y"], x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def steps(nodes, constants):
    return [step.op for step in put_together(read_graph(model(nodes, constants))).steps]


def test_what_exporters_took_apart_is_one_operator_again():
    group = [
        node("Reshape", ["x", "g"], "r"),
        node("InstanceNormalization", ["r", "one", "zero"], "i"),
        node("Shape", ["x"], "sh"),
        node("Reshape", ["i", "sh"], "back"),
        node("Mul", ["back", "s"], "m"),
        node("Add", ["m", "b"], "y"),
    ]
    trivial = {"g": ints(0, 3, -1), "one": np.ones(3, np.float32), "zero": np.zeros(3, np.float32)}
    constants = trivial | {"s": weights(3, 1, 1), "b": weights(3, 1, 1, seed=1)}
    assert [op for op in steps(group, constants) if op != "Shape"] == ["GroupNormalization"]
    gelu = [
        node("Div", ["x", "r2"], "d"),
        node("Erf", ["d"], "e"),
        node("Add", ["e", "one"], "a"),
        node("Mul", ["x", "a"], "m"),
        node("Mul", ["m", "half"], "y"),
    ]
    numbers = {"r2": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    assert steps(gelu, numbers) == ["Gelu"]
    norm = [
        node("ReduceMean", ["x"], "mean", axes=[-1]),
        node("Sub", ["x", "mean"], "c"),
        node("Pow", ["c", "two"], "p"),
        node("ReduceMean", ["p"], "v", axes=[-1]),
        node("Add", ["v", "eps"], "w"),
        node("Sqrt", ["w"], "q"),
        node("Div", ["c", "q"], "n"),
        node("Mul", ["n", "s"], "m"),
        node("Add", ["m", "b"], "y"),
    ]
    more = {"two": np.float32(2), "eps": np.float32(1e-5), "s": weights(8), "b": weights(8, seed=1)}
    made = put_together(read_graph(model(norm, more, opset=13)))
    assert [step.op for step in made.steps] == ["LayerNormalization"]
    for nodes, known, opset in ((group, constants, 18), (gelu, numbers, 18), (norm, more, 13)):
        found, wanted, _ = outputs(model(nodes, known, opset=opset))
        assert np.allclose(found, wanted, atol=CLOSE)


def test_values_that_are_repeated_along_axes_are_a_resize():
    nodes = []
    for axis, (before, after) in enumerate((("x", "h"), ("h", "y")), start=2):
        nodes += [
            node("Unsqueeze", [before, f"a{axis}"], f"u{axis}"),
            node("Expand", [f"u{axis}", f"e{axis}"], f"w{axis}"),
            node("Reshape", [f"w{axis}", f"r{axis}"], after),
        ]
    constants = {"a2": ints(3), "e2": ints(1, 1, 1, 2, 1), "r2": ints(-1, 3, 16, 8)}
    constants |= {"a3": ints(4), "e3": ints(1, 1, 1, 1, 3), "r3": ints(-1, 3, 16, 24)}
    assert steps(nodes, constants) == ["microtome.Repeat"]
    found, wanted, _ = outputs(model(nodes, constants))
    assert np.array_equal(found, wanted)


def test_a_branch_that_a_constant_decides_is_put_in_its_place():
    inner = onnx.helper.make_graph(
        [node("Relu", ["x"], "t")], "then", [], [onnx.helper.make_tensor_value_info("t", 1, None)]
    )
    other = onnx.helper.make_graph(
        [node("Neg", ["x"], "f")], "else", [], [onnx.helper.make_tensor_value_info("f", 1, None)]
    )
    nodes = [node("If", ["c"], "y", then_branch=inner, else_branch=other)]
    assert steps(nodes, {"c": np.array(True)}) == ["Relu"]
    assert steps(nodes, {"c": np.array(False)}) == ["Neg"]
