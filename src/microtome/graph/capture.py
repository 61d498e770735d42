"""From an `nn.Module` to a Network, through `torch.export`."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from microtome.errors import CaptureError, WeightsError
from microtome.graph.network import INPUT, Network
from microtome.graph.outputs import refuse_structure
from microtome.graph.plain import unwrapped, with_constant_weights
from microtome.graph.program import export_graph, network_from_export, output_names
from microtome.graph.quiet import first_line
from microtome.graph.scores import Wish
from microtome.types import Port

Shape = tuple[int, ...]

# Window attention with free sizes keeps torch.export busy for minutes (SwinUNETR: 1,481 nodes) and then fails.
MOST_NODES_FOR_FREE_SIZES = 1200
# The captured graph does the same operations in the same order; another algorithm inside a kernel moves the last bits.
CAPTURE_TOLERANCE = 1e-4
BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
SEVERAL_INPUTS = "Declare all but the image under 'inputs' in the pipeline; or wrap it so that they are constants."


def capture(module: nn.Module, shape: Shape | Mapping[str, Shape], keep: Sequence[str] | Wish | None = None) -> Network:
    """Turn a module into a graph, in evaluation mode, with as many free axes as it allows.

    The batch is free where that is possible, and the spatial axes too; fixed sizes are what is left otherwise.

    Args:
        module: any module of tensors; its weights are copied, it is not changed.
        shape: (channels, *spatial) of an input that the module can take; of several inputs by the names of `forward`'s
            parameters.
        keep: names of the outputs to keep, the one with the scores first: the keys of a dict, the fields of a named
            tuple or dataclass; `output`, `output_1`, … where they have no names. Or what is known of them; None keeps
            the one that can be scores, see `graph.scores`.

    Raises:
        WeightsError: a weight is NaN or infinite.
        CaptureError: torch.export fails, or the graph computes something else than the module, and the error names the
            line of the model; there is no such input or output, or several may be the scores.
    """
    module, notes = unwrapped(module)
    check_finite(module.state_dict())
    module = with_constant_weights(module)
    by_name = isinstance(shape, Mapping)
    shapes: Mapping[str, Shape] = shape if isinstance(shape, Mapping) else {INPUT: shape}
    _check_inputs(module, tuple(shapes) if by_name else None)
    training = {part: part.training for part in module.modules()}
    module.eval()
    failure: Exception | None = None
    captured: Network | None = None
    try:
        expected = _run(module, shapes, by_name, any_structure=_is_told(keep))
        for batch, space in ((True, False), (False, False), (True, True)):
            wanted = captured is None or (space and captured.dynamic[0] and _is_small(captured))
            if not wanted:
                continue
            try:
                program = export_graph(module, _ports(shapes, batch, space), by_name=by_name)
                network = network_from_export(program, inputs=tuple(shapes), keep=keep)
                agrees = _agrees(network, expected, shapes)
            except CaptureError:
                raise
            except Exception as error:  # torch.export raises many kinds; each means that this freedom is not allowed
                failure = failure or error
                continue
            if batch and not network.dynamic[0]:
                continue
            if agrees:
                captured = network
            else:
                failure = failure or ValueError("the captured graph computes something else than the module")
    finally:
        for part, flag in training.items():  # parts may differ, such as a frozen batch norm
            part.training = flag
    if captured is not None:
        # A copy, since the graph shares the module's tensors: training it further must not reach the Network.
        return replace(captured.copy(), notes=(*notes, *captured.notes))
    assert failure is not None
    line = _user_line(failure)
    raise CaptureError(
        f"torch.export cannot capture {type(module).__name__}{f' at {line}' if line else ''}: {first_line(failure)}.",
        "Rewrite that line without data-dependent Python control flow, or export the network yourself to a .pt2 file.",
    ) from failure


def check_finite(tensors: Mapping[str, Tensor], where: str = "the network") -> None:
    """Raise WeightsError if a tensor holds NaN or infinity; the error names up to three of them."""
    floats = {n: t for n, t in tensors.items() if isinstance(t, Tensor) and t.is_floating_point()}  # modules add more
    bad = [name for name, t in floats.items() if not is_lazy(t) and not bool(torch.isfinite(t).all())]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise WeightsError(
            f"{where} holds NaN or infinite weights in {', '.join(bad[:3])}{more}.",
            "Training diverged or the file is damaged: use an earlier checkpoint.",
        )


def _check_inputs(module: nn.Module, names: Sequence[str] | None) -> None:
    """Raise CaptureError if `forward` takes something else than inputs of these names; None is one of any name."""
    if isinstance(module, GraphModule | torch.jit.ScriptModule):
        return
    parameters = inspect.signature(module.forward).parameters
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    named = [name for name, kind in kinds.items() if kind in (*BY_NAME, inspect.Parameter.POSITIONAL_ONLY)]
    needed = [name for name in named if parameters[name].default is inspect.Parameter.empty]
    title = f"{type(module).__name__}.forward"
    if names is None and (len(needed) > 1 or not parameters):
        raise CaptureError(f"{title} takes {len(needed)} inputs ({', '.join(needed) or 'none'}).", SEVERAL_INPUTS)
    open_ended = inspect.Parameter.VAR_KEYWORD in kinds.values()
    for name in names or ():
        if kinds.get(name) not in BY_NAME and not open_ended:
            raise CaptureError(f"{title} has no input {name!r}.", f"It takes {', '.join(named) or 'none'}.")
    missing = [name for name in needed if name not in names] if names is not None else []
    if missing:
        raise CaptureError(f"{title} takes {', '.join(missing)} too.", "Give a shape for each of its inputs.")


def _is_told(keep: Sequence[str] | Wish | None) -> bool:
    """Whether somebody says which output to take, of whatever structure."""
    return keep.scores is not None if isinstance(keep, Wish) else keep is not None


def _is_small(network: Network) -> bool:
    """Whether trying free spatial axes is worth the time."""
    return len(network.graph_module.graph.nodes) <= MOST_NODES_FOR_FREE_SIZES


def _ports(shapes: Mapping[str, Shape], batch: bool, space: bool) -> tuple[Port, ...]:
    """Return inputs whose batch, and whose axes of space, are free or not; channels never are."""
    return tuple(
        Port(name, shape, (batch, *(space and axis > 0 for axis in range(len(shape)))))
        for name, shape in shapes.items()
    )


def _run(module: nn.Module, shapes: Mapping[str, Shape], by_name: bool, any_structure: bool) -> dict[str, Tensor]:
    """Run the module once on a fixed random image of batch 1, and return its outputs by name."""
    examples = _examples(module, shapes)
    try:
        with torch.no_grad():
            output = module(**examples) if by_name else module(*examples.values())
    except (Exception, SystemExit) as error:
        line = _user_line(error)
        sizes = ", ".join(str((1, *shape)) for shape in shapes.values())
        raise CaptureError(
            f"{type(module).__name__} cannot run on an input of shape {sizes}"
            f"{f' (at {line})' if line else ''}: {first_line(error)}.",
            "Give the shape that it was trained with: --input-shape C,H,W or C,D,H,W.",
        ) from error
    if not any_structure:
        refuse_structure(output, type(module).__name__)
    values = zip(output_names(output, shapes), tree_leaves(output), strict=True)
    return {name: value for name, value in values if isinstance(value, Tensor)}


def _examples(module: nn.Module, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    parameter = next((p for p in module.parameters()), None)
    generator = torch.Generator().manual_seed(0)
    examples = {name: torch.randn((1, *shape), generator=generator) for name, shape in shapes.items()}
    if parameter is None:
        return examples
    return {name: example.to(parameter.device, parameter.dtype) for name, example in examples.items()}


def _agrees(network: Network, expected: Mapping[str, Tensor], shapes: Mapping[str, Shape]) -> bool:
    with torch.no_grad():
        outputs = network.run(_examples(network.graph_module, shapes))
    return all(_is_close(output, expected.get(name)) for name, output in outputs.items())


def _is_close(output: Tensor, expected: Tensor | None) -> bool:
    """Whether both are the same: NaN and infinity too, but for axes of one, and for the last bits of the type."""
    if expected is None or output.squeeze().shape != expected.squeeze().shape:
        return False
    precision = 2 * torch.finfo(expected.dtype).eps if expected.is_floating_point() else 0.0
    output, expected = (x if x.is_complex() else x.double() for x in (output, expected.reshape(output.shape)))
    scale = max(float(expected.abs().nan_to_num(0, 0, 0).max()), 1e-6)
    return torch.allclose(output, expected, rtol=0, atol=max(CAPTURE_TOLERANCE, precision) * scale, equal_nan=True)


def _user_line(error: BaseException) -> str:
    """Return `file:line (code)` of the deepest frame outside of torch and microtome; empty if there is none."""
    ours = {Path(__file__).parents[1], Path(torch.__file__).parent}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if not any(place == path or place in path.parents for place in ours) and path.suffix == ".py":
            return f"{path.name}:{frame.lineno} ({(frame.line or '').strip()})"
    return ""
