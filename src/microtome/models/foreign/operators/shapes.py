"""Operators that move values and change none: shapes, places, joins and cuts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from microtome.models.foreign.operators.known_sizes import tidy
from microtome.models.foreign.values import Constant, Integers, Turned, Value, turned

if TYPE_CHECKING:
    from microtome.models.foreign.module import Run

Handler = Callable[["Run"], "Value | list[Value]"]


def _through(handler: Handler) -> Handler:
    """Let an operator move integers as it moves the values that they stand for."""

    def run(step: Run) -> Value | list[Value]:
        grids = [value.grid for value in step.values if isinstance(value, Integers)]
        if not grids:
            return handler(step)
        if not all(grid.same(grids[0]) for grid in grids) or grids[0].axis is not None:
            raise step.refuse("joins integers of different grids")
        step.values = [value.value if isinstance(value, Integers) else value for value in step.values]
        made = handler(step)
        made = made if isinstance(made, list) else [made]
        return [Integers(part, grids[0]) if isinstance(part, Tensor | Turned) else part for part in made]

    return run


def _rank(value: Tensor | Turned) -> int:
    return len(value.order) if isinstance(value, Turned) else value.ndim


def _logical(value: Tensor | Turned) -> list[Any]:
    """Return the sizes in the graph's order."""
    if isinstance(value, Turned):
        return [value.tensor.shape[axis] for axis in value.order]
    return list(value.shape)


def _shape(run: Run) -> Value:
    value = run.values[0]
    known = value.value if isinstance(value, Integers) else run.value(0)
    sizes = _logical(known)
    start, end = run.attribute("start", 0), run.attribute("end")
    return tidy(_objects(sizes[start:end]))


def _objects(values: Sequence[Any]) -> Any:
    array = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        array[place] = value
    return array


def _size(run: Run) -> Value:
    array = np.empty((), dtype=object)
    array[()] = math.prod(_logical(run.value(0)))
    return tidy(array)


def _reshape(run: Run) -> Value:
    value, wanted = run.value(0), run.sizes(1)
    sizes = _logical(value)
    if not run.attribute("allowzero", 0):
        wanted = [sizes[k] if isinstance(n, int) and n == 0 else n for k, n in enumerate(wanted)]
    rank = len(wanted)
    if rank in (4, 5) and len(sizes) == rank:  # one channel moved between last and first is a transposition
        for order in ([0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]):
            moved = [sizes[axis] for axis in order]
            if 1 in (sizes[1], sizes[-1]) and moved[1:] == wanted[1:] and sizes != wanted:
                return turned(value, order)
    x = run.tensor(0)
    return x.reshape(_for_batch(run, x, wanted))


def _for_batch(run: Run, x: Tensor, wanted: list[Any]) -> list[Any]:
    """Return a shape that is written in a file with a batch of one as that of the batch at hand, see `Graphed`."""
    module = run.module
    first = next(iter(module.graph.inputs.values()), ())
    fixed = bool(first) and first[0] == 1 and module.any_batch and isinstance(run.values[1], Constant)
    if not fixed or not wanted or (isinstance(wanted[0], int) and wanted[0] <= 0) or run.constant(1) is None:
        return wanted
    return wanted if run.constant(0) is not None else [wanted[0] * run.batch, *wanted[1:]]


def _flatten(run: Run) -> Value:
    x = run.tensor(0)
    axis = run.attribute("axis", 1)
    axis = axis if axis >= 0 else axis + x.ndim
    if axis == 1:
        return x.flatten(1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _squeeze(run: Run) -> Value:
    x, axes = run.tensor(0), run.listed("axes", 1)
    if axes is None:
        return x.squeeze()
    return x.squeeze([axis % x.ndim for axis in axes])


def _unsqueeze(run: Run) -> Value:
    x, axes = run.tensor(0), run.listed("axes", 1) or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _transpose(run: Run) -> Value:
    value = run.value(0)
    return turned(value, run.attribute("perm") or list(range(_rank(value)))[::-1])


def _concat(run: Run) -> Value:
    parts = [run.value(place) for place in range(len(run.values))]
    axis = run.attribute("axis") % _rank(parts[0])
    turns = [part.order for part in parts if isinstance(part, Turned)]
    if not turns:
        return torch.cat([run.tensor(place) for place in range(len(parts))], axis)
    order = max(turns, key=turns.count)
    back = [order.index(k) for k in range(len(order))]
    moved = [
        part.tensor
        if isinstance(part, Turned) and part.order == order
        else (part.plain() if isinstance(part, Turned) else part).permute(back)
        for part in parts
    ]
    return Turned(torch.cat(moved, order[axis]), order)


def _split(run: Run) -> list[Value]:
    value, axis = run.value(0), run.attribute("axis", 0)
    axis = axis % _rank(value)
    tensor, place = (value.tensor, value.axis(axis)) if isinstance(value, Turned) else (value, axis)
    sizes = run.listed("split", 1)
    if sizes is None:
        count = len(run.step.outputs)
        each = -(-tensor.shape[place] // count)
        sizes = [each] * (count - 1) + [tensor.shape[place] - each * (count - 1)]
    parts = torch.split(tensor, sizes, place)
    return [Turned(part, value.order) if isinstance(value, Turned) else part for part in parts]


def _slice(run: Run) -> Value:
    value = run.value(0)
    starts, ends = run.listed("starts", 1) or [], run.listed("ends", 2) or []
    axes = run.listed("axes", 3) or list(range(len(starts)))
    steps = (run.sizes(4) if run.has(4) else None) or [1] * len(starts)
    tensor = value.tensor if isinstance(value, Turned) else value
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        place = value.axis(axis) if isinstance(value, Turned) else axis % value.ndim
        if isinstance(step, int) and step < 0:
            if step == -1 and start in (-1, tensor.shape[place] - 1) and end < -tensor.shape[place]:
                tensor = tensor.flip([place])
                continue
            raise run.refuse("runs backwards")
        tensor = _cut(tensor, place, start, end, step)
    return Turned(tensor, value.order) if isinstance(value, Turned) else tensor


def _cut(x: Tensor, axis: int, start: Any, end: Any, step: Any = 1) -> Tensor:
    cut: Tensor = torch.ops.aten.slice.Tensor(x, axis, start, end, step)
    return cut


def _gather(run: Run) -> Value:
    x, axis = run.tensor(0), run.attribute("axis", 0)
    axis = axis % x.ndim
    if run.values[1] is not None and isinstance(run.values[1], Constant | np.ndarray):
        places = run.known(1)
        if places.ndim == 0:
            return torch.select(x, axis, int(places))
        size = x.shape[axis]
        wanted = [int(n) + size if int(n) < 0 else int(n) for n in places.reshape(-1)]
        if places.ndim == 1 and wanted == list(range(wanted[0], wanted[0] + len(wanted))):
            return _cut(x, axis, wanted[0], wanted[-1] + 1)
        index = run.module.parameter(Constant(f"{run.step.outputs[0]}_index", np.array(wanted, np.int64)))
        made = x.index_select(axis, index)
        return made if places.ndim == 1 else made.reshape([*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]])
    index = run.tensor(1)
    made = x.index_select(axis, index.reshape(-1))
    return made if index.ndim == 1 else made.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def _gather_elements(run: Run) -> Value:
    x, index = run.tensor(0), run.tensor(1)
    axis = run.attribute("axis", 0) % x.ndim
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index))


