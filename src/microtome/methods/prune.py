"""Structured pruning: whole channels, heads and blocks go, and the network becomes a smaller dense one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from microtome.core import unit_importance
from microtome.core.distillation import divergence
from microtome.errors import DataError, OptionError
from microtome.graph import edit
from microtome.graph.choosing.block_removal import remove_least_blocks
from microtome.graph.choosing.unit_removal import Of, UnitRemoval
from microtome.graph.network import Network
from microtome.graph.structure.costs import columns_left
from microtome.graph.structure.groups import ChannelGroup, channel_groups
from microtome.graph.structure.refitting import refit_layers
from microtome.graph.structure.residuals import removable_blocks
from microtome.graph.watching import unit_scores
from microtome.graph.watching.gradients import chosen_objective, some
from microtome.graph.watching.grams import grams
from microtome.graph.watching.macs import layer_sizes
from microtome.methods.base import EMPTY, Context, Method, Phase, State, check_names

MOST_REASONS = 50
BY_WEIGHT = {"l1": unit_importance.l1, "l2": unit_importance.l2, "fpgm": unit_importance.geometric_median}


@dataclass(frozen=True)
class Prune(Method):
    """Remove the units that matter least: channels with all that makes and reads them, heads of attention, or blocks.

    Units go one after the other, always those that lose the least importance per weight (multiplication, millisecond)
    saved, until the share is reached. Gradients, where importance asks for them, are those of the loss on labels;
    without labels those of the divergence from what the network says now (Fisher matrix).

    Attributes:
        share: of the network's present cost that shall go.
        of: which cost: `parameters`, `macs` of layers, or `ms`, the latency measured on the target.
        importance: of a unit, see `core.unit_importance`: of its weights (`l1`, `l2`, `fpgm`), its norm (`bn_scale`),
            its gate's gradient (`taylor`, `fisher`), its output on images (`activation`, `hrank`), or `random`. All but
            `taylor`, `fisher` and `bn_scale` count relative to the group's mean.
        scope: units compare across the network (`global`), or each group loses the same share (`uniform`).
        blocks: remove whole blocks in place of units: residual branches, and layers between values of one kind, by what
            their absence changes in the output.
        round_to: groups that lose units keep a multiple of this; of half of it, a quarter, … where they are narrower
            than two of it. `auto` measures 1, 8, 16 and 32 on the target, and takes what saves most time for its size.
        most: share of a group's units that may go.
        least: units of a group that stay.
        skip: names of groups, or of layers, that are left alone; of blocks with `blocks`.
        repair: layers that read what is removed are refitted, so that their output on images changes least.
        threshold: of `activation`: magnitude that counts, in root mean squares of all that a reader sees.
        images: batches that are looked at, at most.
        damping: of second moments, for `repair`: share of their mean diagonal that is added to it.
        positions: output positions drawn per batch and layer, likewise.
        widest: columns whose second moments are kept whole, likewise; a wider layer falls apart into blocks.
        seed: of what is drawn.
    """

    share: float = 0.3
    of: Literal["parameters", "macs", "ms"] = "parameters"
    importance: Literal["l1", "l2", "bn_scale", "taylor", "fisher", "activation", "hrank", "fpgm", "random"] = "taylor"
    scope: Literal["global", "uniform"] = "global"
    blocks: bool = False
    round_to: int | Literal["auto"] = 1
    most: float = 0.9
    least: int = 1
    skip: frozenset[str] = frozenset()
    repair: bool = True
    threshold: float = 0.05
    images: int = 32
    damping: float = 0.01
    positions: int = 1024
    widest: int = 1024
    seed: int = 0

    phase: ClassVar[Phase] = Phase.STRUCTURE
    leaves: ClassVar[State] = frozenset({"pruned"})
    again: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse shares that make no sense."""
        if not 0 < self.share < 1 or not 0 < self.most <= 1:
            raise OptionError(f"shares lie between 0 and 1: that to remove is {self.share}, the most {self.most}.")
        if min(self.least, self.images, self.positions, self.widest) < 1 or self.damping <= 0:
            raise OptionError("pruning leaves one unit, and needs an image, a position, a column, a damping above 0.")
        if self.round_to != "auto" and self.round_to < 1:
            raise OptionError(f"widths cannot be multiples of {self.round_to}.", "Write 1, 8, 16, or auto.")

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the narrower network.

        Raises:
            OptionError: nothing is left to prune, or less than the share; `skip` names nothing; or the latency is asked
                for and cannot be measured.
            DataError: there are no images where they are asked for, or they make values NaN.
        """
        if context.latency is None and (self.of == "ms" or self.round_to == "auto"):
            raise OptionError(
                "the latency on the target cannot be measured here.", "Choose of = macs, and a number for round_to."
            )
        without = self._without_blocks if self.blocks else self._without_units
        pruned, record = without(network, context)
        sizes = {
            "parameters": [network.parameters, pruned.parameters],
            "macs": [_macs(network), _macs(pruned)],
        }
        return self.done(pruned, record | sizes)

    def _without_blocks(self, network: Network, context: Context) -> tuple[Network, dict[str, Any]]:
        """Return the network without the blocks whose absence changes the output least, and what went."""

        def cost(one: Network) -> float:
            if self.of == "ms":
                assert context.latency is not None
                return context.latency(one)
            return float(one.parameters if self.of == "parameters" else _macs(one))

        @torch.no_grad()
        def lost(one: Network) -> float:
            batches = some(context.calibration, self.images)
            found = [float(divergence(one(x), network(x), sigmoid=context.sigmoid)) for x in batches]
            if not found:
                raise DataError("there are no calibration images.", "Give at least one training case.")
            return sum(found) / len(found)

        check_names(self.skip, (block.name for block in removable_blocks(network)), "block")
        found = remove_least_blocks(network, self.share, cost=cost, lost=lost, skip=self.skip)
        if found.saved < self.share:
            raise OptionError(
                f"only {found.saved:.1%} of the {self.of} lie in blocks that can be removed."
                if found.gone
                else "nothing is left to prune: the network has no block that can be removed.",
                "Lower share, or prune channels instead.",
            )
        return found.network, {"blocks": {name: round(value, 6) for name, value in found.gone.items()}}

    def _without_units(self, network: Network, context: Context) -> tuple[Network, dict[str, Any]]:
        """Return the network without the channels and heads that matter least, and what went."""
        groups, reasons = self._free(network)
        scores = self._scores(network, list(groups.values()), context) if groups else {}
        silent = f"{self.importance} says nothing of its units"
        reasons |= {name: silent for name in groups if name not in scores}
        groups = {name: group for name, group in groups.items() if name in scores}
        search = UnitRemoval(network, groups, scores, self.share, self.scope, self.least, self.most)
        if not any(pool.portions() for pool in search.pools().values()):
            why = next((f" ({name}: {reason})" for name, reason in reasons.items()), "")
            raise OptionError(
                f"nothing is left to prune: none of {len(reasons) + len(groups)} groups can lose a unit{why}.",
                "Raise most, lower least, or skip fewer." if groups else "Leave this method out, or try blocks.",
            )
        record: dict[str, Any] = {}
        step = self.round_to
        if step == "auto":
            assert context.latency is not None
            of: Of = "parameters" if self.of == "parameters" else "macs"
            step, record["widths"] = search.best_step(of, context.latency)
        if self.of == "ms":
            assert context.latency is not None
            gone, record["latency"] = search.by_latency(step, context.latency)
        else:
            gone = search.by_size(step, self.of)
        record["pruned"] = {name: [groups[name].units, groups[name].units - len(units)] for name, units in gone.items()}
        named = [{"group": name, "reason": reason} for name, reason in reasons.items()]
        record["not_pruned"] = named[:MOST_REASONS]
        whole = self._repaired(network, groups, gone, context) if self.repair else network
        return search.without(gone, whole), record

    def _free(self, network: Network) -> tuple[dict[str, ChannelGroup], dict[str, str]]:
        """Return the groups that may lose units, and why the others may not."""
        groups = channel_groups(network)
        check_names(self.skip, (name for group in groups for name in (group.name, *group.layers)), "group or layer")
        reasons = {group.name: group.reason for group in groups if group.reason is not None}
        for group in groups:
            if group.name not in reasons and self.skip & {group.name, *group.layers}:
                reasons[group.name] = "it is skipped"
        return {group.name: group for group in groups if group.name not in reasons}, reasons

    def _scores(self, network: Network, groups: Sequence[ChannelGroup], context: Context) -> dict[str, Tensor]:
        """Return the importance of each unit, for the groups of which it says something."""
        by = self.importance
        if by in ("taylor", "fisher"):
            objective, batches = chosen_objective(
                training=context.training,
                calibration=context.calibration,
                label_loss=context.label_loss,
                sigmoid=context.sigmoid,
                seed=self.seed,
            )
            sums = unit_scores.gate_gradients(network, groups, some(batches, self.images), objective)
            if by == "taylor":
                return {name: unit_importance.first_order(found.mean_size) for name, found in sums.items()}
            return {name: unit_importance.second_order(found.mean_square) for name, found in sums.items()}
        if by == "bn_scale":
            scales = {group.name: unit_scores.norm_scales(network, group) for group in groups}
            return {name: found for name, found in scales.items() if found is not None}
        if by in ("activation", "hrank"):
            images = some(context.calibration, self.images)
            scores = unit_scores.output_scores(network, groups, images, by=by, threshold=self.threshold)
        elif by == "random":
            generator = torch.Generator().manual_seed(self.seed)
            scores = {group.name: torch.rand(group.units, generator=generator) for group in groups}
        else:
            measure = BY_WEIGHT[by]
            scores = {group.name: measure(unit_scores.weight_rows(network, group)).cpu() for group in groups}
        return {name: unit_importance.normalised(found) for name, found in scores.items()}

    def _repaired(
        self, network: Network, groups: Mapping[str, ChannelGroup], gone: Mapping[str, Sequence[int]], context: Context
    ) -> Network:
        """Return the network, still whole, with the readers of what goes refitted to what stays."""
        network = network.copy()
        masks = columns_left(network, list(groups.values()), gone)
        layers = [layer for layer in network.layers if str(layer.weight.target) in masks]
        found = grams(
            network,
            layers,
            context.calibration,
            widest=self.widest,
            positions=self.positions,
            centred=True,
            seed=self.seed,
        )
        for gram in found:
            mask = masks[gram.name]
            if "sparse" in network.state:
                mask = mask & (network.tensor(gram.name) != 0)
            refit_layers(network, gram, mask, self.damping)
        edit.finish(network.graph_module)
        return network


def _macs(network: Network) -> int:
    return sum(size.macs for size in layer_sizes(network))
