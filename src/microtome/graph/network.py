"""The Network: a captured ATen graph with its weights, and everything that is asked of it."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import Parameter

from microtome.core.formats import Encoding
from microtome.errors import DataError
from microtome.graph.operators import constant_source, is_weighted, kind
from microtome.graph.quiet import quiet
from microtome.types import Port

INPUT, OUTPUT = "input", "output"  # names where the model gives none
Batch = Tensor | Mapping[str, Tensor]
"""What a network takes: (N, C, *S); of several inputs all by name."""


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
        graph_module: the ATen graph and its tensors; takes the inputs in order, and returns the output, or a tuple of
            several.
        inputs: what it takes, with the shapes that it was captured with; the image is the first.
        outputs: what it returns; the scores are the first.
        state: what methods have done to the graph so far, such as `folded` or `quantized`.
        history: one record per method: name, settings, seconds.
        notes: what the user should know, such as an output that was left out.
        formats: how weights on no affine grid were encoded, by attribute name; their decoded values are in the graph.
    """

    graph_module: GraphModule
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    state: frozenset[str] = frozenset()
    history: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = field(default=())
    formats: Mapping[str, Encoding] = field(default_factory=dict)

    def __call__(self, x: Batch) -> Tensor:
        """Run the graph and return its first output: (N, C, *S) → (N, K, *S) or (N, K).

        Raises:
            DataError: see `arguments`.
        """
        output: Tensor = first(self.graph_module(*self.arguments(x)))
        return output

    def run(self, x: Batch) -> dict[str, Tensor]:
        """Run the graph and return all outputs by name.

        Raises:
            DataError: see `arguments`.
        """
        output = self.graph_module(*self.arguments(x))
        values = output if isinstance(output, tuple) else (output,)
        return {port.name: value for port, value in zip(self.outputs, values, strict=True)}

    def arguments(self, x: Batch) -> tuple[Tensor, ...]:
        """Return what `graph_module` takes, on its device: a tensor is the only input, a mapping has all by name.

        Raises:
            DataError: an input is missing, or unknown.
        """
        given = {self.inputs[0].name: x} if isinstance(x, Tensor) else x
        names = [port.name for port in self.inputs]
        if set(given) != set(names):
            raise DataError(f"the network takes {', '.join(names)}, not {', '.join(given)}.", "Give each by its name.")
        device = self.device
        return tuple(given[name].to(device) for name in names)

    def blank(self, batch: int = 1) -> dict[str, Tensor]:
        """Return zeros for all inputs, of the shapes that the network was captured with."""
        return {port.name: torch.zeros((batch, *port.shape), device=self.device) for port in self.inputs}

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
        tensors = itertools.chain(self.graph_module.parameters(), self.graph_module.buffers())
        return next((t.device for t in tensors), torch.device("cpu"))

    @property
    def shape(self) -> tuple[int, ...]:
        """The (channels, *spatial) of the first input that the network was captured with."""
        return self.inputs[0].shape

    @property
    def dynamic(self) -> tuple[bool, ...]:
        """For the batch and each following axis of the first input, whether other sizes are allowed."""
        return self.inputs[0].dynamic

    @property
    def spatial_dims(self) -> int:
        """2 for pictures, 3 for volumes."""
        return len(self.shape) - 1

    @property
    def parameters(self) -> int:
        """Number of weights that the graph uses, each tensor counted once; no running statistics, no scales."""
        weights = {id(value): value for name in self.constants() if self.is_weight(name) for value in [self._at(name)]}
        return sum(value.numel() for value in weights.values())

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
        return self._at(name).detach()

    def is_weight(self, name: str) -> bool:
        """Whether an attribute is a parameter, not a buffer: told by itself, since what is shared has many names."""
        return isinstance(self._at(name), Parameter)

    def _at(self, name: str) -> Tensor:
        value: Any = self.graph_module
        for part in name.split("."):
            value = getattr(value, part)
        return value  # type: ignore[no-any-return]

    def fingerprint(self) -> str:
        """SHA-256 over the graph's operators and all its tensors: the same network gives the same value."""
        digest = hashlib.sha256()
        operations = 0
        labels: dict[Node, str] = {}  # names of nodes may change when a graph is saved; their order does not
        placeholders = self.graph_module.graph.find_nodes(op="placeholder")
        labels.update({node: f"input {place}" for place, node in enumerate(placeholders) if place})
        for node in self.graph_module.graph.nodes:
            if node.op == "call_function":
                settings = torch.fx.map_arg((node.args, dict(node.kwargs)), labels.get)
                digest.update(f"{node.target} {settings}".encode())
                labels[node] = f"%{operations}"
                operations += 1
            elif node.op == "get_attr":
                labels[node] = str(node.target)
            elif node.op == "output" and len(self.outputs) > 1:
                digest.update(f"{torch.fx.map_arg(node.args[0], labels.get)}".encode())
        for name, tensor in self.constants().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def first(output: Any) -> Any:
    """Return the first output of what a graph returns: one value, or a tuple of several."""
    return output[0] if isinstance(output, tuple) else output
