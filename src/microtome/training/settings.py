"""What every method that trains lets its user set, and how a student is trained by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from microtome.core.penalties import Part, group_lasso, lasso
from microtome.errors import OptionError
from microtome.graph.learning.trainable import Trainable
from microtome.graph.learning.training_norms import has_batch_norms
from microtome.graph.network import Network
from microtome.graph.operators import output_axis
from microtome.training.trainer import Loss, Trainer, size

if TYPE_CHECKING:
    from microtome.methods.base import Context

LabelLoss = Callable[[Tensor, Tensor], Tensor]
"""(output, target) → scalar."""


@dataclass(frozen=True)
class Training:
    """How a network is trained: fields that methods inherit.

    Attributes:
        steps: batches to train on.
        rate: learning rate of weights (Adam), relative to the root mean square of each tensor, so that it serves
            networks of any width; half a cosine down to zero.
        decay: weight decay.
        labels: share of the loss against references, from 0 to 1; the rest is distillation. It counts where a case has
            a reference. With 1 no teacher is asked, and the last weights are kept unless the score is watched.
        norms: of batch norms that are still in the graph: `fixed` statistics, or `learned` ones, which batches
            normalise with and which follow them; a network whose values have changed much needs that. `auto` learns
            them unless the network is quantized.
        penalty: what is added to the loss: `l1`, the sum of all weights' magnitudes; `group_lasso`, the sum of the
            lengths of layers' output channels; `bn_scale`, the sum of the magnitudes of norms' scales.
        penalty_weight: what it is multiplied with.
        watch: what is looked at on the tuning patients: the `loss`, or the `score`, which is the metric that the
            verdict rests on and takes longer.
        check_every: steps between looks; the best network seen is returned.
        patience: looks without improvement after which training stops; None never.
        minutes: of the clock, after which training ends as if `steps` were as many as that allows. The result then
            depends on the machine. None sets no limit.
        amp: multiply in bfloat16: about twice as fast where the processor can.
        seed: of torch's generator.
    """

    steps: int = 1000
    rate: float = 1e-2
    decay: float = 0.0
    labels: float = 0.0
    norms: Literal["auto", "fixed", "learned"] = "auto"
    penalty: Literal["none", "l1", "group_lasso", "bn_scale"] = "none"
    penalty_weight: float = 1e-5
    watch: Literal["loss", "score"] = "loss"
    check_every: int = 100
    patience: int | None = None
    minutes: float | None = None
    amp: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if self.steps < 1 or self.check_every < 1:
            raise OptionError("training needs at least one step, and at least one between two looks.")
        if not 0 <= self.labels <= 1:
            raise OptionError(f"labels is a share of the loss, from 0 to 1, not {self.labels:g}.")
        if self.minutes is not None and not self.minutes > 0:
            raise OptionError(f"training needs more than {self.minutes:g} minutes.", "Leave minutes out for no limit.")

    def learns_norms(self, network: Network) -> bool:
        """Whether statistics of a network's batch norms are learned."""
        if self.norms == "auto":
            return "quantized" not in network.state and has_batch_norms(network.graph_module)
        return self.norms == "learned"

    def ready(self, context: Context) -> Iterable[Any]:
        """Return the training batches, and set torch's seed.

        Raises:
            OptionError: there are none, or no references or no score where they are asked for.
        """
        if context.training is None:
            raise OptionError("there are no training images.", "Give train cases, or take a recipe that needs none.")
        if self.watch == "score" and context.score is None:
            raise OptionError(
                "there is no score to watch: no tuning patient has a reference.", "Label some, or set watch to loss."
            )
        if self.labels and context.label_loss is None:
            raise OptionError(
                f"labels is {self.labels:g}, but there is no reference to train on.",
                "Label some train cases, or set labels to 0; tasks without a loss of their own only imitate.",
            )
        torch.manual_seed(self.seed)
        return context.training

    def loss_of(self, imitation: Loss, context: Context) -> Loss:
        """Return the loss of distillation, mixed with that of references."""
        share, label_loss = self.labels, context.label_loss
        if not share or label_loss is None:
            return imitation

        def mixed(output: Tensor, wanted: Tensor, target: Tensor | None) -> Tensor:
            if target is None:
                return imitation(output, wanted, None)
            learned = share * label_loss(output, target)
            return learned if share == 1 else learned + (1 - share) * imitation(output, wanted, target)

        return mixed

    def asks(self, network: Network) -> bool:
        """Whether a teacher has a say: of further outputs it always has."""
        return self.labels < 1 or len(network.outputs) > 1

    def groups(self, student: Trainable) -> list[dict[str, Any]]:
        """Return a network's weights, each with a rate relative to its size."""
        masks = {id(weight): mask for weight, mask in student.masks()}
        return [
            {"params": [w], "lr": self.rate * size(w, masks.get(id(w))), "weight_decay": self.decay}
            for w in student.weights()
        ]

    def trainer(
        self, trained: Trainable, groups: Sequence[dict[str, Any]], loss: Loss, context: Context, **more: Any
    ) -> Trainer:
        """Return what trains a network as these settings say; `more` are fields of Trainer."""
        score = context.score if self.watch == "score" else None
        network = trained.network
        return Trainer(
            **{
                "student": trained.module,
                "groups": groups,
                "loss": loss,
                "steps": self.steps,
                "clipped": trained.weights(),
                "tuning": context.tuning if self.labels < 1 else None,
                "score": None if score is None else lambda: score(trained.freeze()),
                "check_every": self.check_every,
                "patience": self.patience,
                "amp": self.amp,
                "masks": trained.masks(),
                "penalty": self._penalty(trained),
                "minutes": self.minutes,
                "checkpoint": context.checkpoint,
                "device": network.device,
                "inputs": [port.name for port in network.inputs],
                "progress": context.progress,
                **more,
            },
        )

    def _penalty(self, student: Trainable) -> Callable[[], Tensor] | None:
        if self.penalty == "none" or not self.penalty_weight:
            return None
        if self.penalty == "group_lasso":
            rows = [[_rows(student, name, axis)] for name, axis in _layers(student.network).items()]
            return lambda: self.penalty_weight * group_lasso(rows)
        weights: Sequence[nn.Parameter] = student.norm_scales()
        if self.penalty == "l1":
            weights = [student.module.get_parameter(name) for name in _layers(student.network)]
        if not weights:
            raise OptionError(
                f"the penalty {self.penalty} has nothing to draw to zero in this network.", "Choose another, or none."
            )
        return lambda: self.penalty_weight * lasso(weights)


def _layers(network: Network) -> dict[str, int]:
    """Return the weights of layers by name, with the axis of their output channels."""
    return {str(layer.weight.target): output_axis(layer.node) for layer in network.layers}


def _rows(student: Trainable, name: str, axis: int) -> Part:
    weight = student.module.get_parameter(name)
    return Part(weight, axis, torch.arange(weight.shape[axis], device=weight.device))
