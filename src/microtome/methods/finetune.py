"""Training of a network that is quantized, or not yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

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
from microtome.methods.base import EMPTY, ENCODED_FIRST, Context, Method, Phase, State, weights_are_free
from microtome.training.settings import Training
from microtome.training.teachers import Teacher
from microtome.types import QType


@dataclass(frozen=True)
class Finetune(Training, Method):
    """Train the network on: quantized, fake-quantized forward and gradients straight through the rounding.

    Without a loss in the context it distils the teacher, so that no labels are needed. Further outputs of the network
    are drawn to the teacher's: their squared error over the variance is added to the loss. Of a network that is
    `sparse`, weights that are zero stay zero. Where `torch.distributed` is initialized, each process trains on its own
    batches and gradients are averaged.

    Attributes: those of `Training`, and:
        grid_rate: learning rate of the logarithm of scales.
        ranges: how activation ranges are found: `learned` (LSQ), `clipped` (PACT) or `observed` (moving average over
            the first tenth of the steps, then frozen).
        weights: of layers whose weights have 2 bits: `affine` (LSQ, four values from -2 to 1 steps), `midrise`
            (LSQ, four values from -1.5 to 1.5 steps, none of them zero), `ternary` (LSQ, three values), or
            `binary` (XNOR-Net, two). Wider weights are always affine.
        gradual: widths that weights pass through before their own, each for an equal share of the first half.
        temperature: of the distillation; a loss in the context has its own.
    """

    grid_rate: float = 5e-3
    ranges: Literal["learned", "clipped", "observed"] = "learned"
    weights: Literal["affine", "midrise", "ternary", "binary"] = "affine"
    gradual: tuple[int, ...] = ()
    temperature: float = 1.0

    phase: ClassVar[Phase] = Phase.TRAINING
    leaves: ClassVar[State] = frozenset({"finetuned"})
    takes: ClassVar[State] = frozenset({"rounded", "reconstructed"})
    again: ClassVar[bool] = True
    not_after: ClassVar[Mapping[str, str]] = ENCODED_FIRST

    def __post_init__(self) -> None:
        """Refuse no steps, and what is no width."""
        super().__post_init__()
        if any(not 2 <= bits <= 16 for bits in self.gradual):
            raise OptionError("weights can pass through widths of 2 to 16 bits.")

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the trained network.

        Raises:
            OptionError: there is nothing to train on, or weights are in a format that is no affine grid, or zeros would
                not stay zero in the format that is asked for.
            DataError: there are no batches, or the loss becomes NaN.
        """
        batches = self.ready(context)
        weights_are_free(network)
        teacher = context.teacher.to(network.device) if context.teacher else without_quantizers(network)
        student = Trainable(
            network,
            weight=lambda q: self.weight_module(q, network.tensor(_constant(q))),
            activation=self.activation_module,
            norms=self.learns_norms(network),
        )
        if student.masks() and any(isinstance(slot.module, BinaryWeight) for slot in student.slots):
            raise OptionError("binary weights have no zero, and this network's zeros are to stay.", "Choose ternary.")
        curve = self.trainer(
            student,
            self._groups(student),
            self.loss_of(
                context.loss or partial(_distilled, sigmoid=context.sigmoid, temperature=self.temperature), context
            ),
            context,
            teacher=Teacher(teacher) if self.asks(network) else None,
            judged_from=self.narrow_from,
            before_step=_Widths(self, student),
        ).train(batches)
        grids = {"activation": self.ranges, "weight": "learned"} if student.slots else {}
        return self.done(student.freeze(), {"training": curve, "grids": grids})

    @property
    def narrow_from(self) -> int:
        """The step from which weights have their own width."""
        return self.steps // 2 if self.gradual else 0

    def _groups(self, student: Trainable) -> list[dict[str, Any]]:
        """Return what is learned: weights with a rate relative to their size, and grids."""
        return [
            *self.groups(student),
            {"params": student.grids(), "lr": self.grid_rate, "weight_decay": 0.0},
        ]

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