def _expand(run: Run) -> Value:
    x, shape = run.tensor(0), run.sizes(1)
    rank = max(x.ndim, len(shape))
    own = [1] * (rank - x.ndim) + list(x.shape)
    shape = [1] * (rank - len(shape)) + shape
    wanted = [a if isinstance(b, int) and b == 1 else b for a, b in zip(own, shape, strict=True)]
    return x.reshape(own).expand(wanted) if rank != x.ndim else x.expand(wanted)


def _tile(run: Run) -> Value:
    return run.tensor(0).repeat(run.sizes(1))


def _pad(run: Run) -> Value:
    value, mode = run.value(0), run.attribute("mode", "constant")
    rank = _rank(value)
    pads = run.listed("pads", 1) or []
    axes = run.sizes(3) if run.has(3) else list(range(rank))
    fill = float(run.known(2).reshape(-1)[0]) if run.has(2) else float(run.attribute("value", 0.0))
    tensor = value.tensor if isinstance(value, Turned) else value
    both: list[Any] = [0] * (2 * rank)
    for place, axis in enumerate(axes):
        own = value.axis(axis) if isinstance(value, Turned) else axis % rank
        both[2 * (rank - 1 - own)], both[2 * (rank - 1 - own) + 1] = pads[place], pads[place + len(axes)]
    while len(both) > 2 and both[-2:] == [0, 0]:
        both = both[:-2]
    if mode == "constant":
        made = F.pad(tensor, both, value=fill)
    else:
        named = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
        spare = [0] * max(0, 2 * (rank - 2) - len(both))
        made = F.pad(tensor, both + spare, mode=named[mode])
    return Turned(made, value.order) if isinstance(value, Turned) else made


def _depth_to_space(run: Run) -> Value:
    x, block = run.tensor(0), run.attribute("blocksize")
    if run.attribute("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(run: Run) -> Value:
    x, block = run.tensor(0), run.attribute("blocksize")
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * block**2, h // block, w // block)


def _constant_of_shape(run: Run) -> Value:
    from onnx import numpy_helper

    value = run.attribute("value")
    filled = 0.0 if value is None else numpy_helper.to_array(value).reshape(-1)[0].item()
    return torch.full(run.sizes(0), filled)


def _trilu(run: Run) -> Value:
    diagonal = int(run.sizes(1)[0]) if run.has(1) else 0
    return torch.triu(run.tensor(0), diagonal) if run.attribute("upper", 1) else torch.tril(run.tensor(0), diagonal)


def _roll(run: Run) -> Value:
    return torch.roll(run.tensor(0), run.attribute("shifts"), run.attribute("axes"))


def _one_hot(run: Run) -> Value:
    off, on = run.known(2).reshape(-1).tolist()
    axis, depth = run.attribute("axis", -1), int(run.sizes(1)[0])
    hot = F.one_hot(run.tensor(0).to(torch.int64), depth)
    hot = hot if axis == -1 else hot.movedim(-1, axis)
    return torch.where(hot.to(torch.bool), float(on), float(off))


TABLE: dict[str, Handler] = {
    "Shape": _shape,
    "Size": _size,
    "Reshape": _through(_reshape),
    "Flatten": _through(_flatten),
    "Squeeze": _through(_squeeze),
    "Unsqueeze": _through(_unsqueeze),
    "Transpose": _through(_transpose),
    "Concat": _through(_concat),
    "Split": _through(_split),
    "Slice": _through(_slice),
    "Gather": _through(_gather),
    "GatherElements": _gather_elements,
    "Expand": _through(_expand),
    "Tile": _through(_tile),
    "Pad": _pad,
    "DepthToSpace": _through(_depth_to_space),
    "SpaceToDepth": _through(_space_to_depth),
    "ConstantOfShape": _constant_of_shape,
    "Trilu": _trilu,
    "OneHot": _one_hot,
    "microtome.Roll": _roll,
}
