"""A student learns what its teachers know."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from microtome.errors import OptionError
from microtome.graph.learning.initial import fresh
from microtome.graph.learning.taps import matched, tap
from microtome.graph.learning.trainable import SPARSE, Trainable
from microtome.graph.network import Network
from microtome.graph.structure.widths import narrowed
from microtome.graph.watching.observe import without_quantizers
from microtome.methods.base import EMPTY, ENCODED_FIRST, QUANTIZED, Context, Method, Phase, State, weights_are_free
from microtome.training.imitation import Feature, Form, Imitation, Pair, Weighting, regressor
from microtome.training.settings import Training
from microtome.training.teachers import SoftLabels, Teacher, repeated


@dataclass(frozen=True)
class Distill(Training, Method):
    """Train a student on what teachers say, on references, or on both; the network becomes the student.

    The teacher is the parent unless others are named. Of a task whose outputs are no probabilities the task's own
    distance takes the place of `outputs`. Further outputs are drawn to the (first) teacher's, as by `Finetune`.

    Sources: `core.distillation`, `core.output_distillation` and `core.feature_distillation` name that of each form.
    Weights by region and border follow ReCo-KD (arXiv:2601.08301) in what they count, not in how much.

    Attributes: those of `Training`, and:
        student: empty, the network as it is (pruned, say), or a narrower copy of it; else a model file or whatever else
            names one, with the parent's inputs and outputs.
        width: of a narrower copy: share of the channels that stay in every layer that can lose some.
        multiple: channels of a narrower copy are multiples of this where there are as many.
        init: of the student: `fresh` weights, those that are `kept`, or `auto`: fresh for a narrower copy. A narrower
            copy that keeps weights keeps the largest channels.
        teachers: as they are named on a command line; empty takes the parent. Of several, probabilities are averaged.
        outputs: how outputs are compared, the terms being added: `kl` (Hinton), `dice` (of soft maps), `mse` of logits,
            `channel` (channel-wise, for maps), `dkd` (decoupled; classes that exclude one another).
        temperature: of `kl`, `channel` and `dkd`.
        weighting: of places in maps, for `kl` and `mse`: `none`, `regions` (each class counts as much as any other),
            `borders`, `both`. Classes are those of the reference, or the teacher's where there is none.
        features: how feature maps are compared, likewise: `hint` (FitNets), `attention` (transfer), `similarity`
            (preserving), `relation` (RKD), `affinity` (of places), `variation` (within classes, IFVD).
        feature_weight: of their sum.
        layers: the teacher's layer for a layer of the student, whose maps are compared; empty matches the ends of
            stages of the same size.
        hard_steps: further steps on references alone.
        views: epochs after which images come in the same views again, so that what teachers say of them is read from
            the disk; None draws new views in each epoch, and asks the teachers each time.
    """

    student: str = ""
    width: float = 1.0
    multiple: int = 1
    init: Literal["auto", "fresh", "kept"] = "auto"
    teachers: tuple[str, ...] = ()
    outputs: tuple[Form, ...] = ("kl", "dice")
    temperature: float = 1.0
    weighting: Weighting = "none"
    features: tuple[Feature, ...] = ()
    feature_weight: float = 1.0
    layers: Mapping[str, str] = field(default_factory=dict)
    hard_steps: int = 0
    views: int | None = None

    phase: ClassVar[Phase] = Phase.TRAINING
    leaves: ClassVar[State] = frozenset({"distilled"})
    again: ClassVar[bool] = True
    not_after: ClassVar[Mapping[str, str]] = ENCODED_FIRST | {QUANTIZED: "this trains in float: finetune trains that"}

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        super().__post_init__()
        if not 0 < self.width <= 1 or self.multiple < 1 or self.hard_steps < 0:
            raise OptionError("a student is at most as wide as its parent, and trains for no fewer than 0 steps.")
        if self.student and self.width < 1:
            raise OptionError("a student that is named has its own width.", "Leave student or width out.")
        if not self.outputs and not self.features:
            raise OptionError("a student that is compared in nothing learns nothing.", "Name outputs or features.")
        if self.temperature <= 0 or (self.views is not None and self.views < 1):
            raise OptionError("the temperature must be above 0, and views at least 1.")
        if self.features and self.views is not None:
            raise OptionError("feature maps of teachers are not kept on the disk.", "Leave out features or views.")

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the student, trained.

        Raises:
            OptionError: there is nothing to train on, a student or teacher does not fit, or no layers match.
            DataError: there are no batches, or the loss becomes NaN.
            MicrotomeError: a file that is named cannot be loaded.
        """
        batches = self.ready(context)
        if "dkd" in self.outputs and (context.sigmoid or network.outputs[0].shape[0] == 1):
            raise OptionError("dkd is for classes that exclude one another.", "Leave it out of outputs.")
        if self.hard_steps and context.label_loss is None:
            raise OptionError("hard_steps asks for references, and there are none.", "Label train cases, or set 0.")
        begun = self._student(network, context)
        teachers = self._teachers(network, context)
        student = Trainable(begun, norms=self.learns_norms(begun))
        course = _Course(self.steps if self.hard_steps else None, student)
        with self._known(context) as known:
            teacher = Teacher(teachers, sigmoid=context.sigmoid, known=known)
            imitation = self._imitation(begun, student, teacher, context)
            curve = self.trainer(
                student,
                [*self.groups(student), {"params": student.helpers(), "lr": self.rate * 0.1, "weight_decay": 0.0}],
                self._loss(imitation, course, context),
                context,
                steps=self.steps + self.hard_steps,
                teacher=None if not self.asks(begun) else lambda x: None if course.hard else teacher(x),
                before_step=course,
            ).train(batches if self.views is None else repeated(batches, self.views))
            if known is not None:
                known.clear()
        trained = replace(student.freeze(), history=network.history)
        return self.done(trained, {"training": curve, "parameters": [network.parameters, trained.parameters]})

    def _student(self, network: Network, context: Context) -> Network:
        """Return the student before training."""
        anew = self.init == "fresh" or (self.init == "auto" and self.width < 1)
        found = network
        if self.student:
            found = _fitting(_loaded(self.student, context, "student"), network, f"the student {self.student}")
            if QUANTIZED in found.state:
                raise OptionError(f"the student {self.student} is quantized.", "Give the network in float.")
        elif self.width < 1:
            found = narrowed(network, self.width, by_size=not anew, multiple=self.multiple)
        weights_are_free(found)
        if not anew:
            return found
        return replace(fresh(found, self.seed), state=found.state - {SPARSE})

    def _teachers(self, network: Network, context: Context) -> list[Network]:
        if not self.teachers:
            return [context.teacher.to(network.device) if context.teacher else without_quantizers(network)]
        return [
            _fitting(_loaded(name, context, "teacher"), network, f"the teacher {name}").to(network.device)
            for name in self.teachers
        ]

    def _imitation(self, begun: Network, student: Trainable, teacher: Teacher, context: Context) -> Imitation:
        """Return how both are compared; taps are put into student and teacher."""
        pairs = []
        if self.features:
            theirs = teacher.networks[0]
            ours = replace(begun, graph_module=student.module)
            for position, (here, there) in enumerate(matched(begun, theirs, self.layers)):
                helper = regressor(here.channels, there.channels, len(here.size)).to(begun.device)
                student.help(f"regressor_{position}", helper)
                taps = [
                    tap(one.graph_module, next(layer for layer in one.layers if layer.name == place.layer))
                    for one, place in ((ours, here), (theirs, there))
                ]
                pairs.append(Pair(taps[0], taps[1], helper))
            student.module.recompile()
            theirs.graph_module.recompile()
        return Imitation(
            self.outputs,
            self.temperature,
            self.weighting,
            context.sigmoid,
            self.features,
            self.feature_weight,
            pairs,
        )

    def _loss(
        self, imitation: Imitation, course: _Course, context: Context
    ) -> Callable[[Tensor, Any, Tensor | None], Tensor]:
        def imitated(output: Tensor, wanted: Tensor, target: Tensor | None) -> Tensor:
            said = context.loss or imitation.of_outputs
            lost = said(output, wanted, target)
            return lost + imitation.of_features(wanted, target) if imitation.pairs else lost

        mixed, label_loss = self.loss_of(imitated, context), context.label_loss

        def loss(output: Tensor, wanted: Tensor, target: Tensor | None) -> Tensor:
            if not course.hard:
                return mixed(output, wanted, target)
            if target is None or label_loss is None:
                raise OptionError("hard_steps asks for references with the images.", "Label train cases, or set 0.")
            return label_loss(output, target)

        return loss

    @contextmanager
    def _known(self, context: Context) -> Iterator[SoftLabels | None]:
        """Yield where the teachers' answers are kept: beside the checkpoint, or for this training alone."""
        if self.views is None:
            yield None
        elif context.checkpoint is not None:
            yield SoftLabels(context.checkpoint.with_suffix(".answers"))
        else:
            with tempfile.TemporaryDirectory(prefix="microtome-") as folder:
                yield SoftLabels(Path(folder) / "answers")


