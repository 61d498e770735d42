"""What integers gain over the best float precision of the same runtime, and why they may gain nothing."""

from __future__ import annotations

from collections.abc import Sequence

from microtome.graph.network import Layer, Network
from microtome.graph.operators import groups
from microtome.results import Run

AS_FAST = 1.05  # within so much two times are the same
SMALLER = 1.1


def no_gain(network: Network, runs: Sequence[Run], target: str) -> str | None:
    """Return the sentence that says that a float precision is as fast as the compressed network; None where none is.

    Args:
        network: the compressed one, with weights in integers.
        runs: all that was timed in one run.
        target: the runtime of the compressed network.
    """
    ours = next(run for run in runs if run.get("compressed"))
    floats = [run for run in runs if run["runtime"] == target and not run.get("compressed")]
    best = min(floats, key=lambda run: run["latency_ms"], default=None)
    if best is None or best["latency_ms"] > AS_FAST * ours["latency_ms"]:
        return None
    much = "faster" if best["latency_ms"] * AS_FAST < ours["latency_ms"] else "as fast"
    precision = best["precision"]
    sentence = (
        f"The uncompressed network is {much} on {target} in {precision} ({best['latency_ms']:.2f} ms; compressed "
        f"{ours['latency_ms']:.2f} ms) and loses nothing: take --recipe f32 --precision {precision}, or let "
        "--placement measured find the layers that gain."
    )
    theirs, size = best.get("bytes") or 0, ours.get("bytes") or 0
    if size and theirs > SMALLER * size:
        sentence += f" What compression gains here is size: {theirs / size:.1f}× smaller."
    depthwise = [layer for layer in network.layers if is_depthwise(network, layer)]
    if depthwise:
        sentence += (
            f" {len(depthwise)} of its {len(network.layers)} layers are depthwise convolutions, which few processors "
            "do faster in integers."
        )
    return sentence


def is_depthwise(network: Network, layer: Layer) -> bool:
    """Whether a convolution has a group for each of its several channels."""
    return 1 < groups(layer.node) == network.tensor(str(layer.weight.target)).shape[0]
