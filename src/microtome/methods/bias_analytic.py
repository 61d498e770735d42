"""Bias correction from batch norms, without data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from microtome.core.affine import fake_quantize
from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.quantizers import weight_quantizer
from microtome.graph.watching.distribution import distributions, mean_is_removed, mean_response
from microtome.methods.base import EMPTY, FLOAT_BIASES, QUANTIZED, Context, Method, Phase, State

NOTHING_KNOWN = "No bias was corrected: no batch norm or instance norm says what the layers read."


@dataclass(frozen=True)
class CorrectBiasAnalytically(Method):
    """Give back to biases the mean shift that rounding of weights causes, as far as norms tell it; no data is read.

    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section
    4.2.1: the shift is (W - W_quantized) E[x], and E[x] follows from the norm before, through the activation function
    in between. Layers whose input mean does not follow from norms keep their bias: the first one, those behind
    max-pooling, and all where norms were folded in another run, since files do not keep what they said. Nor is the
    shift from rounding activations known. Where there are images, `CorrectBias` is better.
    """

    phase: ClassVar[Phase] = Phase.NUMBERS
    needs: ClassVar[State] = frozenset({QUANTIZED})
    leaves: ClassVar[State] = frozenset({"bias_corrected"})
    takes: ClassVar[State] = frozenset({FLOAT_BIASES})

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the network with corrected biases; a note where nothing could be corrected."""
        network = network.copy()
        known = distributions(network)
        corrected = 0
        for layer in network.layers:
            node = layer.node
            grid, before = weight_quantizer(network, layer), known.get(node.args[0])  # type: ignore[arg-type]
            if grid is None or before is None or mean_is_removed(node):
                continue
            weight = network.tensor(str(layer.weight.target))
            shift = mean_response(node, weight - fake_quantize(weight, grid), before.mean)
            edit.shift_bias(network, layer, shift)
            corrected += 1
        edit.finish(network.graph_module)
        notes = network.notes if corrected else (*network.notes, NOTHING_KNOWN)
        return self.done(network, notes=notes)
