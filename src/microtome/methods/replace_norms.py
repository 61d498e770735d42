"""Norms that look at each image, replaced by a fixed scale and shift per channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.fx import Node

from microtome.core.line_fit import LineFit
from microtome.errors import DataError, OptionError
from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.structure.norms import Line, Norm, current_line, norms, put_line
from microtome.graph.watching.observe import Unquantized
from microtome.methods.base import EMPTY, Batches, Context, Method, Phase, State, check_names

NormKind = Literal["instance", "group", "layer"]


@dataclass(frozen=True)
class ReplaceNorms(Method):
    """Put a scale and a shift per channel, fixed from calibration images, in place of norms that look at each image.

    After int8, instance, group and layer norms are most of what is left: each is two more passes over the image, which
    no layer can take in. A fixed scale and shift is a batch norm, and `fold` multiplies it into the layer before (Jacob
    et al. 2018, section 3.2). Layer norms over features go into the linear layers beside them.

    The result is not the same function: what a norm evened out from image to image stays. Training repairs it
    (`finetune`, whose teacher is the parent), and repairs more when norms go step by step: with `mix`, the network
    computes mix · norm + (1 - mix) · line, and the method runs again, with less, after each training. Lines are then
    set so that the blend changes least.

    Attributes:
        kinds: of norms: `instance`, `group`, `layer` (over the last axis).
        skip: names of norms that stay, as the history names them.
        keep_first: how many of the first stay; they see the images at full resolution.
        share: of the values that pass through norms, at most so many pass through replaced ones; those whose output
            changes least go first.
        most_error: the largest squared error of a norm's output, over its variance, with which it is replaced.
        mix: share of the norm that is left.
    """

    kinds: frozenset[NormKind] = frozenset({"instance", "group", "layer"})
    skip: frozenset[str] = frozenset()
    keep_first: int = 0
    share: float = 1.0
    most_error: float = 1.0
    mix: float = 0.0

    phase: ClassVar[Phase] = Phase.STRUCTURE
    leaves: ClassVar[State] = frozenset({"norms_replaced"})
    again: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        if not 0 <= self.mix < 1:
            raise OptionError(f"mix is the norm's share, from 0 to below 1, not {self.mix}.")
        if not 0 < self.share <= 1:
            raise OptionError(f"share lies above 0 and up to 1, not {self.share}.")
        if self.keep_first < 0 or self.most_error <= 0:
            raise OptionError("keep_first and most_error cannot be negative.", "Leave them out to replace all norms.")

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the network without the norms that could go, or with less of them.

        Raises:
            OptionError: `skip` names a norm that the network does not have.
            DataError: there are no calibration images, or one makes a value NaN or infinite.
        """
        network = network.copy()
        there = norms(network)
        check_names(self.skip, (norm.name for norm in there), "norm")
        candidates = [
            n for n in [n for n in there if n.kind in self.kinds][self.keep_first :] if n.name not in self.skip
        ]
        fits = _look(network, candidates, context.calibration)
        errors = {norm.name: _error(fits[norm.node]) for norm in candidates}
        chosen = self._chosen(candidates, fits, errors)
        for norm in chosen:
            if norm.blend is None or norm.blend.share > self.mix:
                put_line(network, norm, self._line(network, norm, fits[norm.node]), self.mix)
        edit.finish(network.graph_module)
        gone = {norm.name for norm in chosen}
        found = {
            "replaced_norms": {name: error for name, error in errors.items() if name in gone},
            "kept_norms": {norm.name: errors.get(norm.name) for norm in there if norm.name not in gone},
        }
        return self.done(network, found)

    def _chosen(
        self, candidates: Sequence[Norm], fits: Mapping[Node, LineFit], errors: Mapping[str, float]
    ) -> list[Norm]:
        """Return the norms to replace, in the order of the graph; among them those that are replaced in part."""
        values = {norm: fits[norm.node].count * norm.channels for norm in candidates}
        room = self.share * sum(values.values())
        gone = set()
        for norm in sorted(candidates, key=lambda norm: (norm.blend is None, errors[norm.name])):
            fits_in = errors[norm.name] <= self.most_error and values[norm] <= room
            if norm.blend is not None or fits_in:
                gone.add(norm)
                room -= values[norm]
        return [norm for norm in candidates if norm in gone]

    def _line(self, network: Network, norm: Norm, fit: LineFit) -> Line:
        """Return the line that takes the place of what is taken from the norm, beside what an older line has."""
        scale, shift = fit.line()
        if norm.blend is not None:
            taken, before, now = norm.blend.share - self.mix, 1 - norm.blend.share, 1 - self.mix
            older = current_line(network, norm)
            scale, shift = ((taken * new + before * old) / now for new, old in zip((scale, shift), older, strict=True))
        return Line(scale.float(), shift.float(), fit.mean.float(), fit.variance.float())


def _error(fit: LineFit) -> float:
    """Return the squared error of a norm's output over its variance, all channels together."""
    spread = float(fit.spread.sum())
    return min(1.0, float(fit.error(*fit.line()).sum()) / spread) if spread else 0.0


def _look(network: Network, watched: Sequence[Norm], batches: Batches) -> dict[Node, LineFit]:
    """Stream what norms read and make."""
    named = {norm.node: norm for norm in watched}
    fits = {node: LineFit() for node in named}

    def look(node: Node, arguments: tuple[Any, ...], value: Tensor) -> None:
        fits[node].update(named[node].rows(arguments[0]), named[node].rows(value))

    run = Unquantized(network, fits, look)
    for batch in batches if fits else ():
        run(batch)
    for node, fit in fits.items():
        if not fit.count:
            raise DataError("there are no calibration images.", "Give at least one training case.")
        if not bool(torch.isfinite(fit.spread + fit.variance).all()):
            raise DataError(
                f"a calibration image makes {named[node].name} NaN or infinite.",
                "Check the pre-processing and the weights.",
            )
    return fits
