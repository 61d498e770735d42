"""What chains in place of layers cost in time on a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from microtome.graph.choosing.rank_options import Option
from microtome.graph.network import Network
from microtome.graph.watching.macs import layer_sizes

NOISE = 0.01  # of measured times: what is slower by less is not slower


def measured(
    network: Network,
    options: Mapping[str, Sequence[Option]],
    *,
    latency: Callable[[Network], float],
    build: Callable[[Sequence[Option]], Network],
) -> tuple[float, dict[str, float], dict[str, list[float]]]:
    """Return the time of a network, of each of its layers, and of each of their options, in milliseconds.

    A layer's own time is its share of the network's by its multiplications. An option's is that, plus what the network
    takes longer with it. Of each kind of an option only those with most and with fewest multiplications are measured,
    in the whole network, and what lies between them lies between their times.

    Args:
        network: as it is.
        options: by layer.
        latency: of a network.
        build: the network with some options.
    """
    total = latency(network)
    every = sum(size.macs for size in layer_sizes(network)) or 1
    whole = {name: total * own[0].site.macs / every for name, own in options.items()}
    costs = {}
    for name, own in options.items():
        found = dict.fromkeys(range(len(own)), 0.0)
        for kind in {option.kind for option in own}:
            places = sorted((p for p, option in enumerate(own) if option.kind == kind), key=lambda p: own[p].macs)
            few, many = own[places[0]], own[places[-1]]
            low = latency(build([few]))
            high = low if few is many else latency(build([many]))
            span = max(many.macs - few.macs, 1)
            for place in places:
                time = low + (high - low) * (own[place].macs - few.macs) / span
                found[place] = max(0.0, whole[name] + time - total)
        costs[name] = [found[place] for place in range(len(own))]
    return total, whole, costs


def not_slower(
    chosen: Sequence[Option],
    *,
    latency: Callable[[Network], float],
    build: Callable[[Sequence[Option]], Network],
    measurements: int,
) -> tuple[list[Option], dict[str, str]]:
    """Take chains out again without which the network is faster; all, where it stays slower than without any.

    They are tried one after the other, and in groups of neighbours where there are more than measurements.

    Args:
        chosen: one option per layer, in order.
        latency: of a network, in milliseconds.
        build: the network with some options.
        measurements: at most, beside those of the network with all and with none.

    Returns:
        What is left, and why each other layer stays as it is.
    """
    if not chosen:
        return [], {}
    left, reasons = list(chosen), dict[str, str]()
    now, before = latency(build(left)), latency(build([]))
    size = -(-len(chosen) // measurements)
    for start in range(0, len(chosen), size):
        group = chosen[start : start + size]
        without = [option for option in left if option not in group]
        time = latency(build(without)) if without else before
        if time < now * (1 - NOISE):
            left, now = without, time
            reasons.update({option.site.layer.name: "its chain is slower on the target" for option in group})
    if now > before * (1 + NOISE):
        reasons.update({option.site.layer.name: "all chains together are slower on the target" for option in left})
        left = []
    return left, reasons
