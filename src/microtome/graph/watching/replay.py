"""Running a network from the middle on, again and again, with one value replaced."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from microtome.errors import ModelError
from microtome.graph import edit
from microtome.graph.network import Batch, Network, first

Resume = Callable[[Tensor], Tensor]
"""Takes a node's value and returns the network's output, of several the first."""


def without_mutation(network: Network) -> Network:
    """Return a copy in which operators that write into their input are replaced by those that do not.

    What reads the input after such an operator reads its result instead. Names of layers stay.
    """
    network = network.copy()
    graph = network.graph_module.graph
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.is_mutable:
            continue
        name = schema.name.split("::")[-1].removesuffix("_")
        packet = getattr(torch.ops.aten, name, None)
        if packet is None:
            raise ModelError(f"{node.name} writes into its input, and {name} has no form that does not.")
        node.target = getattr(packet, schema.overload_name or "default")
        given = node.args[0]
        assert isinstance(given, Node)
        given.replace_all_uses_with(node, delete_user_cb=lambda user, start=order[node]: order[user] > start)  # type: ignore[misc]
    edit.finish(network.graph_module)
    return network


class Replay:
    """Stops at some nodes of a network and lets the rest be run with other values there.

    At each stop only those values are in memory that the rest of the network still reads.
    """

    def __init__(self, network: Network, nodes: Collection[Node]) -> None:
        """Prepare to stop at `nodes`; the network must be one of `without_mutation`."""
        self._network = network
        self._run, self._rest = (Interpreter(network.graph_module) for _ in range(2))
        self._run.extra_traceback = self._rest.extra_traceback = False
        self._nodes = list(network.graph_module.graph.nodes)
        self._stops = set(nodes)

    def __call__(self, x: Batch) -> Iterator[tuple[Node, tuple[Any, ...], Resume]]:
        """Yield at each stop the node, its arguments, and what runs the rest; use it before the next stop.

        Run it without gradients.
        """
        env: dict[Node, Any] = {}
        given = iter(self._network.arguments(x))
        for position, node in enumerate(self._nodes):
            if node.op == "output":
                return
            if node.op == "placeholder":
                env[node] = next(given)
                continue
            self._run.env = env
            if node in self._stops:
                arguments, _ = self._run.fetch_args_kwargs_from_env(node)

                def resume(value: Tensor, position: int = position, node: Node = node) -> Tensor:
                    return self._finish(position, {**env, node: value})

                yield node, arguments, resume
                del arguments
            env[node] = self._run.run_node(node)
            self._forget(node, env)

    def _finish(self, position: int, env: dict[Node, Any]) -> Tensor:
        """Run what comes after a position."""
        self._forget(self._nodes[position], env)
        self._rest.env = env
        for node in self._nodes[position + 1 :]:
            if node.op == "output":
                output: Tensor = env[first(node.args[0])]
                self._rest.env = {}
                return output
            env[node] = self._rest.run_node(node)
            self._forget(node, env)
        raise AssertionError("a graph ends with its output")

    def _forget(self, node: Node, env: dict[Node, Any]) -> None:
        for dead in self._run.user_to_last_uses.get(node, ()):
            env.pop(dead, None)