class _Course:
    """Whether a student in training is past what it learns from teachers."""

    def __init__(self, soft: int | None, student: Trainable) -> None:
        self._soft, self._student, self._place = soft, student, 0

    def __call__(self, place: int) -> None:
        """Take note of where training is."""
        self._place = place

    @property
    def hard(self) -> bool:
        """Whether only references count; looks at tuning images always compare with the teacher."""
        return self._soft is not None and self._place >= self._soft and self._student.module.training


def _loaded(name: str, context: Context, what: str) -> Network:
    if context.load is None:
        raise OptionError(f"the {what} {name} cannot be loaded here.", f"Leave the {what} out.")
    return context.load(name)


def _fitting(other: Network, network: Network, what: str) -> Network:
    """Check that a network takes the parent's inputs and gives as many channels.

    Raises:
        OptionError: it does not.
    """
    for side, theirs, ours in (("input", other.inputs, network.inputs), ("output", other.outputs, network.outputs)):
        if len(theirs) != len(ours):
            raise OptionError(f"{what} has {len(theirs)} {side}s, the parent {len(ours)}.", "They must be the same.")
        for one, wanted in zip(theirs, ours, strict=True):
            if _channels(one.shape) != _channels(wanted.shape) or len(one.shape) != len(wanted.shape):
                raise OptionError(
                    f"{what} has an {side} of shape {one.shape} where the parent's has {wanted.shape}.",
                    "Classes and channels must be the same.",
                )
    if [port.name for port in other.inputs] != [port.name for port in network.inputs]:
        renamed = tuple(replace(a, name=b.name) for a, b in zip(other.inputs, network.inputs, strict=True))
        return replace(other, inputs=renamed)
    return other


def _channels(shape: Sequence[int]) -> int:
    return shape[0] if shape else 0
