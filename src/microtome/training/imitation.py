"""The loss of a student that imitates a teacher: in what it says, and in how it comes to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from microtome.core import feature_distillation as features
from microtome.core.distillation import divergence, soft_dice_loss
from microtome.core.output_distillation import (
    boundary_weights,
    channelwise,
    class_weights,
    decoupled,
    logit_error,
)
from microtome.graph.learning.taps import Tap

Form = Literal["kl", "dice", "mse", "channel", "dkd"]
Feature = Literal["hint", "attention", "similarity", "relation", "affinity", "variation"]
Weighting = Literal["none", "regions", "borders", "both"]
BORDER = 4.0  # what a place near a border weighs beyond the others
BEYOND_SPACE = frozenset({"similarity", "relation"})  # these compare whole images: sizes may differ


@dataclass(frozen=True, eq=False)
class Pair:
    """Feature maps of student and teacher that belong together.

    Attributes:
        student: where the student's is kept.
        teacher: likewise.
        regressor: brings the student's channels to the teacher's, for hints.
    """

    student: Tap
    teacher: Tap
    regressor: nn.Module


@dataclass(frozen=True, eq=False)
class Imitation:
    """How student and teacher are compared.

    Attributes:
        outputs: how outputs are compared; the terms are added. Of outputs without axes of space, maps have no part.
        temperature: of the logits.
        weighting: of places in space: every class of a batch alike, more near borders, or both.
        sigmoid: channels are probabilities of their own.
        features: how feature maps are compared; the terms are added, and are a mean over pairs.
        feature_weight: of the sum of them.
        pairs: the maps.
    """

    outputs: Sequence[Form]
    temperature: float
    weighting: Weighting
    sigmoid: bool
    features: Sequence[Feature] = ()
    feature_weight: float = 1.0
    pairs: Sequence[Pair] = ()

    def of_outputs(self, student: Tensor, teacher: Tensor, target: Tensor | None) -> Tensor:
        """Return what the student's logits lose against the teacher's."""
        maps = student.ndim > 2
        weights = self._weights(teacher, target) if maps and self.weighting != "none" else None
        found = student.new_zeros(())
        for form in self.outputs:
            if form == "kl":
                found = found + divergence(
                    student, teacher, sigmoid=self.sigmoid, temperature=self.temperature, weights=weights
                )
            elif form == "mse":
                found = found + logit_error(student, teacher, weights)
            elif form == "dkd":
                found = found + decoupled(student, teacher, self._labels(teacher, target), temperature=self.temperature)
            elif form == "dice" and maps:
                found = found + soft_dice_loss(student, teacher, sigmoid=self.sigmoid)
            elif form == "channel" and maps:
                found = found + channelwise(student, teacher, temperature=self.temperature)
        return found

    def of_features(self, teacher: Tensor, target: Tensor | None) -> Tensor:
        """Return what the student's feature maps lose; both networks ran on the batch just before."""
        total = teacher.new_zeros(())
        for pair in self.pairs:
            ours, theirs = pair.student.taken().float(), pair.teacher.taken().float()
            for form in self.features:
                total = total + self._compared(form, pair, ours, theirs, teacher, target)
        return self.feature_weight * total / max(len(self.pairs), 1)

    def _compared(
        self, form: Feature, pair: Pair, ours: Tensor, theirs: Tensor, teacher: Tensor, target: Tensor | None
    ) -> Tensor:
        if form not in BEYOND_SPACE and ours.shape[2:] != theirs.shape[2:]:
            ours, theirs = _same_size(ours, theirs)
        if form == "hint":
            return features.hint(pair.regressor(ours), theirs)
        if form == "variation":
            return features.variation(ours, theirs, self._labels(teacher, target))
        return getattr(features, form)(ours, theirs)  # type: ignore[no-any-return]

    def _weights(self, teacher: Tensor, target: Tensor | None) -> Tensor:
        labels = self._labels(teacher, target)
        weights = torch.ones_like(labels, dtype=torch.float32)
        if self.weighting in ("regions", "both"):
            weights = weights * class_weights(labels, int(labels.max()) + 1)
        if self.weighting in ("borders", "both"):
            weights = weights * boundary_weights(labels, extra=BORDER)
        return weights

    def _labels(self, teacher: Tensor, target: Tensor | None) -> Tensor:
        """Return the class of each place: the reference's where there is one, the teacher's elsewhere."""
        apart = self.sigmoid or teacher.shape[1] == 1
        best, said = teacher.max(1)
        said = (said + 1) * (best > 0) if apart else said
        if target is None or target.is_floating_point() or target.shape != said.shape:
            return said
        return torch.where(target >= 0, target, said)


def regressor(student: int, teacher: int, dims: int) -> nn.Module:
    """Return what brings maps from one number of channels to another: a 1×1 convolution, or nothing."""
    if student == teacher:
        return nn.Identity()
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    return kind(student, teacher, 1)


def _same_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Average the larger of two maps down to the size of the smaller."""
    size = [min(a, b) for a, b in zip(one.shape[2:], other.shape[2:], strict=True)]
    pool: Callable[[Tensor, list[int]], Tensor] = getattr(functional, f"adaptive_avg_pool{len(size)}d")
    return pool(one, size), pool(other, size)
