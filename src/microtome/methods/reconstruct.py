"""Block-wise reconstruction: learned rounding of weights together with learned activation scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from microtome.errors import OptionError
from microtome.graph.learning.reconstruction import Schedule, reconstruct
from microtome.graph.network import Network
from microtome.methods.base import EMPTY, FLOAT_BIASES, QUANTIZED, Context, Method, Phase, State, weights_are_free


@dataclass(frozen=True)
class Reconstruct(Method):
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
        rate: learning rate of the rounding, for 400 steps; fewer take a larger one in proportion, up to 0.3.
        decisiveness: weight of what drives each weight to one neighbour, where the error of rounding to nearest is 1.
            With little of it, few steps end before all weights are decided.
        grid_rate: learning rate of the logarithm of activation scales.
        fisher: weigh errors with the squared gradient of the output's divergence from the float network's (BRECQ,
            equation 10). Takes another run of the network, forward and backward, for each block and image.
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
    seed: int = 0

    phase: ClassVar[Phase] = Phase.NUMBERS
    needs: ClassVar[State] = frozenset({QUANTIZED, FLOAT_BIASES})
    leaves: ClassVar[State] = frozenset({"rounded", "reconstructed"})
    takes: ClassVar[State] = frozenset({"sparse"})  # zeros may become the neighbouring value

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if min(self.steps, self.samples, self.layers) < 1 or self.joint < 0 or not 0 <= self.drop < 1:
            raise OptionError("reconstruction needs at least one step, sample and layer, and a share to drop below 1.")

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the network with its weights on their grids.

        Raises:
            OptionError: weights are in a format that is no affine grid.
            DataError: there are no calibration images, or they make values NaN.
            OutputError: the disk is full: what enters and leaves a block is kept in TMPDIR meanwhile.
        """
        weights_are_free(network)
        schedule = Schedule(
            self.steps,
            self.samples,
            self.rate,
            grid_rate=self.grid_rate,
            drop=self.drop,
            seed=self.seed,
            decisiveness=self.decisiveness,
            fisher=self.fisher,
            sigmoid=context.sigmoid,
        )
        result = reconstruct(network, context.calibration, schedule, layers=self.layers, joint=self.joint)
        return self.done(result, {"grids": {"activation": "learned"}} if self.grid_rate else None)
