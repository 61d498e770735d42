"""What the nodes of an ATen graph are, as data: one table from operators to kinds."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

aten = torch.ops.aten

# Operators with a weight that runtimes have integer kernels for.
WEIGHTED: dict[object, str] = {
    aten.conv1d.default: "conv",
    aten.conv2d.default: "conv",
    aten.conv3d.default: "conv",
    aten.conv1d.padding: "conv",
    aten.conv2d.padding: "conv",
    aten.conv3d.padding: "conv",
    aten.conv_transpose1d.default: "conv_transpose",
    aten.conv_transpose2d.input: "conv_transpose",
    aten.conv_transpose3d.input: "conv_transpose",
    aten.linear.default: "linear",
}

OTHERS: dict[object, str] = {
    aten.cat.default: "concat",
    aten.add.Tensor: "add",
    aten.add_.Tensor: "add",
    aten.mul.Tensor: "mul",
    aten.mul_.Tensor: "mul",
    aten.max_pool1d.default: "max_pool",
    aten.max_pool2d.default: "max_pool",
    aten.max_pool3d.default: "max_pool",
    aten.avg_pool2d.default: "avg_pool",
    aten.avg_pool3d.default: "avg_pool",
    aten.adaptive_avg_pool2d.default: "avg_pool",
    aten.adaptive_avg_pool3d.default: "avg_pool",
    aten.batch_norm.default: "batch_norm",
    aten.instance_norm.default: "instance_norm",
    aten.group_norm.default: "group_norm",
    aten.layer_norm.default: "layer_norm",
    aten.relu.default: "relu",
    aten.relu_.default: "relu",
    aten.hardtanh.default: "clamp",
    aten.hardtanh_.default: "clamp",
    aten.leaky_relu.default: "leaky_relu",
    aten.leaky_relu_.default: "leaky_relu",
    aten.prelu.default: "prelu",
    aten.elu.default: "elu",
    aten.elu_.default: "elu",
    aten.matmul.default: "matmul",
    aten.bmm.default: "matmul",
    aten.scaled_dot_product_attention.default: "attention",
    aten.pad.default: "pad",
    aten.constant_pad_nd.default: "pad",
    aten.view.default: "reshape",
    aten.reshape.default: "reshape",
    aten.flatten.using_ints: "reshape",
    aten.permute.default: "transpose",
    aten.transpose.int: "transpose",
    aten.dropout.default: "identity",
    aten.dropout_.default: "identity",
    aten.feature_dropout.default: "identity",
    aten.alpha_dropout.default: "identity",
    aten.detach.default: "identity",
    aten.alias.default: "identity",
    aten.lift_fresh_copy.default: "identity",
    aten.fake_quantize_per_tensor_affine.default: "quantizer",
    aten.fake_quantize_per_channel_affine.default: "quantizer",
}

KINDS: dict[object, str] = {**WEIGHTED, **OTHERS}


def kind(node: Node) -> str:
    """Return the kind of a node, such as `conv`; the operator's own name where the table has none."""
    if node.op != "call_function":
        return node.op
    if node.target is aten.convolution.default:
        return "conv_transpose" if node.args[6] else "conv"
    return KINDS.get(node.target) or getattr(node.target, "__name__", str(node.target)).split(".")[0]


def is_weighted(node: Node) -> bool:
    """Whether the node is a convolution, transposed convolution or linear layer whose weight is a constant."""
    return kind(node) in ("conv", "conv_transpose", "linear") and constant_source(node.args[1]) is not None


def constant_source(value: object) -> Node | None:
    """Follow quantizers back to the `get_attr` node that holds a constant; None if it is computed."""
    while isinstance(value, Node) and kind(value) == "quantizer":
        value = value.args[0]
    return value if isinstance(value, Node) and value.op == "get_attr" else None


def spatial_dims(node: Node) -> int:
    """Return 1, 2 or 3 for (transposed) convolutions, 0 for linear layers."""
    source = constant_source(node.args[1])
    assert source is not None
    shape = source.meta["val"].shape
    return 0 if kind(node) == "linear" else len(shape) - 2


def groups(node: Node) -> int:
    """Return the number of groups of a (transposed) convolution; 1 for linear layers."""
    if kind(node) == "linear":
        return 1
    # conv(x, w, b, stride, padding, dilation, groups);
    # conv_transpose(x, w, b, stride, padding, output_padding, groups);
    # convolution(x, w, b, stride, padding, dilation, transposed, output_padding, groups)
    position = 8 if node.target is aten.convolution.default else 6
    value: Any = node.args[position] if len(node.args) > position else node.kwargs.get("groups", 1)
    return int(value)


def output_axis(node: Node) -> int:
    """Return the weight's axis that counts output channels: 0; 1 for transposed convolutions (per group)."""
    return 1 if kind(node) == "conv_transpose" else 0
