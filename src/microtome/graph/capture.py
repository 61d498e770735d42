"""From an `nn.Module` to a Network, through `torch.export`."""

from __future__ import annotations

import inspect
import traceback
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from microtome.errors import CaptureError, WeightsError
from microtome.graph.network import Network
from microtome.graph.program import ONE_INPUT, ONE_OUTPUT, export_graph, network_from_export
from microtome.graph.quiet import first_line

# Window attention with free sizes keeps torch.export busy for minutes (SwinUNETR: 1,481 nodes) and then fails.
MOST_NODES_FOR_FREE_SIZES = 1200
# The captured graph does the same operations in the same order; another algorithm inside a kernel moves the last bits.
CAPTURE_TOLERANCE = 1e-4


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
