"""Products and attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from microtome.models.foreign.values import Value

if TYPE_CHECKING:
    from microtome.models.foreign.module import Run


def _einsum(run: Run) -> Value:
    equation = run.attribute("equation").replace(" ", "")
    return torch.einsum(equation, *(run.tensor(place) for place in range(len(run.values))))


def _attention(run: Run) -> Value:
    if any(run.has(place) for place in (4, 5, 6)) or any(run.step.outputs[1:]):
        raise run.refuse("keeps keys and values")
    if run.attribute("softcap", 0.0) or run.attribute("qk_matmul_output_mode", 0):
        raise run.refuse("has settings beyond scale and mask")
    q, k, v = (run.tensor(place) for place in range(3))
    flat = q.ndim == 3
    if flat:
        heads, kv_heads = run.attribute("q_num_heads"), run.attribute("kv_num_heads")
        q, k, v = (
            x.reshape(*x.shape[:2], n, -1).transpose(1, 2) for x, n in ((q, heads), (k, kv_heads), (v, kv_heads))
        )
    settings = {"is_causal": bool(run.attribute("is_causal", 0)), "scale": run.attribute("scale")}
    grouped = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    out = F.scaled_dot_product_attention(q, k, v, run.optional(3), **settings, **grouped)
    return out.transpose(1, 2).flatten(2) if flat else out


TABLE: dict[str, Callable[[Run], Value]] = {"Einsum": _einsum, "Attention": _attention}
