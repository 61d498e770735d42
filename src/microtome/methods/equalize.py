"""Cross-layer equalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from microtome.errors import OptionError
from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.structure.scaling import input_ranges, output_ranges, pairs, rescale
from microtome.methods.base import EMPTY, Context, Method, Phase, State

SMALLEST = 1e-8  # a channel with smaller weights is dead, and stays as it is


@dataclass(frozen=True)
class Equalize(Method):
    """Move scales between layers until each channel's range is as wide where it is made as where it is read.

    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, equations
    11 and 12. Between the layers only operators may stand that a positive scale passes (ReLU and its kin, pooling),
    and concatenations. The network computes the same as before; no data is read.

    Attributes:
        rounds: most passes over the network.
        tolerance: passes end when no scale moves by more than this share.
    """

    rounds: int = 20
    tolerance: float = 1e-2

    phase: ClassVar[Phase] = Phase.STRUCTURE
    needs: ClassVar[State] = frozenset({"folded"})
    leaves: ClassVar[State] = frozenset({"equalized"})
    again: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse no rounds."""
        if self.rounds < 1:
            raise OptionError(f"equalization needs at least one round, not {self.rounds}.")

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the equalized network; no data is read."""
        network = network.copy()
        chain = pairs(network)
        for _ in range(self.rounds):
            moved = 0.0
            for pair in chain:
                made, read = output_ranges(network, pair), input_ranges(network, pair)
                scale = (made / read).sqrt()
                scale = torch.where((made < SMALLEST) | (read < SMALLEST), torch.ones_like(scale), scale)
                rescale(network, pair, scale)
                moved = max(moved, float((scale - 1).abs().max()))
            if moved < self.tolerance:
                break
        edit.finish(network.graph_module)
        return self.done(network)
