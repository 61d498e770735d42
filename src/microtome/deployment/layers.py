"""What was asked of each layer, beside what the runtime did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from microtome.graph.network import Network
from microtome.graph.quantizers import weight_quantizer
from microtome.results import LayerRow
from microtome.runtimes.base import LayerRun


def layer_table(network: Network, runs: Sequence[LayerRun]) -> list[LayerRow]:
    """Put what was asked of each layer beside what the runtime did; the last row sums all other operators.

    Args:
        network: the compressed graph.
        runs: the session's own account.
    """
    rows: list[LayerRow] = []
    taken: set[int] = set()
    for layer in network.layers:
        qparams = weight_quantizer(network, layer)
        bits = qparams.qtype.bits if qparams is not None else 32
        found = [i for i, r in enumerate(runs) if r.runs(layer.name) and "reorder" not in r.op.lower()]
        best = max(found, key=lambda i: runs[i].latency_ms or 0.0, default=None)
        if best is not None:
            taken.add(best)
        run = runs[best] if best is not None else None
        rows.append(
            {
                "name": layer.name,
                "op": layer.op,
                "requested": f"int{bits}" if qparams is not None else "f32",
                "executed": run.executed if run else "unknown",
                "kernel": run.kernel if run else "not found in the runtime's graph",
                "bytes": network.tensor(str(layer.weight.target)).numel() * bits // 8,
                "latency_ms": run.latency_ms if run else None,
            }
        )
    others = [r.latency_ms for i, r in enumerate(runs) if i not in taken and r.latency_ms is not None]
    if others:
        rows.append(
            {
                "name": f"({len(others)} other operators)",
                "op": "norms, activations, reorders, …",
                "requested": "f32",
                "executed": "mixed",
                "kernel": "",
                "bytes": 0,
                "latency_ms": round(sum(others), 4),
            }
        )
    return rows


def integer_counts(layers: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Count layers that were asked to run in integers, and those that did."""
    asked = [row for row in layers if str(row["requested"]).startswith("int")]
    return {"requested": len(asked), "executed": sum(str(row["executed"]).startswith("int") for row in asked)}
