"""The operators of TensorFlow Lite in ONNX: one table."""

from __future__ import annotations

from typing import Any

import numpy as np

from microtome.errors import ModelError
from microtome.models.foreign.tflite_graph import WAY, Operator, TFLite, first, last, sizes
from microtome.models.foreign.tflite_shapes import TABLE as SHAPES

SAME = 0


def _padding(o: Any) -> str:
    return "SAME_UPPER" if o.padding == SAME else "VALID"


def _weighted(f: TFLite, x: int, weight: int, bias: int, order: list[int]) -> list[str]:
    stored = f.array(weight)
    if stored is None:
        raise ModelError(
            f"the weight {f.name(f.operator.inputs[weight])!r} is computed.", "Export the network as ONNX."
        )
    rank = len(f.shape(x))
    values = [first(f, f.value(x), rank), f.constant(f.operator.inputs[weight], stored, order, f"_{len(f.nodes)}")]
    return [*values, f.value(bias)] if f.has(bias) else values


def _conv(f: TFLite) -> None:
    o = f.settings
    inputs = _weighted(f, 0, 1, 2, [0, 3, 1, 2])
    settings = {"strides": [o.strideH, o.strideW], "dilations": [o.dilationHFactor, o.dilationWFactor]}
    groups = f.shape(0)[3] // f.shape(1)[3]
    made = f.emit("Conv", inputs, f.title("Conv"), group=groups, auto_pad=_padding(o), **settings)
    f.done(last(f, made), o.fusedActivationFunction)


def _depthwise(f: TFLite) -> None:
    o = f.settings
    inputs = _weighted(f, 0, 1, 2, [3, 0, 1, 2])
    settings = {"strides": [o.strideH, o.strideW], "dilations": [o.dilationHFactor, o.dilationWFactor]}
    made = f.emit("Conv", inputs, f.title("Conv"), group=f.shape(0)[3], auto_pad=_padding(o), **settings)
    f.done(last(f, made), o.fusedActivationFunction)


def _transpose_conv(f: TFLite) -> None:
    o = f.settings
    inputs = _weighted(f, 2, 1, 3, [3, 0, 1, 2])
    made = f.emit(
        "ConvTranspose", inputs, f.title("ConvTranspose"), strides=[o.strideH, o.strideW], auto_pad=_padding(o)
    )
    f.done(last(f, made), getattr(o, "fusedActivationFunction", 0))


def _conv_3d(f: TFLite) -> None:
    o = f.settings
    inputs = _weighted(f, 0, 1, 2, [4, 3, 0, 1, 2])
    settings = {
        "strides": [o.strideD, o.strideH, o.strideW],
        "dilations": [o.dilationDFactor, o.dilationHFactor, o.dilationWFactor],
    }
    made = f.emit("Conv", inputs, f.title("Conv"), auto_pad=_padding(o), **settings)
    f.done(last(f, made, 5), o.fusedActivationFunction)


def _pool(op: str) -> Operator:
    def run(f: TFLite) -> None:
        o = f.settings
        settings: dict[str, Any] = {"kernel_shape": [o.filterHeight, o.filterWidth], "strides": [o.strideH, o.strideW]}
        made = f.emit(op, [first(f, f.value(0))], auto_pad=_padding(o), **settings)
        f.done(last(f, made), o.fusedActivationFunction)

    return run


def _fully_connected(f: TFLite) -> None:
    stored, o = f.array(1), f.settings
    if stored is None:
        raise ModelError("a fully connected layer computes its weight.", WAY)
    x = f.value(0)
    if not o.keepNumDims:
        x = f.emit("Reshape", [x, sizes(f, [-1, f.shape(1)[1]])])
    made = f.emit(
        "MatMul", [x, f.constant(f.operator.inputs[1], stored, [1, 0], f"_{len(f.nodes)}")], f.title("MatMul")
    )
    made = f.emit("Add", [made, f.value(2)]) if f.has(2) else made
    f.done(made, o.fusedActivationFunction)


def _one(op: str, **settings: Any) -> Operator:
    return lambda f: f.done(f.emit(op, [f.value(0)], **settings))


def _two(op: str) -> Operator:
    def run(f: TFLite) -> None:
        f.done(f.emit(op, [f.value(0), f.value(1)]), getattr(f.settings, "fusedActivationFunction", 0))

    return run


def _bounded(low: float | None, high: float | None) -> Operator:
    def run(f: TFLite) -> None:
        bounds = ["" if b is None else f.store(f"bound_{b}", np.float32(b)) for b in (low, high)]
        f.done(f.emit("Clip", [f.value(0), *bounds]))

    return run


