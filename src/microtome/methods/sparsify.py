"""Unstructured pruning: single weights become zero, and stay it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from microtome.core import importance as scores_of
from microtome.core.columns import from_rows, rows
from microtome.core.masks import keep_largest, keep_of_each, scheduled
from microtome.core.refitting import damped, inverse_diagonal
from microtome.errors import OptionError
from microtome.graph import edit
from microtome.graph.network import Layer, Network
from microtome.graph.operators import groups, kind
from microtome.graph.structure.refitting import refit_layers
from microtome.graph.watching.gradients import GradientSums, chosen_objective, gradient_sums, labelled, some, taught
from microtome.graph.watching.grams import Gram, grams
from microtome.methods.base import EMPTY, Context, Method, Phase, State, check_names

Importance = Literal[
    "magnitude",
    "square",
    "lamp",
    "gradient",
    "taylor",
    "second_order",
    "relative",
    "obd",
    "obs",
    "movement",
]
BY_WEIGHT = {"magnitude", "square", "lamp"}
SAME = 1e-4  # relative: what folding of norms changes is less
PATTERNS = {"2:4": (2, 4), "4:8": (4, 8)}


@dataclass(frozen=True)
class Sparsify(Method):
    """Set the weights of layers that matter least to zero. Zeros that are there stay, and count.

    Zeros make a file smaller, once it is coded; no dense kernel becomes faster by them. Biases and norms are left
    alone. With labels, gradients are those of the loss on them. Without, they are those of the divergence from what
    the network says now, whose mean square is the Fisher matrix's diagonal.

    Attributes:
        share: of the weights that shall be zero, of all layers but those of `skip`; with a pattern that says it.
        importance: which go first, see `core.importance`: `magnitude` |w|, `square` w², `lamp` (magnitude that
            compares across layers), `gradient` |∂L/∂w|, `taylor` |w ∂L/∂w|, `second_order` |∂²L/∂w²|, `relative`
            |w|/√|∂²L/∂w²|, `obd` and `obs` (Optimal Brain Damage, and Surgeon layer by layer), or `movement` −w ∂L/∂w,
            which needs labels, or another network as teacher.
        scope: weights compare across layers (`global`), or each layer loses the same share (`layer`).
        pattern: `2:4` or `4:8` leaves so many of each so many consecutive input channels; layers with fewer channels
            are left alone.
        skip: names of layers that are left alone.
        keep_least: share of its weights that each layer keeps at least.
        update: weights that are left, and the bias, make up for those that go: least squares on the layer's output.
        stages: in so many steps the share is reached, each looking anew at what matters.
        schedule: of the stages: `cubic` takes most at first, `linear` equally much.
        images: batches that gradients are taken on, at most.
        damping: of second moments, for `obs` and `update`: share of their mean diagonal that is added to it.
        positions: output positions drawn per batch and layer, likewise.
        widest: columns whose second moments are kept whole, likewise.
        seed: of what is drawn.
    """

    share: float = 0.5
    importance: Importance = "magnitude"
    scope: Literal["global", "layer"] = "global"
    pattern: Literal["none", "2:4", "4:8"] = "none"
    skip: frozenset[str] = frozenset()
    keep_least: float = 0.02
    update: bool = False
    stages: int = 1
    schedule: Literal["cubic", "linear"] = "cubic"
    images: int = 32
    damping: float = 0.01
    positions: int = 1024
    widest: int = 1024
    seed: int = 0

    phase: ClassVar[Phase] = Phase.STRUCTURE
    leaves: ClassVar[State] = frozenset({"sparse"})
    again: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse shares that leave nothing."""
        if not 0 < self.share < 1 or not 0 <= self.keep_least < 1:
            raise OptionError(f"the share of zeros must lie between 0 and 1, not at {self.share}.")
        if self.pattern == "none" and self.share + self.keep_least > 1:
            raise OptionError(
                f"{self.share:.0%} of the weights cannot go where each layer keeps {self.keep_least:.0%}.",
                "Lower share, or keep_least.",
            )
        if min(self.stages, self.images, self.positions, self.widest) < 1 or self.damping <= 0:
            raise OptionError("pruning needs at least one stage, image, position and column, and a damping above 0.")

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the network with zeros among its weights.

        Raises:
            OptionError: there is nothing left to prune; `skip` names a layer that there is not; a layer would be
                empty; or the loss has no gradient.
            DataError: there are no images where importance asks for them, or they make values NaN.
        """
        network = network.copy()
        layers = self._layers(network)
        before = self._zeros(network, layers)
        for stage in range(1, (self.stages if self.pattern == "none" else 1) + 1):
            share = scheduled(stage, self.stages, before, max(before, self.share), self.schedule)
            values = {name: network.tensor(name) for name in layers}
            scores = self._scores(network, layers, context)
            for name, value in values.items():
                scores[name] = scores[name].float().masked_fill(value == 0, -torch.inf)
            masks = self._patterned(layers, scores) if self.pattern != "none" else self._masks(scores, share)
            self._apply(network, layers, {n: mask & (values[n] != 0) for n, mask in masks.items()}, context)
        after = self._zeros(network, layers)
        if after <= before:
            raise OptionError(
                f"nothing is left to prune: {before:.1%} of the weights are zero already.", "Ask for a larger share."
            )
        edit.finish(network.graph_module)
        zeros = {name: round(float((network.tensor(name) == 0).float().mean()), 4) for name in layers}
        return self.done(network, {"sparsity": {"share": round(after, 4), "layers": zeros}})

    def _layers(self, network: Network) -> dict[str, list[Layer]]:
        """Return the layers to prune by the name of their weight."""
        check_names(self.skip, (layer.name for layer in network.layers))
        found: dict[str, list[Layer]] = {}
        for layer in network.layers:
            found.setdefault(str(layer.weight.target), []).append(layer)
        found = {name: held for name, held in found.items() if not self.skip & {layer.name for layer in held}}
        if not found:
            raise OptionError("nothing is left to prune: the network has no layer with weights.", "Skip fewer layers.")
        return found

    @staticmethod
    def _zeros(network: Network, names: Mapping[str, Any]) -> float:
        """Return the share of weights that are zero."""
        values = [network.tensor(name) for name in names]
        return sum(int((v == 0).sum()) for v in values) / sum(v.numel() for v in values)

    def _scores(self, network: Network, layers: Mapping[str, list[Layer]], context: Context) -> dict[str, Tensor]:
        values = {name: network.tensor(name) for name in layers}
        if self.importance in BY_WEIGHT:
            return {name: self._by_weight(value) for name, value in values.items()}
        if self.importance == "obs":
            return {
                gram.name: self._by_surgeon(values[gram.name], gram) for gram in self._grams(network, layers, context)
            }
        sums = self._gradients(network, layers, context)
        return {name: self._by_gradient(value, sums[name]) for name, value in values.items()}

    def _by_weight(self, weight: Tensor) -> Tensor:
        if self.importance == "lamp":
            return scores_of.layer_adaptive(weight)
        return scores_of.square(weight) if self.importance == "square" else scores_of.magnitude(weight)

    def _by_gradient(self, weight: Tensor, sums: GradientSums) -> Tensor:
        if self.importance == "gradient":
            return scores_of.sensitivity(sums.mean_size)
        if self.importance == "taylor":
            return scores_of.taylor(weight, sums.mean_size)
        if self.importance == "second_order":
            return scores_of.curvature(sums.mean_square)
        if self.importance == "relative":
            return scores_of.relative_magnitude(weight, sums.mean_square)
        if self.importance == "obd":
            return scores_of.optimal_brain_damage(weight, sums.mean_square)
        return scores_of.movement(weight, sums.mean)

    def _by_surgeon(self, weight: Tensor, gram: Gram) -> Tensor:
        inverse = torch.cat([inverse_diagonal(damped(m, self.damping)) for m in gram.matrices], 1)
        scores = scores_of.optimal_brain_surgeon(rows(weight, gram.geometry).double(), inverse)
        moves = torch.cat([m.diagonal(dim1=1, dim2=2) for m in gram.matrices], 1)
        scores = scores * (moves > 0)[:, None]  # what reads nothing costs nothing: its second moment is all damping
        return from_rows(scores, gram.geometry, weight.shape)

    def _gradients(self, network: Network, names: Mapping[str, Any], context: Context) -> dict[str, GradientSums]:
        if self.importance == "movement" and not (context.label_loss and labelled(context.training)):
            teacher = (context.teacher or network).to(network.device)
            objective = taught(context.loss, teacher, sigmoid=context.sigmoid)
            batches: Iterable[Any] = context.calibration
            self._check_teacher(network, teacher, batches)
        else:
            objective, batches = chosen_objective(
                training=context.training,
                calibration=context.calibration,
                label_loss=context.label_loss,
                sigmoid=context.sigmoid,
                seed=self.seed,
            )
        return gradient_sums(network, names, some(batches, self.images), objective)

    def _check_teacher(self, network: Network, teacher: Network, batches: Iterable[Any]) -> None:
        """Refuse a teacher that says what the network says: the loss has no gradient there."""
        for x in some(batches, 1):
            with torch.no_grad():
                wanted, said = teacher(x), network(x)
            if torch.allclose(wanted, said, rtol=SAME, atol=SAME * float(wanted.abs().max())):
                raise OptionError(
                    "the loss has no gradient that movement could go by: the network is its own teacher.",
                    "Give labels; or choose taylor or obd, which then go by the network's own probabilities.",
                )

    def _grams(self, network: Network, layers: Mapping[str, list[Layer]], context: Context) -> Any:
        return grams(
            network,
            [layer for held in layers.values() for layer in held],
            context.calibration,
            widest=self.widest,
            positions=self.positions,
            centred=self.update,
            seed=self.seed,
        )

    def _masks(self, scores: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        """Return what stays of each weight."""
        for name, one in scores.items():
            best = one.flatten().topk(math.ceil(self.keep_least * one.numel())).indices
            held = best[one.flatten()[best] > -torch.inf]
            scores[name] = one.flatten().index_fill(0, held, torch.inf).reshape(one.shape)
        if self.scope == "global":
            masks = dict(zip(scores, keep_largest(list(scores.values()), share), strict=True))
        else:
            masks = {}
            for name, one in scores.items():
                most = 1 - int((one == torch.inf).sum()) / one.numel()
                (masks[name],) = keep_largest([one], min(share, most))
        for name, mask in masks.items():
            layer = name.removesuffix(".weight")
            short = not bool(mask[scores[name] == torch.inf].all())
            if short or not bool(mask.any()):
                raise OptionError(
                    f"{share:.0%} of zeros would leave {layer} with fewer than {self.keep_least:.0%} of its weights."
                    if short
                    else f"{share:.0%} of zeros would leave {layer} empty.",
                    "Lower share, raise keep_least, or choose scope = layer.",
                )
        return masks

    def _patterned(self, layers: Mapping[str, list[Layer]], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what a pattern leaves of each weight that has the channels for it."""
        kept, block = PATTERNS[self.pattern]
        masks = {}
        for name, one in scores.items():
            node = layers[name][0].node
            axis, count = (0, groups(node)) if kind(node) == "conv_transpose" else (1, 1)
            if one.shape[axis] // count >= block:
                parts = [keep_of_each(part, kept, block, axis) for part in one.chunk(count, axis)]
                masks[name] = torch.cat(parts, axis)
            else:
                masks[name] = torch.ones_like(one, dtype=torch.bool)
        return masks

    def _apply(
        self, network: Network, layers: Mapping[str, list[Layer]], masks: Mapping[str, Tensor], context: Context
    ) -> None:
        """Write the weights that are left."""
        if self.update:
            for gram in self._grams(network, layers, context):
                refit_layers(network, gram, masks[gram.name], self.damping)
            return
        for name, mask in masks.items():
            value = network.tensor(name) * mask
            edit.set_constant(network.graph_module, name, value)
            for layer in layers[name]:
                layer.weight.meta["val"] = value
