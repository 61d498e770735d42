"""Layers of low rank: each as a chain of smaller ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from microtome.core.allocation import allocate
from microtome.core.decomposition.kinds import Kind, Ranks, ranks_of_energy, ranks_of_noise, ranks_within
from microtome.errors import OptionError
from microtome.graph import edit
from microtome.graph.choosing.chain_costs import measured, not_slower
from microtome.graph.choosing.chain_sensitivity import Objective, chain_losses
from microtome.graph.choosing.rank_options import Option, Site, sites, with_moments
from microtome.graph.choosing.sensitivity import before_scores
from microtome.graph.learning.refit import refit
from microtome.graph.network import Batch, Network
from microtome.graph.watching.axis_moments import collect_axes
from microtome.graph.watching.macs import layer_sizes
from microtome.methods.base import (
    EMPTY,
    ENCODED_FIRST,
    SPARSE_FIRST,
    Batches,
    Context,
    Method,
    Phase,
    State,
    check_names,
)

DAMPING = 1e-3  # of the refit, as a share of the mean variance of what a layer sees
WIDEST = 2048  # values that a layer sees at a place; a wider one keeps its weight, and its bias keeps the mean


@dataclass(frozen=True)
class Factorize(Method):
    """Put chains of smaller layers in place of linear, convolution and transposed convolution layers.

    `svd`: two layers, the first as large as the kernel (Zhang et al., TPAMI 2016); of linear and 1×1 layers it is the
    plain one, and all kinds are. `spatial`: one along the first axis, one along the others (Jaderberg et al., BMVC
    2014). `tucker`: 1×1, a small kernel, 1×1 (Kim et al., ICLR 2016). `cp`: 1×1, depthwise along each axis, 1×1
    (Lebedev et al., ICLR 2015). `tt`: a tensor train, 1×1, dense along each axis, 1×1. `auto`: for each layer the best
    of them but `cp`.

    A layer stays where its chain would have more weights or multiplications, where it has groups, or shares its weight.
    Where the target's latency can be measured, chains that make the network slower on it are taken out again. History
    says what became of each layer, and why layers stayed.

    Attributes:
        kind: of decomposition.
        ranks: how they are found. `energy`: each layer keeps a share of its output's variance. `vbmf`: what stands out
            of the noise of the weights (Nakajima et al., JMLR 2013). `share`: each layer keeps a share of its weights.
            `budget`: the network keeps a share of its cost, and which layer pays is chosen by what the output loses,
            measured layer by layer, with the integer programme that also chooses widths of quantization.
        energy: for `energy`: 0.9 loses a tenth of the variance of each layer's output.
        share: for `share` and `budget`.
        unit: of the budget: `parameters` of the whole network, `macs` of its layers, or measured `ms`.
        candidates: for `budget`: the shares of a layer's weights that it may keep, beside all.
        objective: what is lost, for `budget`: `kl`, divergence of the probabilities, or squared `error` of the output.
        round_to: ranks are multiples of it, as far as channels allow; kernels of runtimes like 8 and 16.
        least: weights; smaller layers are left.
        skip: names of layers to leave.
        data: errors are measured in what layers give for calibration images; False: in the weights, and no images are
            read unless another setting asks for them.
        refit: fit the last layer of each chain, in order, to what the original gave on calibration images: least
            squares, one pass over the images for each.
        images: batches of calibration images that are looked at.
        positions: output positions per batch and layer.
        bytes_only: weights alone count: more multiplications and a slower network are accepted.
        measurements: of latency, at most, when chains that are slower are looked for; 0 looks for none.
        seed: of the positions.
    """

    kind: Literal["auto", "svd", "spatial", "tucker", "cp", "tt"] = "tucker"
    ranks: Literal["energy", "vbmf", "share", "budget"] = "energy"
    energy: float = 0.9
    share: float = 0.25
    unit: Literal["parameters", "macs", "ms"] = "parameters"
    candidates: tuple[float, ...] = (0.6, 0.4, 0.25, 0.16, 0.1, 0.06, 0.03, 0.015)
    objective: Objective = "kl"
    round_to: int = 8
    least: int = 2000
    skip: frozenset[str] = frozenset()
    data: bool = True
    refit: bool = True
    images: int = 16
    positions: int = 2048
    bytes_only: bool = False
    measurements: int = 24
    seed: int = 0

    phase: ClassVar[Phase] = Phase.STRUCTURE
    leaves: ClassVar[State] = frozenset({"factorized"})
    again: ClassVar[bool] = True
    not_after: ClassVar[Mapping[str, str]] = {**ENCODED_FIRST, **SPARSE_FIRST}

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        shares = [("energy", self.energy), ("share", self.share), *(("candidates", c) for c in self.candidates)]
        for name, value in shares:
            if not 0 < value <= 1:
                raise OptionError(
                    f"{name} of a factorization is a share above 0, at most 1, not {value:g}.", "Correct it."
                )
        if min(self.round_to, self.images, self.positions) < 1 or self.measurements < 0 or not self.candidates:
            raise OptionError("a factorization needs ranks, images and positions of at least 1, and candidates.")

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the network with chains in place of layers.

        Raises:
            OptionError: a layer to skip is not there; the budget is below what the smallest ranks cost, or in
                milliseconds that cannot be measured.
            DataError: images are asked for and there are none, or they make values NaN.
        """
        check_names(self.skip, (layer.name for layer in network.layers))
        batches = _First(context.calibration, self.images)
        kept: dict[str, str] = {}
        found: list[Site] = []
        for layer, site in sites(network, least=self.least, skip=self.skip):
            if isinstance(site, str):
                kept[layer.name] = site
            else:
                found.append(site)
        if self.data:
            layers = [site.layer for site in found]
            seen = collect_axes(network, layers, batches, most=self.positions, seed=self.seed)
            found = [with_moments(site, seen[site.layer.name]) for site in found]
        choose = self._within_budget if self.ranks == "budget" else self._layer_by_layer
        chosen = choose(network, found, kept, batches, context)
        if context.latency is not None and self.measurements and not self.bytes_only:
            build = partial(_built, network)
            chosen, slower = not_slower(chosen, latency=context.latency, build=build, measurements=self.measurements)
            kept.update(slower)
        result = _built(network, chosen)
        if self.refit:
            self._refit(result, network, chosen, batches)
        edit.finish(result.graph_module)
        return self.done(result, _record(network, chosen, kept))

    def _layer_by_layer(
        self, network: Network, found: Sequence[Site], kept: dict[str, str], batches: Batches, context: Context
    ) -> list[Option]:
        """Choose each layer's ranks by itself; of several kinds the one with fewest weights, or least error."""
        chosen = []
        for site in found:
            wanted = ((kind, self._ranks(site, kind)) for kind in site.kinds(self.kind))
            options = [site.option(kind, ranks) for kind, ranks in wanted if ranks is not None]
            context.progress.say(f"factorize {site.layer.name}")
            smaller = [option for option in options if self._too_large(option) is None]
            if smaller:
                chosen.append(min(smaller, key=_error if self.ranks == "share" else _weights))
            elif options:
                kept[site.layer.name] = self._too_large(options[0]) or ""
            else:
                kept[site.layer.name] = f"its smallest ranks keep more than {self.share:.3g} of its weights"
        return chosen

    def _ranks(self, site: Site, kind: Kind) -> Ranks | None:
        if self.ranks == "energy":
            return ranks_of_energy(kind, site.target, self.energy, self.round_to)
        if self.ranks == "vbmf":
            return ranks_of_noise(kind, site.kernel, self.round_to)
        return self._within(site, kind, (self.share,))[0]

    def _within(self, site: Site, kind: Kind, shares: Sequence[float]) -> list[Ranks | None]:
        """Return the ranks that shares of a layer's weights have room for."""
        shape = tuple(site.kernel.shape)
        spectra = None if kind.energies is None else kind.energies(site.target)
        return [ranks_within(kind, shape, spectra, share * site.parameters, self.round_to) for share in shares]

    def _too_large(self, option: Option) -> str | None:
        """Say what an option has more of than the layer; None if nothing."""
        site = option.site
        ranks = " and ".join(str(rank) for rank in option.ranks)
        if option.parameters >= site.parameters:
            return f"at ranks {ranks} it has {option.parameters} weights, not fewer than {site.parameters}"
        if option.macs > site.macs and not self.bytes_only:
            return f"at ranks {ranks} it has {option.macs} multiplications, more than {site.macs}"
        return None

    def _within_budget(
        self, network: Network, found: Sequence[Site], kept: dict[str, str], batches: Batches, context: Context
    ) -> list[Option]:
        """Measure what each layer loses at each candidate, and choose within the budget."""
        options: dict[str, list[Option]] = {}
        seen = before_scores(network)
        for site in found:
            own = list(self._candidates(site)) if site.layer.node in seen else []
            if own:
                options[site.layer.name] = own
            else:
                why = "no candidate has fewer weights and multiplications"
                kept[site.layer.name] = why if site.layer.node in seen else "the scores do not depend on it"
        context.progress.say(f"factorize: {sum(map(len, options.values()))} candidates in {len(options)} layers")
        chains = {name: [option.links() for option in own] for name, own in options.items()}
        losses = chain_losses(network, chains, batches, objective=self.objective, sigmoid=context.sigmoid)
        total, whole, costs = self._costs(network, options, context)
        fixed = total - sum(whole.values())
        budget = self.share * total - fixed
        try:
            picked = allocate([[whole[n], *costs[n]] for n in options], [[0.0, *losses[n]] for n in options], budget)
        except ValueError as error:
            least = fixed + sum(min(whole[n], *costs[n]) for n in options)
            raise OptionError(
                f"{self.share:.3g} of the network's {self.unit} is less than its layers need at the smallest ranks.",
                f"Allow {math.ceil(1000 * least / total) / 1000:g} or more, or smaller candidates.",
            ) from error
        chosen = []
        for (name, own), place in zip(options.items(), picked, strict=True):
            if place:
                chosen.append(own[place - 1])
            else:
                kept[name] = "the budget is better spent on it whole"
        return chosen

    def _candidates(self, site: Site) -> Iterator[Option]:
        for kind in site.kinds(self.kind):
            for ranks in dict.fromkeys(self._within(site, kind, self.candidates)):
                option = None if ranks is None else site.option(kind, ranks)
                if option is not None and self._too_large(option) is None:
                    yield option

    def _costs(
        self, network: Network, options: Mapping[str, Sequence[Option]], context: Context
    ) -> tuple[float, dict[str, float], dict[str, list[float]]]:
        """Return what the network costs, each layer as it is, and each of its options."""
        if self.unit == "ms":
            if context.latency is None:
                raise OptionError("the time on the target cannot be measured.", "Take a budget of parameters or macs.")
            return measured(network, options, latency=context.latency, build=partial(_built, network))
        sites_of = {name: own[0].site for name, own in options.items()}
        if self.unit == "macs":
            whole = {name: float(site.macs) for name, site in sites_of.items()}
            costs = {name: [float(option.macs) for option in own] for name, own in options.items()}
            return float(sum(size.macs for size in layer_sizes(network))), whole, costs
        whole = {name: float(site.parameters) for name, site in sites_of.items()}
        costs = {name: [float(option.parameters) for option in own] for name, own in options.items()}
        return float(network.parameters), whole, costs

    def _refit(self, result: Network, network: Network, chosen: Sequence[Option], batches: Batches) -> None:
        wanted = {}
        for option in chosen:
            last = option.factors[-1]
            if last.inputs * math.prod(last.weight.shape[2:]) <= WIDEST:
                wanted[f"{option.site.layer.name}.{last.name}"] = option.site.layer.name
        if wanted:
            most = self.positions
            refit(result, network, wanted, batches, damping=DAMPING, most=most, seed=self.seed)


