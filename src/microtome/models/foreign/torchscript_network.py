"""From a TorchScript module to a captured network that was compared with it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from microtome.errors import CaptureError, MicrotomeError
from microtome.graph.capture import capture, check_finite
from microtome.graph.network import OUTPUT, Network
from microtome.graph.operators import aten
from microtome.graph.program import output_names
from microtome.graph.quiet import first_line, quiet
from microtome.models.base import Loaded, Wanted, on_device, shape_of, wish_of
from microtome.models.foreign.check import same_outputs
from microtome.models.foreign.values import Array

CONV = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
CONV_TRANSPOSE = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}
WAY_OUT = "Give the Python code that builds the network, and its weights: file.py:factory --weights FILE"


def network_of(module: Any, wanted: Wanted, *, of: str) -> Loaded:
    """Translate, capture and check a script module.

    Args:
        module: traced or scripted; it is put into evaluation mode where that is possible.
        wanted: how the model is wanted.
        of: what to call it in errors.

    Raises:
        CaptureError: it cannot be translated.
        ModelError: the outputs differ.
    """
    module = module.eval() if hasattr(module, "eval") else module
    check_finite(module.state_dict(), of)
    shape = shape_of(wanted, of=of)
    _run(module, shape, of)
    failure: Exception | None = None
    for way in (_by_converter, _by_onnx):
        try:
            plain = way(module, shape)
            network = capture(plain, shape, keep=wish_of(wanted))
            break
        except MicrotomeError as error:
            failure = failure or error
        except Exception as error:  # torch's converters raise many kinds
            failure = failure or error
    else:
        assert failure is not None
        raise CaptureError(
            f"{of} is TorchScript that torch.export cannot take: {first_line(failure)}.", WAY_OUT
        ) from failure
    said = same_outputs(network, _reference(module), _names(network), runtime="TorchScript", rounded=False)
    network = replace(network, notes=(*network.notes, said))
    return Loaded(on_device(network, wanted.device), wanted.pipeline, of, (), network.notes)


def _run(module: Any, shape: tuple[int, ...], of: str) -> None:
    try:
        with torch.no_grad(), quiet():
            module(torch.zeros((1, *shape)))
    except Exception as error:
        raise CaptureError(
            f"{of} cannot run on an input of shape {(1, *shape)}: {_last_line(error)}.",
            "Give the shape that it was made for, --input-shape C,H,W or C,D,H,W; one input is taken.",
        ) from error


def _last_line(error: BaseException) -> str:
    """Return what TorchScript's interpreter says last: that is the cause."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300].rstrip(".")


def _by_converter(module: Any, shape: tuple[int, ...]) -> nn.Module:
    """Translate the graph, as torch's own converter does."""
    from torch._export.converter import TS2EPConverter

    with torch.no_grad(), quiet():
        program = TS2EPConverter(module, (torch.zeros((2, *shape)),), {}).convert()
        graph_module = program.module(check_guards=False)
    assert isinstance(graph_module, GraphModule)
    for node in list(graph_module.graph.nodes):
        if node.op == "call_module" and "_guards_fn" in str(node.target):
            graph_module.graph.erase_node(node)
        elif node.target is aten.convolution.default:  # what traces hold; modules hold those with a number of axes
            _name_axes(node)
    return GraphModule(graph_module, graph_module.graph)  # a program's own module refuses `eval`


def _name_axes(node: Any) -> None:
    x, weight, bias, stride, padding, dilation, transposed, more, groups = node.args
    dims = len(stride) if len(stride) > 1 else node.meta["val"].ndim - 2
    if transposed:
        node.target, node.args = CONV_TRANSPOSE[dims], (x, weight, bias, stride, padding, more, groups, dilation)
    else:
        node.target, node.args = CONV[dims], (x, weight, bias, stride, padding, dilation, groups)


def _by_onnx(module: Any, shape: tuple[int, ...]) -> nn.Module:
    """Translate by way of ONNX, which torch's older exporter writes from a script module."""
    from microtome.models.foreign.onnx_network import plain_module
    from microtome.models.foreign.reading import read_onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "module.onnx"
        with torch.no_grad(), quiet():
            torch.onnx.export(
                module,
                (torch.zeros((1, *shape)),),
                str(path),
                dynamo=False,
                opset_version=17,
                input_names=["input"],
                dynamic_axes={"input": {0: "batch"}},
            )
        return plain_module(read_onnx(path)[0], (1, *shape))


def _reference(module: Any) -> Any:
    def run(given: Mapping[str, Array]) -> dict[str, Array]:
        with torch.no_grad(), quiet():
            made = module(*(torch.from_numpy(array) for array in given.values()))
        leaves = torch.utils._pytree.tree_leaves(made)
        named = zip(output_names(made, given), leaves, strict=True)
        found = {name: value.float().numpy() for name, value in named if isinstance(value, Tensor)}
        first = next(iter(found.values()))
        return {OUTPUT: first} | found

    return run


def _names(network: Network) -> dict[str, str]:
    return {port.name: port.name for port in network.outputs}
