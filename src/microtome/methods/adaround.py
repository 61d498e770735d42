"""Learned rounding of weights, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from microtome.errors import OptionError
from microtome.graph.learning.reconstruction import Schedule, reconstruct
from microtome.graph.network import Network
from microtome.methods.base import Batches


@dataclass(frozen=True)
class AdaRound:
    """Choose for each weight whether to round up or down, so that its layer's output stays what it was.

    Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020. Each layer sees
    what the quantized layers before it give, and is compared behind its activation function, equation 25.

    Attributes:
        steps: per layer.
        samples: images per step.
        rate: learning rate.
        decisiveness: weight of what drives each weight to one neighbour, where the error of rounding to nearest is 1.
            With little of it, or a low rate, few steps end before all weights are decided.
        seed: of what is drawn.
    """

    steps: int = 400
    samples: int = 2
    rate: float = 2e-2
    decisiveness: float = 1.0
    seed: int = 0

    needs: ClassVar[frozenset[str]] = frozenset({"quantized"})
    refuses: ClassVar[frozenset[str]] = frozenset({"rounded", "bias_corrected", "encoded", "finetuned"})
    leaves: ClassVar[frozenset[str]] = frozenset({"rounded"})

    def __call__(self, network: Network, batches: Batches) -> Network:
        """Return the network with its weights on their grids.

        Raises:
            OptionError: no steps, or no samples.
            DataError: there are no calibration images, or they make values NaN.
            OutputError: the disk is full: what enters and leaves a layer is kept in TMPDIR meanwhile.
        """
        if self.steps < 1 or self.samples < 1:
            raise OptionError("learned rounding needs at least one step and one sample.")
        schedule = Schedule(
            self.steps,
            self.samples,
            self.rate,
            grid_rate=0.0,
            drop=0.0,
            seed=self.seed,
            decisiveness=self.decisiveness,
        )
        result = reconstruct(network, batches, schedule, layers=1)
        return replace(result, state=result.state | self.leaves)
