"""Which blocks to remove, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from microtome.graph.network import Network
from microtome.graph.structure.residuals import removable_blocks, remove_blocks

TINY = 1e-12  # of the cost: what saves nothing is divided by it, and goes last


@dataclass(frozen=True, eq=False)
class Shortened:
    """A network without some of its blocks.

    Attributes:
        network: what is left.
        gone: by the name of each block that went, in order, what the network had lost by then.
        saved: share of the cost.
    """

    network: Network
    gone: dict[str, float]
    saved: float


def remove_least_blocks(
    network: Network,
    share: float,
    *,
    cost: Callable[[Network], float],
    lost: Callable[[Network], float],
    skip: Collection[str] = (),
) -> Shortened:
    """Remove the block that loses least per cost saved, again and again, until a share of the cost is saved.

    Each block is tried alone on the network as it then is.

    Args:
        network: it is not changed.
        share: of its cost.
        cost: of a network.
        lost: what a network has lost against the one given.
        skip: names of blocks that stay.

    Returns:
        What is left; less is saved than the share where there are no more blocks.
    """
    start = now = cost(network)
    gone: dict[str, float] = {}
    while start - now < share * start:
        names = [block.name for block in removable_blocks(network) if block.name not in skip]
        if not names:
            break
        tried = [_Trial(name, without, lost(without), cost(without)) for name, without in _each(network, names)]
        best = min(tried, key=lambda one: one.loss / max(now - one.cost, TINY * start))
        network, now, gone[best.name] = best.network, best.cost, best.loss
    return Shortened(network, gone, 1 - now / start)


@dataclass(frozen=True, eq=False)
class _Trial:
    name: str
    network: Network
    loss: float
    cost: float


def _each(network: Network, names: Iterable[str]) -> Iterator[tuple[str, Network]]:
    for name in names:
        yield name, remove_blocks(network, [name])
