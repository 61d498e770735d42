"""Learned rounding of weights, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from microtome.errors import OptionError
from microtome.graph.learning.reconstruction import Schedule, reconstruct
from microtome.graph.network import Network
from microtome.methods.base import EMPTY, FLOAT_BIASES, QUANTIZED, Context, Method, Phase, State, weights_are_free


@dataclass(frozen=True)
class AdaRound(Method):
    """Choose for each weight whether to round up or down, so that its layer's output stays what it was.

    Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020. Each layer sees
    what the quantized layers before it give, and is compared behind its activation function, equation 25.

    Attributes:
        steps: per layer.
        samples: images per step.
        rate: learning rate, for 400 steps; fewer take a larger one in proportion, up to 0.3.
        decisiveness: weight of what drives each weight to one neighbour, where the error of rounding to nearest is 1.
            With little of it, few steps end before all weights are decided.
        seed: of what is drawn.
    """

    steps: int = 400
    samples: int = 2
    rate: float = 2e-2
    decisiveness: float = 1.0
    seed: int = 0

    phase: ClassVar[Phase] = Phase.NUMBERS
    needs: ClassVar[State] = frozenset({QUANTIZED, FLOAT_BIASES})
    leaves: ClassVar[State] = frozenset({"rounded"})
    takes: ClassVar[State] = frozenset({"sparse"})  # zeros may become the neighbouring value

    def __post_init__(self) -> None:
        """Refuse no steps, and no samples."""
        if self.steps < 1 or self.samples < 1:
            raise OptionError("learned rounding needs at least one step and one sample.")

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the network with its weights on their grids.

        Raises:
            OptionError: weights are in a format that is no affine grid.
            DataError: there are no calibration images, or they make values NaN.
            OutputError: the disk is full: what enters and leaves a layer is kept in TMPDIR meanwhile.
        """
        weights_are_free(network)
        schedule = Schedule(
            self.steps,
            self.samples,
            self.rate,
            grid_rate=0.0,
            drop=0.0,
            seed=self.seed,
            decisiveness=self.decisiveness,
        )
        result = reconstruct(network, context.calibration, schedule, layers=1)
        return self.done(result)
