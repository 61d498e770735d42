"""Block-wise reconstruction: learned rounding of weights together with learned activation scales."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from microtome.errors import OptionError
from microtome.graph.network import Network
from microtome.graph.reconstruction import Schedule, reconstruct
from microtome.methods.base import Batches


@dataclass(frozen=True)
class Reconstruct:
    """Make each block of the quantized network give what the float one gives.

    A block holds a few neighbouring layers and ends where few values are alive (Li et al., "BRECQ", ICLR 2021); skip
    connections that pass by are inputs of the block that reads them. The rounding of weights is learned as in AdaRound,
    activation scales as in LSQ, while a random share of activations stays in float (Wei et al., "QDrop", ICLR 2022,
    section 3.3), so that rounding does not fit itself to one noise. Longer blocks let neighbours make up for one
    another (Ma et al., "Solving Oscillation Problem in Post-Training Quantization", CVPR 2023).

    Attributes:
        steps: per block.
        samples: images per step.
        layers: the most layers of a block.
        drop: share of activations that stay in float.
        rate: learning rate of the rounding.
        grid_rate: learning rate of the logarithm of activation scales.
        seed: of what is drawn.
    """

    steps: int = 400
    samples: int = 2
    layers: int = 4
    drop: float = 0.5
    rate: float = 2e-2
    grid_rate: float = 2e-3
    seed: int = 0

    needs: ClassVar[frozenset[str]] = frozenset({"quantized"})
    refuses: ClassVar[frozenset[str]] = frozenset({"rounded", "bias_corrected", "encoded", "finetuned"})
    leaves: ClassVar[frozenset[str]] = frozenset({"rounded", "reconstructed"})

    def __call__(self, network: Network, batches: Batches) -> Network:
        """Return the network with its weights on their grids.

        Raises:
            OptionError: a setting makes no sense.
            DataError: there are no calibration images.
        """
        if min(self.steps, self.samples, self.layers) < 1 or not 0 <= self.drop < 1:
            raise OptionError("reconstruction needs at least one step, sample and layer, and a share to drop below 1.")
        schedule = Schedule(self.steps, self.samples, self.rate, self.grid_rate, self.drop, self.seed)
        result = reconstruct(network, batches, schedule, layers=self.layers)
        return replace(result, state=result.state | self.leaves)
