"""From a Network to an ONNX file with QuantizeLinear / DequantizeLinear pairs and integer weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from microtome.core.affine import fake_quantize
from microtome.errors import MissingExtraError, TargetError
from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import WEIGHTED, constant_source, kind
from microtome.graph.program import exported
from microtome.graph.quantizers import quantizers
from microtome.graph.quiet import first_line, quiet
from microtome.runtimes.onnx_dynamic import fold_dynamic_ranges
from microtome.runtimes.onnx_int4 import store_in_4_bits
from microtome.runtimes.onnx_names import name_dims, name_ports

OPSET = 21
STORED_BITS = 8
WEIGHTED_KINDS = frozenset(WEIGHTED.values())


def export_onnx(network: Network, path: Path, *, zero_points: bool = True) -> None:
    """Write the network as ONNX; quantized weights are stored as integers, layers keep their names.

    Inputs and outputs have the network's names, `input` and `output` where there is one of each; float32. Free sizes
    are named too, see `onnx_names`.

    Args:
        network: with quantizers or without.
        path: the file to write.
        zero_points: write zero points that are zero too: ONNX Runtime has no integer Gemm without. OpenVINO takes a
            weight with an explicit one for asymmetric, and floats it.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        TargetError: an operator has no ONNX form; the error names it.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
        import torch
    except ImportError as error:
        raise MissingExtraError("ONNX export", "onnxruntime") from error
    network = in_containers(network)
    program = exported(network)
    try:
        with quiet():
            written = torch.onnx.export(
                program,
                opset_version=OPSET,
                custom_translation_table=_translations(),
                dynamo=True,
                optimize=True,
                verbose=False,
            )
    except Exception as error:
        raise TargetError(
            f"the network cannot be written as ONNX{_where(network, error)}: {_cause(error)}.",
            "Replace that operator in the model, or choose the target `reference`.",
        ) from error
    assert written is not None
    model = written.model_proto
    _name_layers(model, network, program)
    name_ports(model, [port.name for port in network.inputs], [port.name for port in network.outputs])
    name_dims(model)
    fold_dynamic_ranges(model)
    _fold_weights(model)
    if all(q.kind == "weight" for q in quantizers(network)):
        store_in_4_bits(model)
    if not zero_points:
        _drop_zero_zero_points(model)
    del model.metadata_props[:]
    for node in model.graph.node:  # the exporter stores source lines of the user's machine
        del node.metadata_props[:]
        node.doc_string = ""
    for value in model.graph.value_info:
        del value.metadata_props[:]
    model.producer_name = "microtome"
    onnx.save(model, str(path))


def in_containers(network: Network) -> Network:
    """Return the network with each weight on a grid that runtimes have kernels for.

    Fewer than 8 bits are rounded now and then lie in 8-bit integers with the same scale; more become float, rounded.
    """
    if all(q.qparams.qtype.bits == STORED_BITS for q in quantizers(network) if q.kind == "weight"):
        return network
    network = network.copy()
    for quantizer in [q for q in quantizers(network) if q.kind == "weight"]:
        qparams = quantizer.qparams
        if qparams.qtype.bits == STORED_BITS:
            continue
        source = constant_source(quantizer.node)
        assert source is not None
        rounded = fake_quantize(network.tensor(str(source.target)), qparams)
        edit.own_constant(network.graph_module, quantizer.node, 0, rounded)
        if qparams.qtype.bits < STORED_BITS:
            stored = replace(qparams.qtype, bits=STORED_BITS, narrow=True)
            edit.set_grid(network.graph_module, quantizer.node, replace(qparams, qtype=stored))
        else:
            quantizer.node.replace_all_uses_with(quantizer.node.args[0])  # type: ignore[arg-type]
    edit.finish(network.graph_module)
    return network


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return how quantizer nodes become QuantizeLinear / DequantizeLinear pairs: the exporter's own knows 8 bits only.

    Narrower grids live in 8-bit integers behind a Clip, those of 9 to 15 bits in 16-bit ones; the narrow signed grid
    of weights (-127 to 127) needs none, since its scale is such that -128 never comes up.
    """
    import onnx_ir as ir
    import torch
    from onnxscript import opset21 as op

    from microtome.graph.rewriting.column_operators import BLOCKS, TO_CHANNELS, TO_COLUMNS

    def pair(x: Any, scale: Any, zero_point: Any, axis: int | None, limits: tuple[int, int]) -> Any:
        settings = {} if axis is None else {"axis": axis}
        full = limits in ((0, 255), (-128, 127), (-127, 127), (0, 65535), (-32768, 32767))
        if not full and axis is not None:
            raise NotImplementedError(f"a grid of {limits} per channel has no ONNX form")
        if not full:
            low, high = ((limit - zero_point) * scale for limit in limits)
            x = op.Clip(x, op.Constant(value_float=low), op.Constant(value_float=high))
        if axis is None:
            wide = limits[1] > 255 or limits[0] < -128
            dtype = (np.uint16 if wide else np.uint8) if limits[0] >= 0 else (np.int16 if wide else np.int8)
            scale = op.Constant(value=ir.tensor(np.array(scale, np.float32)))
            zero_point = op.Constant(value=ir.tensor(np.array(zero_point, dtype)))
        else:
            zero_point = op.Cast(zero_point, to=ir.DataType.UINT8 if limits[0] >= 0 else ir.DataType.INT8)
        integers = op.QuantizeLinear(x, scale, zero_point, **settings)
        return op.DequantizeLinear(integers, scale, zero_point, **settings)

    def per_tensor(x: Any, scale: float, zero_point: int, quant_min: int, quant_max: int) -> Any:
        return pair(x, scale, zero_point, None, (quant_min, quant_max))

    def per_channel(x: Any, scale: Any, zero_point: Any, axis: int, quant_min: int, quant_max: int) -> Any:
        return pair(x, scale, zero_point, axis, (quant_min, quant_max))

    def to_columns(x: Any, columns: int, width: Any) -> Any:
        return reshaped(x, x.shape[1] // columns)

    def to_channels(x: Any, columns: int, width: Any) -> Any:
        return reshaped(x, x.shape[1] * columns)

    def reshaped(x: Any, channels: int) -> Any:
        rank = len(x.shape)
        last = op.Transpose(x, perm=[0, *range(2, rank), 1])
        sizes = np.array([*[0] * (rank - 2), -1, channels], np.int64)  # 0: as it is
        split = op.Reshape(last, op.Constant(value=ir.tensor(sizes)))
        return op.Transpose(split, perm=[0, rank - 1, *range(1, rank - 1)])

    def blocks(x: Any, stride: int, sizes: Any) -> Any:
        rank, dims = len(x.shape), len(x.shape) - 2
        space = op.Slice(op.Shape(x), ints(2), ints(rank))
        missing = op.Mod(op.Neg(space), ints(stride))
        whole = op.Pad(x, op.Concat(ints(*[0] * (rank + 2)), missing, axis=0))
        small = op.Div(op.Add(space, ints(stride - 1)), ints(stride))
        parts = [part for k in range(dims) for part in (op.Slice(small, ints(k), ints(k + 1)), ints(stride))]
        split = op.Reshape(whole, op.Concat(ints(0, x.shape[1]), *parts, axis=0))
        turned = op.Transpose(split, perm=[0, 1, *range(3, rank + dims, 2), *range(2, rank + dims, 2)])
        return op.Reshape(turned, op.Concat(ints(0, x.shape[1] * stride**dims), small, axis=0))

    def ints(*values: int) -> Any:
        return op.Constant(value=ir.tensor(np.array(values, np.int64)))

    aten = torch.ops.aten
    return {
        BLOCKS: blocks,
        TO_CHANNELS: to_channels,
        TO_COLUMNS: to_columns,
        aten.fake_quantize_per_tensor_affine.default: per_tensor,
        aten.fake_quantize_per_channel_affine.default: per_channel,
    }


def _cause(error: BaseException) -> str:
    """Return the innermost cause's first line: the exporter wraps the operator's name several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    operator = re.search(r"op='([\w.]+)'", str(error))
    return f"the operator {operator.group(1)} has no ONNX form" if operator else first_line(error)


