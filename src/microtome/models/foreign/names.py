"""Names of parameters: those of the file where they say something, else those of the nodes that read them."""

from __future__ import annotations

import re

from microtome.models.foreign.steps import Graph, Step

WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "QLinearConv", "QLinearMatMul"}
OWN_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*\.(weight|bias)")  # as PyTorch's exporter writes them
BY_POSITION = {1: "weight", 2: "bias"}


def identifier(name: str, keep: str = "") -> str:
    """Return a name that Python takes; characters in `keep` stay."""
    clean = re.sub(rf"[^\w{re.escape(keep)}]+", "_", name).strip("_.") or "value"
    clean = re.sub(r"\.{2,}", ".", clean)
    return clean if clean[0].isalpha() else f"value_{clean}"


def readable(graph: Graph) -> dict[str, str]:
    """Return names of constants: their own where they are as PyTorch's, or else those of the nodes that read them."""
    names = {}
    for step in graph.steps:
        for place, value in enumerate(step.inputs):
            known = graph.constants.get(value)
            if known is None or known.name in names:
                continue
            role = BY_POSITION.get(place, "value")
            if OWN_NAME.fullmatch(known.name):
                names[known.name] = known.name
            elif step.op in WEIGHTED or known.array.size > 1:
                names[known.name] = f"{_title(step)}.{role}"
    return names


def _title(step: Step) -> str:
    """Return what to call a node's layer: its path without the operator at its end."""
    parts = [part for part in re.split(r"[/.]", step.name) if part]
    if len(parts) > 1 and re.fullmatch(rf"{step.op}(_\d+)?", parts[-1]):
        parts = parts[:-1]
    return identifier(".".join(parts), ".")
