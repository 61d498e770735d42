"""Running a graph node by node, to look at or to replace what flows on its edges."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor
from torch.fx import Node

from microtome.errors import DataError
from microtome.graph import edit
from microtome.graph.network import Batch, Network
from microtome.graph.operators import constant_source, kind
from microtome.graph.watching.eager import Eager


class Watcher(Protocol):
    """Keeps of the values that it sees what it needs, such as their range."""

    def update(self, values: Tensor) -> None:
        """Look at some values; raises ValueError where one is NaN or infinite."""


class Observed(Eager):
    """Runs the network and calls `look(node, value)` for the nodes asked for; values are freed after their last use."""

    def __init__(self, network: Network, nodes: Collection[Node], look: Callable[[Node, Tensor], None]) -> None:
        """Prepare to watch `nodes`; `look` must not keep the values."""
        super().__init__(network, nodes)
        self._nodes = set(nodes)
        self._look = look

    def run_node(self, n: Node) -> Any:
        """Run one node."""
        value = super().run_node(n)
        if n in self._nodes:
            self._look(n, value)
        return value


class Unquantized(Eager):
    """Runs the network with its quantizers as identities and calls `look(node, inputs, value)` at the nodes asked for.

    `inputs` are the node's real arguments, constants included.
    """

    def __init__(
        self,
        network: Network,
        nodes: Collection[Node],
        look: Callable[[Node, tuple[Any, ...], Tensor], None],
        *,
        weights_only: bool = False,
    ) -> None:
        """Prepare to watch `nodes`; `look` must not keep the values. With `weights_only`, activations are quantized."""
        super().__init__(network, nodes)
        self._nodes = set(nodes)
        self._look = look
        self._weights_only = weights_only

    def run_node(self, n: Node) -> Any:
        """Run one node."""
        if n in self._needless:
            return None
        arguments, _ = self.fetch_args_kwargs_from_env(n)
        if kind(n) == "quantizer" and (not self._weights_only or constant_source(n) is not None):
            return arguments[0]
        value = super().run_node(n)
        if n in self._nodes:
            self._look(n, arguments, value)
        return value


def watch(network: Network, watchers: Mapping[Node, Watcher], batches: Iterable[Batch]) -> None:
    """Feed to watchers, by node, the values that flow there in a run over all batches (N, C, *S).

    Raises:
        DataError: there are no batches, or a value is NaN or infinite.
    """

    def look(node: Node, value: Tensor) -> None:
        try:
            watchers[node].update(value)
        except ValueError as error:
            raise DataError(
                f"a calibration image makes {node.name} NaN or infinite.", "Check the pre-processing and the weights."
            ) from error

    watched = Observed(network, watchers, look)
    count = 0
    for batch in batches:
        watched(batch)
        count += 1
    if not count:
        raise DataError("there are no calibration images.", "Give at least one training case.")


def without_quantizers(network: Network) -> Network:
    """Return a copy that computes in float: quantizers are taken out, the weights stay as they are."""
    network = network.copy()
    graph = network.graph_module.graph
    for node in [node for node in graph.nodes if kind(node) == "quantizer"]:
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    edit.finish(network.graph_module)
    return network
