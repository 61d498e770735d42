"""Training of a network that is quantized, or not yet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from microtome.core.distillation import distillation_loss
from microtome.core.range_search import weight_qparams
from microtome.errors import OptionError
from microtome.graph.learning.learned_grids import (
    BinaryWeight,
    ClippedGrid,
    Grid,
    LearnedGrid,
    MidRiseWeight,
    ObservedGrid,
)
from microtome.graph.learning.trainable import Trainable
from microtome.graph.network import Network
from microtome.graph.quantizers import Quantizer
from microtome.graph.structure.shared_grids import meets_others
from microtome.graph.watching.observe import without_quantizers
from microtome.methods.base import EMPTY, Context, Method, Phase, State, weights_are_free
from microtome.training.trainer import Trainer, size
from microtome.types import QType


@dataclass(frozen=True)
class Finetune(Method):
    """Train the network on: quantized, fake-quantized forward and gradients straight through the rounding.

    Without a loss in the context it distils the teacher, so that no labels are needed. Further outputs of the network
    are drawn to the teacher's: their squared error over the variance is added to the loss. Statistics of batch norms
    stay as they are. Where `torch.distributed` is initialized, each process trains on its own batches and gradients are
    averaged.

    Attributes:
        steps: batches to train on.
        rate: learning rate of weights (Adam), relative to the root mean square of each tensor, so that it serves
            networks of any width; half a cosine down to zero.
        grid_rate: learning rate of the logarithm of scales.
        ranges: how activation ranges are found: `learned` (LSQ), `clipped` (PACT) or `observed` (moving average over
            the first tenth of the steps, then frozen).
        weights: of layers whose weights have 2 bits: `affine` (LSQ, four values from -2 to 1 steps), `midrise`
            (LSQ, four values from -1.5 to 1.5 steps, none of them zero), `ternary` (LSQ, three values), or
            `binary` (XNOR-Net, two). Wider weights are always affine.
        gradual: widths that weights pass through before their own, each for an equal share of the first half.
        temperature: of the distillation; a loss in the context has its own.
        decay: weight decay.
        watch: what is looked at on the tuning patients: the `loss`, or the `score`, which is the metric that the
            verdict rests on and takes longer.
        check_every: steps between looks; the best network seen is returned.
        patience: looks without improvement after which training stops; None never.
        amp: multiply in bfloat16.
        seed: of torch's generator.
    """

    steps: int = 1000
    rate: float = 1e-2
    grid_rate: float = 5e-3
    ranges: Literal["learned", "clipped", "observed"] = "learned"
    weights: Literal["affine", "midrise", "ternary", "binary"] = "affine"
    gradual: tuple[int, ...] = ()
    temperature: float = 1.0
    decay: float = 0.0
    watch: Literal["loss", "score"] = "loss"
    check_every: int = 100
    patience: int | None = None
    amp: bool = False
    seed: int = 0

    phase: ClassVar[Phase] = Phase.TRAINING
    leaves: ClassVar[State] = frozenset({"finetuned"})
    takes: ClassVar[State] = frozenset({"rounded", "reconstructed"})
    again: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse no steps, and what is no width."""
        if self.steps < 1 or any(not 2 <= bits <= 16 for bits in self.gradual):
            raise OptionError("training needs at least one step, and widths of 2 to 16 bits.")

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the trained network.

        Raises:
            OptionError: there is nothing to train on, or weights are in a format that is no affine grid.
            DataError: there are no batches, or the loss becomes NaN.
        """
        if context.training is None:
            raise OptionError("there are no training images.", "Give train cases, or take a recipe that needs none.")
        weights_are_free(network)
        torch.manual_seed(self.seed)
        teacher = context.teacher.to(network.device) if context.teacher else without_quantizers(network)
        student = Trainable(
            network,
            weight=lambda q: self.weight_module(q, network.tensor(_constant(q))),
            activation=self.activation_module,
        )
        score = context.score if self.watch == "score" else None
        if self.watch == "score" and score is None:
            raise OptionError(
                "there is no score to watch: no tuning patient has a reference.",
                "Label some, or set watch to loss.",
            )
        curve = Trainer(
            student.module,
            self._groups(student),
            context.loss or partial(_distilled, sigmoid=context.sigmoid, temperature=self.temperature),
            steps=self.steps,
            teacher=lambda x: teacher.graph_module(*teacher.arguments(x)),
            clipped=student.weights(),
            tuning=context.tuning,
            score=None if score is None else lambda: score(student.freeze()),
            check_every=self.check_every,
            patience=self.patience,
            judged_from=self.narrow_from,
            before_step=_Widths(self, student),
            amp=self.amp,
            checkpoint=context.checkpoint,
            device=network.device,
            inputs=[port.name for port in network.inputs],
            progress=context.progress,
        ).train(context.training)
        grids = {"activation": self.ranges, "weight": "learned"} if student.slots else {}
        return self.done(student.freeze(), {"training": curve, "grids": grids})

    @property
    def narrow_from(self) -> int:
        """The step from which weights have their own width."""
        return self.steps // 2 if self.gradual else 0

    def _groups(self, student: Trainable) -> list[dict[str, Any]]:
        """Return what is learned: weights with a rate relative to their size, and grids."""
        groups: list[dict[str, Any]] = [
            {"params": [weight], "lr": self.rate * size(weight), "weight_decay": self.decay}
            for weight in student.weights()
        ]
        return [*groups, {"params": student.grids(), "lr": self.grid_rate, "weight_decay": 0.0}]

    def weight_module(self, quantizer: Quantizer, weight: Tensor) -> Grid:
        """Return the module that rounds a weight in training."""
        qparams = quantizer.qparams
        if qparams.qtype.bits > 2 or self.weights == "affine":
            return LearnedGrid(qparams)
        if self.weights == "binary":
            return BinaryWeight(qparams)
        if self.weights == "midrise":
            return MidRiseWeight(qparams, weight)
        return LearnedGrid(weight_qparams(weight, QType(2, narrow=True, axis=qparams.qtype.axis), search=True))

    def activation_module(self, quantizer: Quantizer) -> Grid | None:
        """Return the module that rounds an activation in training; None where values that are concatenated share it."""
        if meets_others(quantizer.node):
            return None
        if self.ranges == "learned":
            return LearnedGrid(quantizer.qparams)
        if self.ranges == "clipped":
            return ClippedGrid(quantizer.qparams)
        return ObservedGrid(quantizer.qparams, until=max(1, self.steps // 10))


class _Widths:
    """Widths of weights that come down while they are trained."""

    def __init__(self, settings: Finetune, student: Trainable) -> None:
        self.settings, self.student = settings, student
        self.final = {slot.position: slot.module.qtype.bits for slot in student.slots}

    def __call__(self, step: int) -> None:
        """Give weights the width of a step; where it changes, place their grids anew."""
        widths = self.settings.gradual
        wide = step < self.settings.narrow_from
        stage = step * len(widths) * 2 // self.settings.steps if wide else len(widths)
        for slot in self.student.slots:
            if slot.weight is None or not isinstance(slot.module, LearnedGrid):
                continue
            final = self.final[slot.position]
            bits = final if stage >= len(widths) else max(widths[stage], final)
            if bits != slot.module.qtype.bits:
                slot.module.set_bits(bits, self.student.weight_of(slot).detach())


def _distilled(student: Tensor, teacher: Tensor, _: Tensor | None, *, sigmoid: bool, temperature: float) -> Tensor:
    """Return the default loss, which asks for no target."""
    return distillation_loss(student, teacher, sigmoid=sigmoid, temperature=temperature)


def _constant(quantizer: Quantizer) -> str:
    source = quantizer.node.args[0]
    return str(source.target)  # type: ignore[union-attr]