def _softmax(f: TFLite) -> None:
    x = f.value(0)
    if f.settings.beta != 1.0:
        x = f.emit("Mul", [x, f.store(f"beta_{len(f.nodes)}", np.float32(f.settings.beta))])
    f.done(f.emit("Softmax", [x], axis=-1))


def _concat(f: TFLite) -> None:
    made = f.emit("Concat", [f.value(k) for k in range(len(f.operator.inputs))], axis=int(f.settings.axis))
    f.done(made, f.settings.fusedActivationFunction)


def _reshape(f: TFLite) -> None:
    if f.has(1):
        shape = f.value(1) if f.array(1) is None else sizes(f, f.numbers(1))
    else:
        shape = sizes(f, [int(n) for n in f.settings.newShape])
    f.done(f.emit("Reshape", [f.value(0), shape]))


def _reduce(op: str) -> Operator:
    def run(f: TFLite) -> None:
        rank = len(f.shape(0))
        axes = sizes(f, [axis % rank for axis in f.numbers(1)])
        f.done(f.emit(op, [f.value(0), axes], keepdims=int(f.settings.keepDims)))

    return run


def _resize(mode: str) -> Operator:
    def run(f: TFLite) -> None:
        o, size = f.settings, f.numbers(1)
        how = "align_corners" if o.alignCorners else "half_pixel" if o.halfPixelCenters else "asymmetric"
        nearest = "floor"
        if mode == "nearest" and how == "half_pixel":
            how = "tf_half_pixel_for_nn"
        if mode == "nearest" and how == "align_corners":
            nearest = "round_prefer_ceil"
        x = first(f, f.value(0))
        whole = [n // m for n, m in zip(size, f.shape(0)[1:3], strict=True)]
        if [w * m for w, m in zip(whole, f.shape(0)[1:3], strict=True)] == size:
            inputs = [x, "", f.store(f"factors_{len(f.nodes)}", np.array([1, 1, *whole], np.float32))]
        else:
            shape = f.shape(0)
            inputs = [x, "", "", sizes(f, [1, shape[3], *size])]
        settings = {"coordinate_transformation_mode": how, "nearest_mode": nearest}
        f.done(last(f, f.emit("Resize", inputs, mode=mode, **settings)))

    return run


def _rsqrt(f: TFLite) -> None:
    f.done(f.emit("Reciprocal", [f.emit("Sqrt", [f.value(0)])]))


def _square(f: TFLite) -> None:
    f.done(f.emit("Mul", [f.value(0), f.value(0)]))


def _squared_difference(f: TFLite) -> None:
    off = f.emit("Sub", [f.value(0), f.value(1)])
    f.done(f.emit("Mul", [off, off]))


def _same(f: TFLite) -> None:
    f.done(f.value(0))


TABLE: dict[str, Operator] = {
    **SHAPES,
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transpose_conv,
    "CONV_3D": _conv_3d,
    "FULLY_CONNECTED": _fully_connected,
    "MAX_POOL_2D": _pool("MaxPool"),
    "AVERAGE_POOL_2D": _pool("AveragePool"),
    "ADD": _two("Add"),
    "SUB": _two("Sub"),
    "MUL": _two("Mul"),
    "DIV": _two("Div"),
    "MAXIMUM": _two("Max"),
    "MINIMUM": _two("Min"),
    "POW": _two("Pow"),
    "SQUARED_DIFFERENCE": _squared_difference,
    "CONCATENATION": _concat,
    "RESHAPE": _reshape,
    "SOFTMAX": _softmax,
    "LOGISTIC": _one("Sigmoid"),
    "TANH": _one("Tanh"),
    "RELU": _one("Relu"),
    "RELU6": _bounded(0.0, 6.0),
    "RELU_N1_TO_1": _bounded(-1.0, 1.0),
    "ELU": _one("Elu"),
    "HARD_SWISH": _one("HardSwish"),
    "LEAKY_RELU": lambda f: f.done(f.emit("LeakyRelu", [f.value(0)], alpha=float(f.settings.alpha))),
    "PRELU": _two("PRelu"),
    "EXP": _one("Exp"),
    "LOG": _one("Log"),
    "SQRT": _one("Sqrt"),
    "RSQRT": _rsqrt,
    "ABS": _one("Abs"),
    "NEG": _one("Neg"),
    "FLOOR": _one("Floor"),
    "SQUARE": _square,
    "MEAN": _reduce("ReduceMean"),
    "SUM": _reduce("ReduceSum"),
    "REDUCE_MAX": _reduce("ReduceMax"),
    "REDUCE_MIN": _reduce("ReduceMin"),
    "RESIZE_BILINEAR": _resize("linear"),
    "RESIZE_NEAREST_NEIGHBOR": _resize("nearest"),
    "SHAPE": _one("Shape"),
    "QUANTIZE": _same,
    "DEQUANTIZE": _same,
}
