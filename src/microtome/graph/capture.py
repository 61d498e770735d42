"""From an `nn.Module` to a Network, through `torch.export`."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from microtome.errors import CaptureError, WeightsError
from microtome.graph.network import Network, first_line, quiet
from microtome.graph.operators import aten, kind

# Batch size of the example: torch.export takes sizes 0 and 1 for constants.
EXAMPLE_BATCH = 2
# Window attention with free sizes keeps torch.export busy for minutes (SwinUNETR: 1,481 nodes) and then fails.
MOST_NODES_FOR_FREE_SIZES = 1200
# The captured graph does the same operations in the same order; another algorithm inside a kernel moves the last bits.
CAPTURE_TOLERANCE = 1e-4
ONE_INPUT = "microtome compresses networks of one image tensor: wrap the module so that the others are constants."
ONE_OUTPUT = "Return the scores as a tensor (N, K, *spatial) or (N, K)."


def capture(module: nn.Module, shape: tuple[int, ...]) -> Network:
    """Turn a module into a graph, in evaluation mode, with as many free axes as it allows.

    The batch is free where that is possible, and the spatial axes too; fixed sizes are what is left otherwise.

    Args:
        module: any module with one input tensor; its weights are copied, it is not changed.
        shape: (channels, *spatial) of an input that the module can take.

    Raises:
        WeightsError: a weight is NaN or infinite.
        CaptureError: torch.export fails, or the graph computes something else than the module; the error names the
            line of the model.
    """
    check_finite(module.state_dict())
    _check_inputs(module)
    training = {part: part.training for part in module.modules()}
    module.eval()
    free, fixed = (True,) * (len(shape) - 1), (False,) * (len(shape) - 1)
    failure: Exception | None = None
    captured: Network | None = None
    try:
        expected = _run(module, shape)
        for dynamic in ((True, False, *fixed), (False, False, *fixed), (True, False, *free)):
            wanted = captured is None or (dynamic[-1] and captured.dynamic[0] and _is_small(captured))
            if not wanted:
                continue
            try:
                network = network_from_export(export_graph(module, shape, dynamic))
            except CaptureError:
                raise
            except Exception as error:  # torch.export raises many kinds; each means that this freedom is not allowed
                failure = failure or error
                continue
            if dynamic[0] and not network.dynamic[0]:
                continue
            if _agrees(network, expected, shape):
                captured = network
            else:
                failure = failure or ValueError("the captured graph computes something else than the module")
    finally:
        for part, flag in training.items():  # parts may differ, such as a frozen batch norm
            part.training = flag
    if captured is not None:
        return captured.copy()  # the graph shares the module's tensors: training it further must not reach the Network
    assert failure is not None
    line = _user_line(failure)
    raise CaptureError(
        f"torch.export cannot capture {type(module).__name__}{f' at {line}' if line else ''}: {first_line(failure)}.",
        "Rewrite that line without data-dependent Python control flow, or export the network yourself to a .pt2 file.",
    ) from failure


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


def check_finite(tensors: dict[str, Tensor], where: str = "the network") -> None:
    """Raise WeightsError if a tensor holds NaN or infinity; the error names up to three of them."""
    bad = [name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise WeightsError(
            f"{where} holds NaN or infinite weights in {', '.join(bad[:3])}{more}.",
            "Training diverged or the file is damaged: use an earlier checkpoint.",
        )


def _check_inputs(module: nn.Module) -> None:
    """Raise CaptureError if `forward` needs more than one argument, or takes none."""
    if isinstance(module, GraphModule | torch.jit.ScriptModule):
        return
    parameters = list(inspect.signature(module.forward).parameters.values())
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [p.name for p in named if p.default is p.empty]
    if len(needed) > 1 or not parameters:
        raise CaptureError(
            f"{type(module).__name__}.forward takes {len(needed)} inputs ({', '.join(needed) or 'none'}).", ONE_INPUT
        )


def _is_small(network: Network) -> bool:
    """Whether trying free spatial axes is worth the time."""
    return len(network.graph_module.graph.nodes) <= MOST_NODES_FOR_FREE_SIZES


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


def _run(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Run the module once on a fixed random image of batch 1."""
    try:
        with torch.no_grad():
            output = module(_example(module, shape))
    except Exception as error:
        line = _user_line(error)
        raise CaptureError(
            f"{type(module).__name__} cannot run on an input of shape {(1, *shape)}"
            f"{f' (at {line})' if line else ''}: {first_line(error)}.",
            "Give the shape that it was trained with: --input-shape C,H,W or C,D,H,W.",
        ) from error
    tensors = [value for value in tree_leaves(output) if isinstance(value, Tensor)]
    if not tensors:
        raise CaptureError(f"{type(module).__name__} returns no tensor but {type(output).__name__}.", ONE_OUTPUT)
    return tensors[0]


def _example(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    parameter = next((p for p in module.parameters()), None)
    generator = torch.Generator().manual_seed(0)
    example = torch.randn((1, *shape), generator=generator)
    return example if parameter is None else example.to(parameter.device, parameter.dtype)


def _agrees(network: Network, expected: Tensor, shape: tuple[int, ...]) -> bool:
    with torch.no_grad():
        output = network(_example(network.graph_module, shape).to(network.device))
    if output.shape != expected.shape:
        return False
    scale = max(float(expected.abs().max()), 1e-6)
    return float((output - expected).abs().max()) <= CAPTURE_TOLERANCE * scale


def _user_line(error: BaseException) -> str:
    """Return `file:line (code)` of the deepest frame outside of torch and microtome; empty if there is none."""
    ours = {Path(__file__).parents[1], Path(torch.__file__).parent}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if not any(place == path or place in path.parents for place in ours) and path.suffix == ".py":
            return f"{path.name}:{frame.lineno} ({(frame.line or '').strip()})"
    return ""
