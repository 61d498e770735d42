"""Which units of channel groups to remove: by their sizes, or by what the target gains from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from microtome.core.removal import PerUnit, Pool, remove_evenly, remove_least
from microtome.errors import OptionError
from microtome.graph.network import Network
from microtome.graph.structure.costs import prices
from microtome.graph.structure.groups import ChannelGroup
from microtome.graph.structure.removal import keep_units

WIDTHS = (1, 8, 16, 32)  # multiples of which the fastest is looked for
FASTER = 0.05  # of the time saved: less is noise, and finer widths lose less
MORE = 0.02  # of the latency, at least, is promised in addition where the last promise did not hold
ATTEMPTS = 6  # to reach a latency
SLACK = 1e-9  # of the goal: sums of floats in another order
Gone = dict[str, list[int]]
Of = Literal["parameters", "macs"]
Latency = Callable[[Network], float]


@dataclass(frozen=True, eq=False)
class UnitRemoval:
    """A search for the units that go.

    Attributes:
        network: as it is.
        groups: that may lose units, by name.
        scores: the importance of each unit, likewise.
        share: of the cost that shall go.
        scope: units compare across the network (`global`), or each group loses the same share (`uniform`).
        least: units of a group that stay.
        most: share of a group's units that may go.
    """

    network: Network
    groups: Mapping[str, ChannelGroup]
    scores: Mapping[str, Tensor]
    share: float
    scope: Literal["global", "uniform"] = "global"
    least: int = 1
    most: float = 1.0

    def pools(self, step: int = 1) -> dict[str, Pool]:
        """Return the units that may go, so that a multiple of `step` is left.

        Of groups that are narrower than two steps it is half a step, a quarter, and so on.
        """
        return {
            name: Pool(
                self.scores[name], parts=group.parts, step=_narrower(step, group), least=self.least, most=self.most
            )
            for name, group in self.groups.items()
        }

    def without(self, gone: Mapping[str, Sequence[int]], network: Network | None = None) -> Network:
        """Return a network (the search's own) without some units of its groups."""
        kept = {n: sorted(set(range(self.groups[n].units)) - set(units)) for n, units in gone.items() if units}
        return keep_units(network or self.network, kept) if kept else network or self.network

    def by_size(self, step: int, of: Of) -> Gone:
        """Return what goes until the share of the parameters, or multiplications, is saved.

        Raises:
            OptionError: less can go.
        """
        pools, groups = self.pools(step), list(self.groups.values())
        total = prices(self.network, groups, of).total
        goal = self.share * total * (1 - SLACK)
        if self.scope == "global":
            gone, saved = remove_least(pools, prices(self.network, groups, of), goal)
        else:
            gone, saved = remove_evenly(pools, lambda: prices(self.network, groups, of), goal)
        if saved < goal:
            raise self._too_little(saved / total, of)
        return gone

    def by_latency(self, step: int, latency: Latency) -> tuple[Gone, dict[str, Any]]:
        """Return what goes until the share of the measured latency is saved, and what was measured.

        What a unit of each group costs is measured with half of what may go of the group left out; as that does not
        just add up, the network itself is measured in the end, and more goes until it is fast enough.

        Raises:
            OptionError: it does not become fast enough.
        """
        pools, before = self.pools(step), latency(self.network)
        costs = {}
        for name, pool in pools.items():
            portions = pool.portions()
            units = [unit for portion in portions[: -(-len(portions) // 2)] for unit in portion]
            saved = before - latency(self.without({name: units})) if units else 0.0
            costs[name] = max(saved, 0.0) / max(len(units), 1)
        goal = wanted = self.share * before
        rows: list[dict[str, float]] = []
        for _ in range(ATTEMPTS):
            gone, promised = remove_least(pools, PerUnit(before, costs), wanted)
            saved = before - latency(self.without(gone))
            rows.append({"promised_ms": round(promised, 4), "saved_ms": round(saved, 4)})
            if saved >= goal:
                return gone, {"before_ms": round(before, 4), "steps": rows}
            if promised < wanted:
                break
            wanted += max(goal - saved, MORE * before)
        raise self._too_little(max(row["saved_ms"] for row in rows) / before, "latency")

    def best_step(self, of: Of, latency: Latency) -> tuple[int, dict[str, Any]]:
        """Return the multiple of units that saves most time for what it saves in size, and what was measured.

        For each width in question, what goes for the share asked for is left out and measured. Coarse widths overshoot
        the share, so that the time saved counts relative to the size saved. Of two that are equally good the finer one
        is taken.
        """
        groups = list(self.groups.values())
        before = latency(self.network)
        times: dict[int, float] = {}
        gains: dict[int, float] = {}
        for step in WIDTHS:
            if step > max(group.units for group in groups):
                break
            try:
                gone = self.by_size(step, of)
            except OptionError:
                continue  # too coarse for that share
            price = prices(self.network, groups, of)
            total = price.total
            for name, units in gone.items():
                price.remove(name, units)
            times[step] = latency(self.without(gone))
            gains[step] = (before - times[step]) / (total - price.total)
        chosen = 1
        if gains and max(gains.values()) > 0:
            chosen = min(step for step, gain in gains.items() if gain >= max(gains.values()) * (1 - FASTER))
        latencies = {"before": round(before, 4)} | {str(k): round(t, 4) for k, t in times.items()}
        return chosen, {"chosen": chosen, "latency_ms": latencies}

    def _too_little(self, share: float, of: str) -> OptionError:
        return OptionError(
            f"only {share:.1%} of the {of} can go, not {self.share:.1%}.",
            "Lower share; or raise most, lower least, round to less, or skip fewer.",
        )


def _narrower(step: int, group: ChannelGroup) -> int:
    while step > 1 and 2 * step > group.units:
        step //= 2
    return step
