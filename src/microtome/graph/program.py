"""From a Network to `torch.export`'s ExportedProgram, and from anybody's program to a Network."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from microtome.errors import CaptureError
from microtome.graph.network import INPUT, OUTPUT, Network
from microtome.graph.operators import aten, kind
from microtome.graph.outputs import hint, name_squeezed_axes, settled
from microtome.graph.quiet import quiet
from microtome.graph.scores import Wish, chosen
from microtome.types import Port

# Batch size of the example: torch.export takes sizes 0 and 1 for constants.
EXAMPLE_BATCH = 2


def exported(network: Network) -> ExportedProgram:
    """Return a network's graph as an ExportedProgram, with the same dynamic axes."""
    return export_graph(network.graph_module, network.inputs)


def export_graph(module: nn.Module, inputs: Sequence[Port], *, by_name: bool = False) -> ExportedProgram:
    """Run torch.export with an example of the inputs.

    Args:
        module: what to export.
        inputs: what it takes; the axes that they call dynamic are left free as far as the module allows.
        by_name: give them as keyword arguments.
    """
    _register_meta_kernels()
    parameter = next((p for p in module.parameters()), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    examples = {
        port.name: torch.zeros((EXAMPLE_BATCH if port.dynamic[0] else 1, *port.shape), device=device) for port in inputs
    }
    free = {
        port.name: {axis: Dim.AUTO for axis, dynamic in enumerate(port.dynamic) if dynamic} or None for port in inputs
    }
    args, kwargs = ((), examples) if by_name else (tuple(examples.values()), {})
    # torch.export prints the whole graph to stderr when it fails; the exception says it in a line.
    with quiet(), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
        return torch.export.export(module, args, kwargs, dynamic_shapes=free if by_name else tuple(free.values()))


def network_from_export(
    program: ExportedProgram,
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    keep: Sequence[str] | Wish | None = None,
) -> Network:
    """Wrap an ExportedProgram; identities and guards are removed.

    Args:
        program: anybody's.
        inputs: names of its input tensors, in order; None takes the program's own, or `input` where there is one.
        outputs: names of its output tensors, in order; None takes what the program calls them: the keys of a dict, the
            fields of a named tuple or dataclass; `output`, `output_1`, … where they have no names.
        keep: names of the outputs to keep, in the order wanted; or what is known of them. None keeps the one that can
            be scores, and notes what is left out; see `graph.scores`.

    Raises:
        CaptureError: the program has no input tensor, an input that is none, no output tensor, not the one to keep,
            one that is no scores, or several that may be.
    """
    graph_module = program.module()
    assert isinstance(graph_module, GraphModule)
    graph = graph_module.graph
    placeholders = graph.find_nodes(op="placeholder")
    others = [node.name for node in placeholders if not isinstance(node.meta.get("val"), Tensor)]
    if others or not placeholders:
        what = f"{', '.join(others)}, which is no tensor" if others else "no input"
        raise CaptureError(f"the network takes {what}.", "Wrap the module so that all but tensors are constants.")
    if inputs is None:
        inputs = [INPUT] if len(placeholders) == 1 else [node.name for node in placeholders]
    _simplify(graph_module)
    end = next(iter(graph.find_nodes(op="output")))
    values: Any = end.args[0] if isinstance(end.args[0], list | tuple) else [end.args[0]]
    named = zip(outputs or _output_names(program, inputs), values, strict=True)
    found = {n: v for n, v in named if isinstance(v, Node) and isinstance(v.meta.get("val"), Tensor)}
    wish, names = (keep, None) if isinstance(keep, Wish) else (Wish(), keep)
    kept, notes = chosen(found, wish, placeholders[0], names)
    first = next(iter(kept))
    kept[first], more = settled(graph, kept[first], placeholders[0])
    end.args = (tuple(kept.values()) if len(kept) > 1 else next(iter(kept.values())),)
    _finish(graph_module)
    return Network(
        graph_module,
        inputs=tuple(_port(name, node) for name, node in zip(inputs, placeholders, strict=True)),
        outputs=tuple(_port(name, node) for name, node in kept.items()),
        notes=(*notes, *more),
    )


def image_first(network: Network, name: str) -> Network:
    """Return a network with an input moved to the front, where the image is."""
    names = [port.name for port in network.inputs]
    if names[0] == name:
        return network
    network = network.copy()
    first, *others = network.graph_module.graph.find_nodes(op="placeholder")
    first.prepend(others[names.index(name) - 1])
    network.graph_module.recompile()
    chosen = network.inputs[names.index(name)]
    return replace(network, inputs=(chosen, *(port for port in network.inputs if port is not chosen)))


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


def _port(name: str, node: Node) -> Port:
    sizes = node.meta["val"].shape
    return Port(name, tuple(hint(size) for size in sizes[1:]), tuple(not isinstance(size, int) for size in sizes))


def output_names(structure: Any, taken: Iterable[str]) -> list[str]:
    """Return a name for each leaf of what a module returns, tensor or not; none is in `taken`."""
    used, names = set(taken), []
    for place, (path, _) in enumerate(pytree.tree_flatten_with_path(structure)[0]):
        parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path]
        named = any(not isinstance(key, pytree.SequenceKey) for key in path)
        name = ".".join(parts) if named else f"{OUTPUT}_{place}" if place else OUTPUT
        name = next(n for k in range(len(used) + 1) if (n := f"{name}_{k}" if k else name) not in used)
        used.add(name)
        names.append(name)
    return names


def _output_names(program: ExportedProgram, taken: Iterable[str]) -> list[str]:
    spec = program.call_spec.out_spec
    assert spec is not None
    return output_names(pytree.tree_unflatten(list(range(spec.num_leaves)), spec), taken)


def _simplify(graph_module: GraphModule) -> None:
    """Remove guards and identities."""
    graph = graph_module.graph
    name_squeezed_axes(graph)
    for node in list(graph.nodes):
        if node.op == "call_module" and "_guards_fn" in str(node.target):
            graph.erase_node(node)
        elif kind(node) == "identity" or node.target is aten.detach_.default:  # in place: cannot be exported again
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def drop_unused(graph_module: GraphModule) -> None:
    """Delete the tensors that the graph does not read; of a module that is shared, also the names that it does not."""
    used = set()
    for node in graph_module.graph.find_nodes(op="get_attr"):
        path, _, name = str(node.target).rpartition(".")
        used.add((id(graph_module.get_submodule(path)), name))
    for part in graph_module.modules():
        for own in (part._parameters, part._buffers):
            for name in [name for name in own if (id(part), name) not in used]:
                del own[name]


def _finish(graph_module: GraphModule) -> None:
    """Drop what no output needs, and compile the graph for plain arguments."""
    graph = graph_module.graph
    graph.set_codegen(torch.fx.graph.CodeGen())
    for node in list(reversed(graph.nodes)):  # assertions on sizes have no users but count as impure
        if not node.users and node.op == "call_function" and "assert" in str(node.target):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    drop_unused(graph_module)
    graph_module.recompile()
    if hasattr(graph_module, "_guards_fn"):
        del graph_module._guards_fn
    arguments = (0,) * len(graph.find_nodes(op="placeholder"))  # torch checks each call against this
    graph_module._in_spec = pytree.tree_structure((arguments, {}))
