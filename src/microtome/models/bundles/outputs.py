"""What a MONAI bundle does with the network's output, as fields of a `Pipeline`."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from microtome.medical.cleanup import Cleanup
from microtome.models.bundles.declared import Settings, is_number
from microtome.models.bundles.draft import Draft, Table
from microtome.models.bundles.intensities import NotExpressibleError

Fields = Mapping[str, Any]


def _activations(draft: Draft, settings: Settings) -> Fields | str:
    if settings.get("other") not in (None, "none"):
        raise NotExpressibleError("it is a function of its own")
    if settings.get("dim", 0) != 0:
        raise NotExpressibleError("it is along another axis than the channels")
    chosen = [name for name in ("sigmoid", "softmax") if settings.get(name)]
    if len(chosen) > 1 or (chosen and "Activations" in draft.order):
        raise NotExpressibleError("it is the second one")
    if not chosen:
        return "it is switched off"
    draft.order.append("Activations")
    return {"activation": chosen[0]}


def _discrete(draft: Draft, settings: Settings) -> Fields | str:
    threshold, argmax = settings.get("threshold"), bool(settings.get("argmax"))
    if settings.get("to_onehot"):
        draft.onehot = True
    if settings.get("rounding"):
        draft.note("the bundle's AsDiscrete rounds, microtome chooses a label.")
    if argmax or threshold is not None:
        draft.order.append("AsDiscrete")
    if argmax:  # a threshold after it is one of numbers 0 and 1, or of labels
        if threshold is not None and not (settings.get("to_onehot") and 0 < threshold < 1):
            raise NotExpressibleError("it compares labels with a number")
        return {"decision": "argmax"}
    if threshold is None:
        return "a form of the same labels"
    if not is_number(threshold):
        raise NotExpressibleError("its threshold is no number")
    return {"decision": "threshold", "threshold": float(threshold)}


def _invert(draft: Draft, settings: Settings) -> Fields | str:
    """Back to the image's own grid, before or after labels are chosen."""
    if settings.get("post_func") is not None:
        raise NotExpressibleError("it calls a function of its own")
    decided, resampled = "AsDiscrete" in draft.order, draft.resampled is not None
    draft.order.append("Invert")
    if not resampled:
        return "microtome brings results back to the image's own grid"
    nearest = settings.get("nearest_interp", True)
    if decided:
        if not nearest:
            draft.note("the bundle interpolates between label numbers on the way back; microtome takes the nearest.")
        return {"decide": "network"}
    if "Activations" in draft.order:
        draft.note(
            "the bundle brings probabilities back to the image's grid, microtome the scores before: a border may lie a "
            "part of a voxel elsewhere."
        )
    return {"score_interpolation": "nearest"} if nearest else {}


def _keep_largest(draft: Draft, settings: Settings) -> Fields:
    if settings.get("num_components", 1) != 1:
        raise NotExpressibleError("it keeps several components")
    together = not settings.get("independent", True)
    return _cleanup(draft, settings, Cleanup("keep_largest", _labels(settings), together=together))


def _remove_small(draft: Draft, settings: Settings) -> Fields:
    if settings.get("by_measure") or settings.get("pixdim"):
        raise NotExpressibleError("it counts in millimetres")
    size, together = settings.get("min_size", 64), not settings.get("independent_channels", True)
    if not isinstance(size, int) or size < 1:
        raise NotExpressibleError("its size is no number of voxels")
    if not together and not draft.onehot:
        draft.note(
            "the bundle's RemoveSmallObjects looks at all voxels of a label where there are several labels, microtome "
            "at each component."
        )
    return _cleanup(draft, {"connectivity": 1, **settings}, Cleanup("remove_small", together=together, voxels=size))


def _fill_holes(draft: Draft, settings: Settings) -> Fields:
    if settings.get("connectivity") != 1:
        draft.note(
            "the bundle's FillHoles leaves holes that are open across an edge or a corner; microtome fills them."
        )
    draft.note("the bundle's FillHoles also overwrites other labels in a hole; microtome only the background.")
    return _cleanup(draft, {}, Cleanup("fill_holes", _labels(settings)))