def _error(option: Option) -> tuple[float, int]:
    return option.error, option.parameters


def _weights(option: Option) -> tuple[int, float]:
    return option.parameters, option.error


class _First:
    """The first batches, each time."""

    def __init__(self, batches: Batches, most: int) -> None:
        self._batches, self._most = batches, most

    def __iter__(self) -> Iterator[Batch]:
        return itertools.islice(iter(self._batches), self._most)


def _built(network: Network, chosen: Sequence[Option]) -> Network:
    """Return a copy with chains in place of layers."""
    result = network.copy()
    layers = {layer.name: layer for layer in result.layers}
    for option in chosen:
        edit.replace_layer(result.graph_module, layers[option.site.layer.name], option.links())
    edit.finish(result.graph_module)
    return result


def _record(network: Network, chosen: Sequence[Option], kept: Mapping[str, str]) -> dict[str, Any]:
    """Return what the history keeps, layers in order."""
    order = {layer.name: place for place, layer in enumerate(network.layers)}
    return {
        "factorized": [
            {
                "layer": option.site.layer.name,
                "kind": option.kind,
                "ranks": list(option.ranks),
                "parameters": [option.site.parameters, option.parameters],
                "macs": [option.site.macs, option.macs],
                "error": option.error,
            }
            for option in chosen
        ],
        "kept": [{"layer": name, "reason": kept[name]} for name in sorted(kept, key=order.__getitem__)],
    }
