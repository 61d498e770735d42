"""The operators of TensorFlow Lite that move values and change none."""

from __future__ import annotations

import numpy as np

from microtome.errors import ModelError
from microtome.models.foreign.tflite_graph import WAY, Operator, TFLite, first, last, sizes


def _pad(f: TFLite) -> None:
    pairs = np.array(f.numbers(1)).reshape(-1, 2)
    inputs = [f.value(0), sizes(f, [*pairs[:, 0], *pairs[:, 1]])]
    f.done(f.emit("Pad", [*inputs, *([f.value(2)] if f.has(2) else [])]))


def _mirror_pad(f: TFLite) -> None:
    if f.settings.mode != 0:
        raise ModelError("MIRROR_PAD in the mode SYMMETRIC is not translated.", WAY)
    pairs = np.array(f.numbers(1)).reshape(-1, 2)
    f.done(f.emit("Pad", [f.value(0), sizes(f, [*pairs[:, 0], *pairs[:, 1]])], mode="reflect"))


def _transpose(f: TFLite) -> None:
    f.done(f.emit("Transpose", [f.value(0)], perm=f.numbers(1)))


def _squeeze(f: TFLite) -> None:
    rank = len(f.shape(0))
    axes = [int(n) % rank for n in f.settings.squeezeDims]
    f.done(f.emit("Squeeze", [f.value(0), *([sizes(f, axes)] if axes else [])]))


def _expand_dims(f: TFLite) -> None:
    f.done(f.emit("Unsqueeze", [f.value(0), sizes(f, f.numbers(1))]))


def _strided_slice(f: TFLite) -> None:
    o, starts, ends, steps = f.settings, f.numbers(1), f.numbers(2), f.numbers(3)
    if o.ellipsisMask or o.newAxisMask:
        raise ModelError("STRIDED_SLICE with new axes is not translated.", WAY)
    huge, axes = 1 << 31, list(range(len(starts)))
    for k in axes:
        if o.shrinkAxisMask >> k & 1:
            ends[k], steps[k] = (starts[k] + 1 if starts[k] != -1 else huge), 1
            continue
        starts[k] = 0 if o.beginMask >> k & 1 else starts[k]
        ends[k] = huge if o.endMask >> k & 1 else ends[k]
    made = f.emit(
        "Slice", [f.value(0), *(_named(f, v, w) for v, w in zip("seat", (starts, ends, axes, steps), strict=True))]
    )
    shrunk = [k for k in axes if o.shrinkAxisMask >> k & 1]
    f.done(f.emit("Squeeze", [made, sizes(f, shrunk)]) if shrunk else made)


def _named(f: TFLite, letter: str, values: list[int]) -> str:
    return f.store(f"slice_{letter}_{len(f.nodes)}", np.array(values, np.int64))


def _slice(f: TFLite) -> None:
    starts, sizes = f.numbers(1), f.numbers(2)
    ends = [1 << 31 if n < 0 else s + n for s, n in zip(starts, sizes, strict=True)]
    parts = zip("sea", (starts, ends, list(range(len(starts)))), strict=True)
    f.done(f.emit("Slice", [f.value(0), *(_named(f, v, w) for v, w in parts)]))


def _pack(f: TFLite) -> None:
    axis = sizes(f, [int(f.settings.axis)])
    parts = [f.emit("Unsqueeze", [f.value(k), axis]) for k in range(len(f.operator.inputs))]
    f.done(f.emit("Concat", parts, axis=int(f.settings.axis)))


def _blocks(op: str) -> Operator:
    def run(f: TFLite) -> None:
        f.done(last(f, f.emit(op, [first(f, f.value(0))], blocksize=int(f.settings.blockSize))))

    return run


TABLE: dict[str, Operator] = {
    "PAD": _pad,
    "PADV2": _pad,
    "MIRROR_PAD": _mirror_pad,
    "TRANSPOSE": _transpose,
    "SQUEEZE": _squeeze,
    "EXPAND_DIMS": _expand_dims,
    "STRIDED_SLICE": _strided_slice,
    "SLICE": _slice,
    "PACK": _pack,
    "DEPTH_TO_SPACE": _blocks("DepthToSpace"),
    "SPACE_TO_DEPTH": _blocks("SpaceToDepth"),
}
