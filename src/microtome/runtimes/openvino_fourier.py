"""Fourier transforms: OpenVINO 2026.4 reads ONNX's into other shapes, or without an error into other values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microtome.errors import TargetError

if TYPE_CHECKING:
    from microtome.graph.network import Network

TRANSFORMS = ("fft", "stft")


def refuse_fourier(network: Network) -> None:
    """Refuse a network with a Fourier transform in it.

    Raises:
        TargetError: there is one; the error names the operator and its layer.
    """
    for node in network.graph_module.graph.nodes:
        name = getattr(node.target, "__name__", "").split(".")[0]
        if node.op == "call_function" and any(word in name for word in TRANSFORMS):
            modules = list((node.meta.get("nn_module_stack") or {}).values())
            layer = (modules[-1][0] if modules else "") or node.name
            raise TargetError(
                f"OpenVINO computes {name} (layer {layer}) wrongly, in each float precision.",
                "Choose --target onnxruntime, which runs it.",
            )
