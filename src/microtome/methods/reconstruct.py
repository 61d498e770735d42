"""Block-wise reconstruction: learned rounding of weights together with learned activation scales."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from microtome.errors import OptionError
from microtome.graph.learning.reconstruction import Schedule, reconstruct
from microtome.graph.network import Network
from microtome.methods.base import Batches


@dataclass(frozen=True)
class Reconstruct:
    """Make each block of the quantized network give what the float one gives.

    A block holds a few neighbouring layers and ends where few values are alive (Li et al., "BRECQ", ICLR 2021); skip
    connections that pass by are inputs of the block that reads them. The rounding of weights is learned as in AdaRound,
    activation scales as in LSQ, while a random share of activations stays in float (Wei et al., "QDrop", ICLR 2022,
    section 3.3), so that rounding does not fit itself to one noise. Neighbouring blocks of very unequal size can be
    optimised together, so that they make up for one another (Ma et al., "Solving Oscillation Problem in Post-Training
    Quantization Through a Theoretical Perspective", CVPR 2023; a block's capacity is the bits of its weights here).
    Activation grids that meet in a concatenation stay as they are, since they must stay alike.

    Attributes:
        steps: per block.
        samples: images per step.
        layers: the most layers of a block.
        joint: pairs of neighbouring blocks that are optimised together, those that differ most in capacity first.
        drop: share of activations that stay in float.
        rate: learning rate of the rounding.
        decisiveness: weight of what drives each weight to one neighbour, where the error of rounding to nearest is 1.
            With little of it, or a low rate, few steps end before all weights are decided.
        grid_rate: learning rate of the logarithm of activation scales.
        fisher: weigh errors with the squared gradient of the output's divergence from the float network's (BRECQ,
            equation 10). Takes another run of the network, forward and backward, for each block and image.
        sigmoid: for that divergence: the network's channels are probabilities of their own.
        seed: of what is drawn.
    """

    steps: int = 400
    samples: int = 2
    layers: int = 4
    joint: int = 0
    drop: float = 0.5
    rate: float = 2e-2
    decisiveness: float = 1.0
    grid_rate: float = 2e-3
    fisher: bool = False
    sigmoid: bool = False
    seed: int = 0

    needs: ClassVar[frozenset[str]] = frozenset({"quantized"})
    refuses: ClassVar[frozenset[str]] = frozenset({"rounded", "bias_corrected", "encoded", "finetuned"})
    leaves: ClassVar[frozenset[str]] = frozenset({"rounded", "reconstructed"})

    def __call__(self, network: Network, batches: Batches) -> Network:
        """Return the network with its weights on their grids.

        Raises:
            OptionError: a setting makes no sense.
            DataError: there are no calibration images, or they make values NaN.
            OutputError: the disk is full: what enters and leaves a block is kept in TMPDIR meanwhile.
        """
        if min(self.steps, self.samples, self.layers) < 1 or self.joint < 0 or not 0 <= self.drop < 1:
            raise OptionError("reconstruction needs at least one step, sample and layer, and a share to drop below 1.")
        schedule = Schedule(
            self.steps,
            self.samples,
            self.rate,
            grid_rate=self.grid_rate,
            drop=self.drop,
            seed=self.seed,
            decisiveness=self.decisiveness,
            fisher=self.fisher,
            sigmoid=self.sigmoid,
        )
        result = reconstruct(network, batches, schedule, layers=self.layers, joint=self.joint)
        return replace(result, state=result.state | self.leaves)
