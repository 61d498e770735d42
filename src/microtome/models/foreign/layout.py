"""Where channels are the last axis: found in the graph, not guessed from sizes alone."""

from __future__ import annotations

from collections.abc import Sequence

from microtome.models.foreign.steps import Graph, Step

FIRST = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "BatchNormalization", "QLinearConv"}
FIRST |= {"InstanceNormalization", "GroupNormalization", "Resize", "Upsample", "DepthToSpace", "SpaceToDepth", "PRelu"}
MOST_CHANNELS = 4  # of pictures, where nothing else tells


def channels_last(graph: Graph) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the inputs and the outputs whose channels are the last axis."""
    inputs = tuple(
        name for name, sizes in graph.inputs.items() if len(sizes) in (4, 5) and _input_is(graph, name, sizes)
    )
    return inputs, tuple(name for name in graph.outputs if _output_is(graph, name))


def _input_is(graph: Graph, name: str, sizes: Sequence[int | None]) -> bool:
    """Follow an input to the first operator that has a side: a transposition, or one that wants channels first."""
    to_first = [0, len(sizes) - 1, *range(1, len(sizes) - 1)]
    waiting, seen = [name], {name}
    while waiting:
        current = waiting.pop(0)
        for step in graph.steps:
            if current not in step.inputs:
                continue
            if step.op == "Transpose":
                return list(step.attributes.get("perm") or []) == to_first
            if step.op in FIRST:
                return False
            if step.op == "Reshape":  # of one channel it does what a transposition does
                return _seems_last(sizes)
            new = [output for output in step.outputs if output not in seen]
            seen.update(new)
            waiting += new
    return _seems_last(sizes)


def _seems_last(sizes: Sequence[int | None]) -> bool:
    """Whether the last of an input's sizes looks like channels, and the second does not."""
    last, second = sizes[-1], sizes[1]
    return last is not None and last <= MOST_CHANNELS and (second is None or second > MOST_CHANNELS)


def _output_is(graph: Graph, name: str) -> bool:
    """Follow an output back to what has a side."""
    makers = {output: step for step in graph.steps for output in step.outputs}
    waiting, seen = [name], {name}
    while waiting:
        step: Step | None = makers.get(waiting.pop(0))
        if step is None:
            continue
        if step.op == "Transpose":
            perm = list(step.attributes.get("perm") or [])
            return len(perm) > 3 and perm == [0, *range(2, len(perm)), 1]
        if step.op == "Reshape":
            known = graph.constants.get(step.inputs[1])
            shape = [] if known is None else known.array.reshape(-1).tolist()
            return len(shape) in (4, 5) and shape[-1] == 1 and shape[1] != 1
        if step.op in FIRST or step.op in ("Flatten", "MatMul", "Gemm", "Squeeze"):
            return False
        new = [value for value in step.inputs if value and value not in seen and value in makers]
        seen.update(new)
        waiting += new
    return False
