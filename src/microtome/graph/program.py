"""From a Network to `torch.export`'s ExportedProgram, and from anybody's program to a Network."""

from __future__ import annotations

import contextlib
import functools
import io
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node

from microtome.errors import CaptureError
from microtome.graph.network import Network
from microtome.graph.operators import aten, kind
from microtome.graph.quiet import quiet

# Batch size of the example: torch.export takes sizes 0 and 1 for constants.
EXAMPLE_BATCH = 2
ONE_INPUT = "microtome compresses networks of one image tensor: wrap the module so that the others are constants."
ONE_OUTPUT = "Return the scores as a tensor (N, K, *spatial) or (N, K)."


def exported(network: Network) -> ExportedProgram:
    """Return a network's graph as an ExportedProgram, with the same dynamic axes."""
    return export_graph(network.graph_module, network.shape, network.dynamic)


def export_graph(module: nn.Module, shape: tuple[int, ...], dynamic: tuple[bool, ...]) -> ExportedProgram:
    """Run torch.export with an example of `shape`; `dynamic` has one entry per axis, the batch first."""
    _register_meta_kernels()
    parameter = next((p for p in module.parameters()), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    example = torch.zeros((EXAMPLE_BATCH if dynamic[0] else 1, *shape), device=device)
    axes = {axis: Dim.AUTO for axis, free in enumerate(dynamic) if free}
    # torch.export prints the whole graph to stderr when it fails; the exception says it in a line.
    with quiet(), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=(axes or None,))


def network_from_export(program: ExportedProgram) -> Network:
    """Wrap an ExportedProgram: one input, one output tensor, identities and guards removed.

    Raises:
        CaptureError: the program has several input tensors, or none.
    """
    graph_module = program.module()
    assert isinstance(graph_module, GraphModule)
    inputs = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    if len(inputs) != 1 or not isinstance(inputs[0].meta.get("val"), Tensor):
        raise CaptureError(
            f"the network takes {len(inputs)} inputs ({', '.join(n.name for n in inputs) or 'none'}).", ONE_INPUT
        )
    sizes = inputs[0].meta["val"].shape
    notes = tuple(_simplify(graph_module))
    return Network(
        graph_module,
        shape=tuple(_hint(size) for size in sizes[1:]),
        dynamic=tuple(not isinstance(size, int) for size in sizes),
        notes=notes,
    )


@functools.cache
def _register_meta_kernels() -> torch.library.Library:
    """Tell torch the output shapes of its fake-quantize operators, which 2.13 lacks: graphs with them export then."""
    library = torch.library.Library("aten", "IMPL", "Meta")  # type: ignore[no-untyped-call]

    def like(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)

    for name in ("fake_quantize_per_tensor_affine_cachemask", "fake_quantize_per_channel_affine_cachemask"):
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "Meta"):
            library.impl(name, like)  # type: ignore[no-untyped-call]
    return library


def _hint(size: Any) -> int:
    """Return a dimension's size in the example."""
    return size if isinstance(size, int) else int(size.node.hint)


def _simplify(graph_module: GraphModule) -> list[str]:
    """Remove guards and identities, keep one output tensor; return notes."""
    graph = graph_module.graph
    notes = []
    for node in list(graph.nodes):
        if node.op == "call_module" and "_guards_fn" in str(node.target):
            graph.erase_node(node)
        elif kind(node) == "identity" or node.target is aten.detach_.default:  # in place: cannot be exported again
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    output = next(n for n in graph.nodes if n.op == "output")
    tensors = _tensors(output.args[0])
    if len(tensors) != 1:
        notes.append(f"The network has {len(tensors)} outputs; only the first is kept.")
    if not tensors:
        raise CaptureError("the network returns no tensor.", ONE_OUTPUT)
    output.args = (tensors[0],)
    graph.set_codegen(torch.fx.graph.CodeGen())
    for node in list(reversed(graph.nodes)):  # assertions on sizes have no users but count as impure
        if not node.users and node.op == "call_function" and "assert" in str(node.target):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    graph_module.recompile()
    if hasattr(graph_module, "_guards_fn"):
        del graph_module._guards_fn
    return notes


def _tensors(value: Any) -> list[Node]:
    """Flatten an output structure into its tensor nodes, in order."""
    if isinstance(value, Node):
        return [value] if isinstance(value.meta.get("val"), Tensor) else []
    if isinstance(value, dict):
        value = list(value.values())
    return [node for item in value for node in _tensors(item)] if isinstance(value, list | tuple) else []