def _labels(settings: Settings) -> tuple[int, ...]:
    given = settings.get("applied_labels")
    labels = [given] if isinstance(given, int) else list(given or [])
    if not all(isinstance(n, int) and n >= 0 for n in labels):
        raise NotExpressibleError("it does not name labels by their numbers")
    return tuple(n for n in labels if n)


def _cleanup(draft: Draft, settings: Settings, step: Cleanup) -> Fields:
    """Add a step of cleaning up."""
    if "AsDiscrete" not in draft.order:
        raise NotExpressibleError("it looks at scores, not at labels")
    connectivity = settings.get("connectivity")
    if connectivity is not None:
        step = Cleanup(step.step, step.labels, step.together, step.voxels, connectivity)
    if draft.resampled and "Invert" not in draft.order:
        draft.note(f"the bundle does {step.step} on the network's grid, microtome on the image's.")
    return {"cleanup": (*draft.fields.get("cleanup", ()), step)}


def _function(draft: Draft, settings: Settings) -> Fields | str:
    """The few functions that bundles write often."""
    text = str(settings.get("func", "")).removeprefix("$").strip()
    try:
        function = ast.parse(text, mode="eval").body
    except SyntaxError:
        function = ast.Constant(None)
    if not isinstance(function, ast.Lambda) or len(function.args.args) != 1:
        raise NotExpressibleError("it is a function of its own")
    name, body = function.args.args[0].arg, ast.unparse(function.body)
    if body == name:
        return "does nothing"
    if body == f"{name}[1:]" and draft.onehot and "argmax" in str(draft.fields.get("decision")):
        return "all but the mask of the background"
    order = _where(function.body, name)
    if order is None:
        raise NotExpressibleError("it is a function of its own")
    return {"written": tuple(order)}


def _where(node: ast.expr, name: str) -> list[tuple[int, int]] | None:
    """(channel, label) of `where(x[[c]] > 0, label, where(…, 0))`, the first one first; None of anything else."""
    match node:
        case ast.Constant(0):
            return []
        case ast.Call(ast.Attribute(attr="where"), [test, ast.Constant(int(label)), rest]):
            found = _channel(test, name)
            later = _where(rest, name)
            return None if found is None or later is None else [(found, label), *later]
    return None


def _channel(node: ast.expr, name: str) -> int | None:
    """The channel of `x[[c]] > 0` or `x[c] > 0.5`; None of anything else."""
    match node:
        case ast.Compare(ast.Subscript(ast.Name(other), index), [ast.Gt()], [ast.Constant(limit)]):
            if isinstance(index, ast.List) and len(index.elts) == 1:
                index = index.elts[0]
            place = index.value if isinstance(index, ast.Constant) else None
            if isinstance(place, int) and other == name and isinstance(limit, int | float) and 0 <= limit < 1:
                return place
    return None


KINDS = ("sigmoid", "softmax", "other", "dim")
INVERT = ("transform", "orig_keys", "nearest_interp", "to_tensor", "device", "post_func", "meta_key_postfix")
TRANSLATED: Table = {
    "Activations": (_activations, KINDS),
    "AsDiscrete": (_discrete, ("argmax", "to_onehot", "threshold", "rounding", "keepdim")),
    "Invert": (_invert, (*INVERT, "orig_meta_keys")),
    "KeepLargestConnectedComponent": (
        _keep_largest,
        ("applied_labels", "is_onehot", "independent", "connectivity", "num_components"),
    ),
    "RemoveSmallObjects": (
        _remove_small,
        ("min_size", "connectivity", "independent_channels", "by_measure", "pixdim"),
    ),
    "FillHoles": (_fill_holes, ("applied_labels", "connectivity")),
    "Lambda": (_function, ("func", "inv_func", "overwrite")),
}
