"""The Network: a captured ATen graph with its weights, and everything that is asked of it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from microtome.core.formats import Encoding
from microtome.graph.operators import constant_source, is_weighted, kind
from microtome.graph.quiet import quiet


@dataclass(frozen=True)
class Layer:
    """A convolution, transposed convolution or linear layer of the graph."""

    name: str
    op: str
    node: Node

    @property
    def weight(self) -> Node:
        """The `get_attr` node of the weight."""
        source = constant_source(self.node.args[1])
        assert source is not None
        return source


@dataclass(frozen=True, eq=False)
class Network:
    """A network as a graph. Methods map one Network to a new one; nothing changes a Network in place.

    Attributes:
        graph_module: the ATen graph and its tensors; callable.
        shape: the input's (channels, *spatial) that it was captured with.
        dynamic: for the batch and each following axis, whether other sizes are allowed.
        state: what methods have done to the graph so far, such as `folded` or `quantized`.
        history: one record per method: name, settings, seconds.
        notes: what the user should know, such as an output that was left out.
        formats: how weights on no affine grid were encoded, by attribute name; their decoded values are in the graph.
    """

    graph_module: GraphModule
    shape: tuple[int, ...]
    dynamic: tuple[bool, ...]
    state: frozenset[str] = frozenset()
    history: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = field(default=())
    formats: Mapping[str, Encoding] = field(default_factory=dict)

    def __call__(self, x: Tensor) -> Tensor:
        """Run the graph: (N, C, *S) → (N, K, *S) or (N, K)."""
        output: Tensor = self.graph_module(x)
        return output

    def copy(self) -> Network:
        """Return an independent copy whose graph may be edited."""
        with quiet():
            return replace(self, graph_module=copy.deepcopy(self.graph_module))

    def to(self, device: str | torch.device) -> Network:
        """Return a copy on another device."""
        with quiet():
            return replace(self, graph_module=copy.deepcopy(self.graph_module).to(device))

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        tensors = self.graph_module.state_dict().values()
        return next((t.device for t in tensors), torch.device("cpu"))

    @property
    def spatial_dims(self) -> int:
        """2 for pictures, 3 for volumes."""
        return len(self.shape) - 1

    @property
    def parameters(self) -> int:
        """Number of weights that the graph uses, each tensor counted once; no running statistics, no scales."""
        weights = {name for name, _ in self.graph_module.named_parameters()}
        return sum(tensor.numel() for name, tensor in self.constants().items() if name in weights)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The weighted layers in the order of execution, with names that are unique in the network."""
        seen: dict[str, int] = {}
        found = []
        for node in self.graph_module.graph.nodes:
            if is_weighted(node):
                source = constant_source(node.args[1])
                assert source is not None
                name = str(source.target).removesuffix(".weight")
                seen[name] = seen.get(name, 0) + 1
                found.append(Layer(name if seen[name] == 1 else f"{name}#{seen[name]}", kind(node), node))
        return tuple(found)

    def constants(self) -> dict[str, Tensor]:
        """Return the tensors that the graph reads, by attribute name."""
        names = {str(n.target) for n in self.graph_module.graph.nodes if n.op == "get_attr"}
        return {name: self.tensor(name) for name in sorted(names)}

    def tensor(self, name: str) -> Tensor:
        """Return a weight or buffer by its attribute name."""
        value: Any = self.graph_module
        for part in name.split("."):
            value = getattr(value, part)
        return value.detach()  # type: ignore[no-any-return]

    def fingerprint(self) -> str:
        """SHA-256 over the graph's operators and all its tensors: the same network gives the same value."""
        digest = hashlib.sha256()
        operations = 0
        labels: dict[Node, str] = {}  # names of nodes may change when a graph is saved; their order does not
        for node in self.graph_module.graph.nodes:
            if node.op == "call_function":
                settings = torch.fx.map_arg((node.args, dict(node.kwargs)), labels.get)
                digest.update(f"{node.target} {settings}".encode())
                labels[node] = f"%{operations}"
                operations += 1
            elif node.op == "get_attr":
                labels[node] = str(node.target)
        for name, tensor in self.constants().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
