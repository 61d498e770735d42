"""What networks return beside scores (N, K, *S) or (N, K): what can be made of it, and what it is where nothing can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from microtome.errors import CaptureError
from microtome.graph.operators import aten
from microtome.types import FREE

SCORES = "Return the scores as a tensor (N, K, *spatial) or (N, K)."
DETECTION = frozenset({"boxes", "pred_boxes", "bbox", "bboxes", "bbox_regression", "box", "keypoints", "rois"})
# Operators that decide, by their names; those that give (values, places); those that only carry on what was decided.
DECIDES = {
    "argmax", "argmin", "argsort", "gt", "ge", "lt", "le", "eq", "ne", "one_hot", "bucketize", "and", "or", "xor",
    "logical_and", "logical_or", "logical_not", "bitwise_and", "bitwise_or", "bitwise_not",
}  # fmt: skip
PLACES = {"max", "min", "topk", "sort"}
CONSTANT = {"ones_like", "zeros_like", "full_like", "new_ones", "new_zeros", "new_full"}
CARRIES = {
    "to", "to_copy", "type_as", "clone", "contiguous", "alias", "detach", "view", "reshape", "unsafe_view", "flatten",
    "squeeze", "unsqueeze", "permute", "transpose", "movedim", "expand", "cat", "stack", "where", "mul", "add", "sub",
    "div",
}  # fmt: skip


def refuse_structure(output: Any, title: str) -> None:
    """Refuse what is no scores at all: no tensor, or what detectors return.

    Args:
        output: what a module returned.
        title: what to call the module.

    Raises:
        CaptureError: what it is.
    """
    if _is_detection(output):
        raise CaptureError(
            f"{title} returns boxes, as detectors do, not scores of an image or of its voxels.",
            "Return the raw heads, without the loop that chooses boxes, and declare them in --pipeline with 'output', "
            "'keep' and 'detector' (docs/tasks.md); or wrap the part that gives scores.",
        )
    leaves = tree_leaves(output)
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        inner = sorted({type(leaf).__name__ for leaf in leaves} - {type(output).__name__})
        held = f" of {', '.join(inner)}" if inner else ""
        raise CaptureError(f"{title} returns no tensor but {type(output).__name__}{held}.", SCORES)
    if any(isinstance(leaf, Tensor) and leaf.layout != torch.strided for leaf in leaves):
        raise CaptureError(f"{title} returns a sparse tensor.", "Return a dense one: x.to_dense().")


def first_scores(found: Mapping[str, Node]) -> str:
    """Return the name of the first output that can be scores: real numbers, and chosen by no argmax.

    Raises:
        CaptureError: there is none; what they are instead.
    """
    for name, node in found.items():
        if node.meta["val"].dtype.is_floating_point and not is_decided(node):
            return name
    name, node = next(iter(found.items()))
    dtype = node.meta["val"].dtype
    which = f"output {name!r}" if len(found) > 1 else "output"
    if dtype.is_complex:
        raise CaptureError(
            f"the network's {which} holds complex numbers ({_words(dtype)}).",
            "Return real scores, such as the magnitude: x.abs().",
        )
    what = "labels that the network has chosen by itself" if is_decided(node) else "whole numbers"
    raise CaptureError(
        f"the network's {which} holds {what} ({_words(dtype)}), as after argmax or a threshold, not scores.",
        "Return the scores from before that, (N, K, *spatial) or (N, K): microtome takes the best class by itself, and "
        "what compression costs is seen in the scores first.",
    )


def is_decided(node: Node) -> bool:
    """Whether a value was chosen by argmax, a comparison or the like, and then only cast or moved."""
    if node.op != "call_function":
        return False
    name, sources = _name(node), [arg for arg in node.all_input_nodes if arg.op != "get_attr"]
    if name == "getitem" and _name(sources[0]) in PLACES:
        return bool(node.args[1] == 1)
    if name in DECIDES:
        return True
    sources = [
        arg for arg in sources if arg.op == "placeholder" or (arg.all_input_nodes and _name(arg) not in CONSTANT)
    ]
    return name in CARRIES and bool(sources) and all(map(is_decided, sources))


def settled(graph: Graph, output: Node, image: Node) -> tuple[Node, tuple[str, ...]]:
    """Return the scores in float32, with an axis of channels: one is added where there is none, and a note says so.

    Args:
        graph: in which it is added.
        output: (N, K, *S), (N, K), or without K: (N, *S) of the input's own size S, or (N,).
        image: the input.

    Raises:
        CaptureError: the first axis is not the batch, or there is nothing in it.
    """
    if output.meta["val"].dtype != torch.float32:
        output = _after(graph, output, aten.to.dtype, torch.float32)
    shape, (batch, _, *space) = sizes(output), sizes(image)
    if not shape and batch != 1:
        raise CaptureError(
            "the network returns one number for a whole batch, as a loss or a mean does.",
            "Return scores of every image: (N, K, *spatial) or (N, K).",
        )
    what = f"the network returns {_times(shape)} for an input of {_times(sizes(image))}"
    if 0 in shape:
        raise CaptureError(f"{what}: there is nothing in it.", SCORES)
    if shape and shape[0] != batch:
        raise CaptureError(
            f"{what}: its first axis is not the batch.",
            f"{SCORES} To remove an axis name it: squeeze(1), since squeeze() takes the batch of one away too.",
        )
    if len(shape) >= 2 and not (len(shape) == len(space) + 1 and shape[1:] == space):
        return output, ()
    node = (
        _after(graph, output, aten.unsqueeze.default, 1)
        if shape
        else _after(graph, output, aten.reshape.default, [1, 1])
    )
    axes = ", ".join(["N", *map(str, shape[1:])])
    axes = f"({axes}{',' if len(shape) < 2 else ''})"
    whole = ", ".join(["N", "1", *map(str, shape[1:])])
    return node, (f"The network's output {axes} has no axis of channels: it is taken for one channel, ({whole}).",)


def _after(graph: Graph, node: Node, operator: Any, argument: Any) -> Node:
    """Add an operator behind a node."""
    with graph.inserting_after(node):
        added = graph.call_function(operator, (node, argument))
    added.meta["val"] = operator(node.meta["val"], argument)
    return added


def name_squeezed_axes(graph: Graph) -> None:
    """Let `squeeze()` take the axes away that are 1 in the example, but never the batch, which may be 1 later."""
    for node in graph.nodes:
        if node.target is aten.squeeze.default:
            shape = node.args[0].meta["val"].shape
            axes = [axis for axis, size in enumerate(shape) if isinstance(size, int) and size == 1]
            node.target, node.args = aten.squeeze.dims, (node.args[0], axes)


def sizes(node: Node) -> list[int]:
    """Return the sizes of a value in the example; FREE where they depend on values."""
    return [hint(size) for size in node.meta["val"].shape]


def hint(size: Any) -> int:
    """Return a dimension's size in the example; FREE where it depends on values."""
    if isinstance(size, int):
        return size
    return FREE if size.node.hint is None else int(size.node.hint)


def _name(node: Node) -> str:
    name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
    return name.strip("_")


def _is_detection(output: Any) -> bool:
    if isinstance(output, Mapping):
        return any(str(key).lower() in DETECTION for key in output)
    return isinstance(output, list | tuple) and any(_is_detection(item) for item in output)


def _words(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _times(shape: Sequence[int]) -> str:
    return f"({', '.join('?' if n == FREE else str(n) for n in shape)}{',' if len(shape) == 1 else ''})"