def _where(network: Network, error: BaseException) -> str:
    """Return ` (layer NAME)` of the node whose operator the exporter complains about; empty if it cannot be found."""
    while error.__cause__ is not None:
        error = error.__cause__
    operator = re.search(r"op='\w+\.(\w+)'", str(error))
    name = operator.group(1) if operator else None
    for node in network.graph_module.graph.nodes:
        if name and node.op == "call_function" and name in str(node.target):
            modules = list((node.meta.get("nn_module_stack") or {}).values())
            return f" (layer {modules[-1][0] or node.name})" if modules else f" (layer {node.name})"
    return ""


def _fold_weights(model: onnx.ModelProto) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Replace float weight → QuantizeLinear by an integer initializer, so that the file shrinks."""
    from onnx import numpy_helper

    graph = model.graph
    tensors = {t.name: t for t in graph.initializer}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    for node in [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] in tensors]:
        weight = numpy_helper.to_array(tensors[node.input[0]])
        scale = numpy_helper.to_array(tensors[node.input[1]])
        zero = numpy_helper.to_array(tensors[node.input[2]])
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        shape = [1] * weight.ndim
        if scale.ndim:
            shape[axis] = -1
        limits = np.iinfo(zero.dtype)
        integers = np.rint(weight / scale.reshape(shape)) + zero.reshape(shape).astype(np.float32)
        integers = integers.clip(limits.min, limits.max).astype(zero.dtype)
        graph.initializer.append(numpy_helper.from_array(integers, node.output[0]))
        graph.node.remove(node)
        readers[node.input[0]] -= 1
        if not readers[node.input[0]]:
            graph.initializer.remove(tensors[node.input[0]])


def _drop_zero_zero_points(model: onnx.ModelProto) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Leave out the zero points of DequantizeLinear that are zero, as the default of ONNX says."""
    from onnx import numpy_helper

    tensors = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        optional = node.op_type == "DequantizeLinear" and len(node.input) == 3 and node.input[2] in tensors
        if optional and not numpy_helper.to_array(tensors[node.input[2]]).any():
            del node.input[2]
    used = {name for node in model.graph.node for name in node.input}
    for name, tensor in tensors.items():
        if name not in used:
            model.graph.initializer.remove(tensor)


def _name_layers(model: onnx.ModelProto, network: Network, program: Any) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Give the nodes that run layers the layers' names, so that runtimes report by these.

    The exporter notes the graph node that each ONNX node comes from; where it rewrote that node (transposed
    convolutions), the weight's name tells.
    """
    captured = [node for node in program.graph.nodes if kind(node) in WEIGHTED_KINDS and _is_layer(node)]
    by_origin = {node.name: layer.name for node, layer in zip(captured, network.layers, strict=True)}
    by_weight = {str(layer.weight.target): layer.name for layer in network.layers}
    producers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
            continue
        origin = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.fx_node"), "")
        weight = node.input[1]
        while weight in producers:
            weight = producers[weight].input[0]
        node.name = by_origin.get(origin.split(" ")[0].lstrip("%")) or by_weight.get(weight) or node.name


def _is_layer(node: Any) -> bool:
    """Whether the weight of a node of the exported program is a constant, behind quantizers or not."""
    weight = node.args[1]
    while kind(weight) == "quantizer":
        weight = weight.args[0]
    return bool(weight.op == "placeholder")
