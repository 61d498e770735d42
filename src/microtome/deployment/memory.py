"""How much memory one inference needs, as far as the graph says, and how much the machine has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import psutil
from torch import Tensor
from torch.fx import Node

from microtome.graph.network import Network
from microtome.graph.outputs import hint

BYTES = 4  # activations are float32 somewhere in every runtime
# What a runtime takes of that: its outputs and reordered copies come on top (OpenVINO, a MeshNet of 21 channels at 96³:
# 1.7 in f32, 1.3 in bf16).
RUNTIME = 1.7
USABLE = 0.8  # of what is free: the rest is for images, scores, and what allocators keep
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
USED = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


def inference_bytes(network: Network, elements: int) -> int:
    """Return what one inference needs: the weights, and the most values that are alive at the same time.

    Every value of the graph lives from the operator that makes it to the last one that reads it; the sizes are those of
    the capture, scaled to the input. A runtime that fuses operators needs less, one that reorders them more.

    Args:
        network: the graph.
        elements: of the input, all axes together.
    """
    nodes = list(network.graph_module.graph.nodes)
    captured = next(_elements(node) for node in nodes if node.op == "placeholder")
    scale = elements / captured if captured else 1.0
    last = {value: place for place, node in enumerate(nodes) for value in node.all_input_nodes}
    dying: dict[int, list[Node]] = {}
    for value, place in last.items():
        dying.setdefault(place, []).append(value)
    sizes: Mapping[Node, int] = {node: _elements(node) for node in nodes if node.op != "get_attr"}
    alive = most = 0
    for place, node in enumerate(nodes):
        alive += sizes.get(node, 0)
        most = max(most, alive)
        alive -= sum(sizes.get(value, 0) for value in dying.get(place, ()))
    weights = sum(tensor.nbytes for tensor in network.constants().values())
    return weights + round(BYTES * scale * most)


def free_bytes() -> int:
    """Return the memory that this process may still take: what the machine has free, or its container."""
    found = [int(psutil.virtual_memory().available)]
    for limit, used in zip(LIMITS, USED, strict=True):
        try:
            allowed, taken = Path(limit).read_text().strip(), Path(used).read_text().strip()
        except OSError:
            continue
        if allowed.isdigit():
            found.append(max(0, int(allowed) - int(taken)))
    return min(found)


def fits(network: Network, elements: int, sessions: int) -> bool:
    """Whether so many sessions, and one run in eager PyTorch, fit into memory at the same time."""
    return (sessions * RUNTIME + 1) * inference_bytes(network, elements) <= USABLE * free_bytes()


def shortage(network: Network, shape: tuple[int, ...]) -> str | None:
    """Return the sentence that says that an inference will hardly fit into memory; None where it will.

    Args:
        network: the graph.
        shape: (C, *S) of one input.
    """
    need, free = RUNTIME * inference_bytes(network, math.prod(shape)), free_bytes()
    if need <= USABLE * free:
        return None
    return (
        f"One inference on {'×'.join(map(str, shape))} needs about {need / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB "
        "are free: it may be ended for lack of memory. Set 'patch' in the pipeline, so that it runs window by window."
    )


def _elements(node: Node) -> int:
    value = node.meta.get("val")
    tensors = value if isinstance(value, tuple | list) else (value,)
    return sum(math.prod(hint(n) for n in t.shape) for t in tensors if isinstance(t, Tensor))
