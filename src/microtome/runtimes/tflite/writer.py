"""Walks through a graph and writes each operator; knows in which layouts and on which grids its values are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from microtome.errors import TargetError
from microtome.graph.operators import kind
from microtome.graph.quantizers import qparams_of
from microtome.graph.watching.moments import named_arguments
from microtome.runtimes.tflite.model import Grid, Model, grid_of
from microtome.types import Array, QParams

if TYPE_CHECKING:
    from microtome.graph.network import Network

Write = Callable[["Writer", Node], None]
"""Writes one operator of the graph: reads its inputs, and puts its output."""


class Writer:
    """Writes a network, a batch of one, into a model.

    A value of three and more axes may be stored in two layouts: as in the graph, (N, C, *S), or with its channels last,
    (N, *S, C), as TensorFlow Lite wants images. It is brought into the other one where that is asked for, once.

    Attributes:
        network: what is written.
        model: what it is written into.
    """

    def __init__(self, network: Network) -> None:
        """Look at the shapes of all values."""
        self.network, self.model = network, Model()
        self._layers = {layer.node: layer.name for layer in network.layers}
        seen = _Shapes(network)
        seen.run(*network.arguments(network.blank()))
        self._shapes, self._values = seen.shapes, seen.values
        self._forms: dict[Node, dict[tuple[bool, bool], int]] = {}  # by (channels last, integers)
        self._written: set[Node] = set()

    def write(self, operators: Mapping[str, Write]) -> None:
        """Write all operators.

        Args:
            operators: by their kind.

        Raises:
            TargetError: one of them has no form in TensorFlow Lite; the error names it and its layer.
        """
        for node in self.network.graph_module.graph.nodes:
            if node in self._written or node.op != "call_function" or node not in self._shapes:
                continue
            if kind(node) == "quantizer":
                self._quantize(node)
                continue
            found = operators.get(kind(node))
            if found is None:
                raise self.refusal(node, f"the operator {kind(node)} has no form in TensorFlow Lite")
            found(self, node)

    def refusal(self, node: Node, reason: str) -> TargetError:
        """Return the error for an operator that cannot be written."""
        return TargetError(
            f"{reason} ({self.place(node)}).", "Choose --target openvino or onnxruntime, or replace that operator."
        )

    def place(self, node: Node) -> str:
        """Return where an operator stands, in words."""
        if node in self._layers:
            return f"layer {self._layers[node]}"
        modules = list((node.meta.get("nn_module_stack") or {}).values())
        return f"layer {modules[-1][0]}" if modules and modules[-1][0] else f"node {node.name}"

    def name(self, node: Node) -> str:
        """Return what an operator's output is called: the layer's name, or the node's."""
        return self._layers.get(node, node.name)

    # What is known of values

    def shape(self, node: Node) -> tuple[int, ...]:
        """Return the shape of a value in the graph's own layout."""
        return self._shapes[node]

    def number(self, value: Any) -> Any:
        """Return an argument that may be computed in the graph, such as a size, as it is."""
        if isinstance(value, Node):
            return self._values[value]
        return [self.number(one) for one in value] if isinstance(value, list | tuple) else value

    def array(self, node: Node) -> Array | None:
        """Return the values of a constant; None where it is computed."""
        if node.op != "get_attr":
            return None
        found: Array = self.network.tensor(str(node.target)).detach().cpu().numpy()
        return found

    def integer(self, node: Node) -> bool:
        """Whether a value is there in integers."""
        return any(integer for _, integer in self._forms.get(node, {}))

    def knows(self, node: Node) -> bool:
        """Whether a value has been written, or is an input."""
        return node in self._forms

    def forms(self, node: Node) -> list[tuple[bool, int]]:
        """Return the tensors in which a value is there, each with whether its channels are last."""
        return [(last, tensor) for (last, _), tensor in self._forms[node].items()]

    def is_last(self, node: Node) -> bool:
        """Whether a value is there with its channels last, and not otherwise."""
        return len(self.shape(node)) >= 3 and not any(not last for last, _ in self._forms.get(node, {}))

    def wanted(self, node: Node) -> Grid | None:
        """Return the grid on which all readers want a value; None where one wants it in float, or they differ."""
        readers = list(node.users)
        if not readers or any(kind(reader) != "quantizer" for reader in readers):
            return None
        grids = [self.grid(reader) for reader in readers]
        return grids[0] if all(grids[0].same(other) for other in grids[1:]) else None

    def grid(self, quantizer: Node) -> Grid:
        """Return the grid of a quantizer of activations.

        Raises:
            TargetError: it is narrower than 8 bits, or wider.
        """
        return self._grid(qparams_of(self.network, quantizer), quantizer)

    def fused(self, node: Node) -> tuple[int, Node]:
        """Return the activation that an operator takes into its own kernel, as the schema counts them, and its node."""
        users = list(node.users)
        if len(users) == 1:
            found = limits(users[0])
            for number, known in FUSED.items():
                if found == known:
                    self._written.add(users[0])
                    return number, users[0]
        return 0, node

    # Reading and putting values

    def read(self, node: Node, *, last: bool = False, integer: bool | None = None) -> int:
        """Return the tensor of a value in a layout.

        Args:
            node: the value.
            last: with its channels last.
            integer: in integers; False in float; None as it is, in integers where it is in both.
        """
        if node not in self._forms:
            constant = self.array(node)
            if constant is None:
                raise self.refusal(node, f"what {node.name} gives is no tensor of real numbers")
            self.put(node, self.model.constant(node.name, constant.astype(np.float32)))
        forms = self._forms[node]
        last = last and len(self.shape(node)) >= 3
        integer = self.integer(node) if integer is None else integer
        if (last, integer) not in forms:
            if (not last, integer) in forms:
                forms[last, integer] = self._turned(node, forms[not last, integer], last=last)
            else:
                assert not integer, f"{node.name} is in float"
                source = next(forms[key] for key in ((last, True), (not last, True)) if key in forms)
                turned = source if (last, True) in forms else self._turned(node, source, last=last)
                float_ = self.model.tensor(f"{self.name(node)}/float", self.model.shape(turned), "float32")
                forms[last, False] = self.model.operator("DEQUANTIZE", [turned], float_)
        return forms[last, integer]

    def put(self, node: Node, tensor: int, *, last: bool = False) -> None:
        """Note in which tensor a value is.

        Args:
            node: the value.
            tensor: of its shape, or with the channels last.
            last: whether they are.
        """
        shape = self.shape(node)
        last = last and len(shape) >= 3
        expected = moved(shape) if last else shape
        assert self.model.shape(tensor) == expected, (node.name, self.model.shape(tensor), expected)
        integer = self.model.grid(tensor) is not None
        self._forms.setdefault(node, {})[last, integer] = tensor
        self._written.add(node)

    def output(self, node: Node, *, last: bool, grid: Grid | None, shape: Sequence[int] | None = None) -> int:
        """Add the tensor of an operator's output.

        Args:
            node: the operator.
            last: whether its channels are last.
            grid: of its integers; None holds it in float.
            shape: as it is stored; None takes that of the value.
        """
        plain = self.shape(node)
        stored = shape if shape is not None else moved(plain) if last and len(plain) >= 3 else plain
        return self.model.tensor(self.name(node), stored, "float32" if grid is None else "int8", grid)

    def ints(self, *values: Any) -> int:
        """Return a constant of 32-bit integers."""
        return self.model.constant("shape", np.array(values[0] if len(values) == 1 else values, np.int32))

    def like(self, tensor: int, name: str, shape: Sequence[int]) -> int:
        """Add a tensor of the same type and grid as another."""
        grid = self.model.grid(tensor)
        return self.model.tensor(name, shape, self.model.dtype(tensor), grid)

    def reshaped(self, tensor: int, shape: Sequence[int], name: str) -> int:
        """Return a tensor in another shape, in the order of memory."""
        shape = tuple(int(size) for size in shape)
        if self.model.shape(tensor) == shape:
            return tensor
        output = self.like(tensor, name, shape)
        return self.model.operator("RESHAPE", [tensor, self.ints(list(shape))], output, newShape=list(shape))

    def transposed(self, tensor: int, order: Sequence[int], name: str) -> int:
        """Return a tensor with its axes in another order; a reshape where that moves nothing in memory."""
        shape = self.model.shape(tensor)
        turned = [shape[axis] for axis in order]
        long = [axis for axis in order if shape[axis] != 1]
        if long == sorted(long):
            return self.reshaped(tensor, turned, name)
        return self.model.operator("TRANSPOSE", [tensor, self.ints(list(order))], self.like(tensor, name, turned))

    def sliced(self, tensor: int, axis: int, start: int, stop: int, step: int, name: str) -> int:
        """Return part of a tensor along an axis; `stop` lies behind the last."""
        shape = list(self.model.shape(tensor))
        if (start, stop, step) == (0, shape[axis], 1):
            return tensor
        begin, end, strides = [0] * len(shape), list(shape), [1] * len(shape)
        begin[axis], end[axis], strides[axis] = start, stop, step
        shape[axis] = len(range(start, stop, step))
        inputs = [tensor, self.ints(begin), self.ints(end), self.ints(strides)]
        return self.model.operator("STRIDED_SLICE", inputs, self.like(tensor, name, shape))

    def joined(self, tensors: Sequence[int], axis: int, name: str) -> int:
        """Return tensors of one grid one behind the other."""
        if len(tensors) == 1:
            return tensors[0]
        shape = list(self.model.shape(tensors[0]))
        shape[axis] = sum(self.model.shape(tensor)[axis] for tensor in tensors)
        output = self.like(tensors[0], name, shape)
        return self.model.operator("CONCATENATION", tensors, output, axis=axis, fusedActivationFunction=0)

    def on(self, tensor: int, grid: Grid) -> int:
        """Return integers on another grid, rounded anew; real numbers rounded to it."""
        own = self.model.grid(tensor)
        if own is not None and own.same(grid):
            return tensor
        output = self.model.tensor(f"{self.model.name(tensor)}/rounded", self.model.shape(tensor), "int8", grid)
        if own is None:
            return self.model.operator("QUANTIZE", [tensor], output)
        # XNNPACK's QUANTIZE from integers to integers was off by a step in every seventh value of a U-Net; as a product
        # with one it is exact.
        one = self.model.constant("one", np.array([1], np.int8), grid_of(1.0, 0))
        return self.model.operator("MUL", [tensor, one], output, fusedActivationFunction=0)

    def _turned(self, node: Node, tensor: int, *, last: bool) -> int:
        rank = len(self.shape(node))
        order = [0, *range(2, rank), 1] if last else [0, rank - 1, *range(1, rank - 1)]
        return self.transposed(tensor, order, f"{self.name(node)}/{'last' if last else 'first'}")

    def _quantize(self, node: Node) -> None:
        """Write a quantizer: what is in integers on its grid already is the same value."""
        value = node.args[0]
        assert isinstance(value, Node)
        if value.op == "get_attr":
            return  # a weight: its layer writes it
        grid = self.grid(node)
        for (last, integer), tensor in list(self._forms.get(value, {}).items()):
            if integer:
                self.put(node, self.on(tensor, grid), last=last)
                return
        last = self.is_last(value)
        self.put(node, self.on(self.read(value, last=last), grid), last=last)

    def _grid(self, qparams: QParams, node: Node) -> Grid:
        qtype = qparams.qtype
        if qtype.bits != 8 or qtype.axis is not None:
            raise self.refusal(node, f"an activation of {qtype.bits} bits has no form in TensorFlow Lite: 8 bits have")
        offset = 0 if qtype.signed else 128
        scale = qparams.scale.detach().cpu().numpy().astype(np.float32)
        return Grid(scale, qparams.zero_point.detach().cpu().numpy().astype(np.int64) - offset)


def first_input(node: Node) -> Node:
    """Return what an operator reads first."""
    value = node.args[0]
    assert isinstance(value, Node)
    return value


def moved(shape: Sequence[int]) -> tuple[int, ...]:
    """Return (N, C, *S) as (N, *S, C)."""
    return (shape[0], *shape[2:], shape[1])


def axis_of(axis: int, rank: int, *, last: bool) -> int:
    """Return where an axis of (N, C, *S) is stored."""
    axis %= rank
    if not last or rank < 3:
        return axis
    return {0: 0, 1: rank - 1}.get(axis, axis - 1)


FUSED: Mapping[int, tuple[float, float | None]] = {1: (0.0, None), 2: (-1.0, 1.0), 3: (0.0, 6.0)}
"""ActivationFunctionType of the schema: RELU, RELU_N1_TO_1, RELU6, by their limits."""

Limits = tuple[float | None, float | None]


def limits(node: Node) -> Limits | None:
    """Return the lowest and the highest value that a clamp gives; None if a node is none."""
    if kind(node) in ("relu", "relu6", "relu6_"):
        return 0.0, None if kind(node) == "relu" else 6.0
    if kind(node) != "clamp":
        return None
    named = named_arguments(node)
    low, high = (named.get(one, named.get(other)) for one, other in (("min_val", "min"), ("max_val", "max")))
    return None if low is None else float(low), None if high is None else float(high)


class _Shapes(Interpreter):
    """Notes the shapes of tensors, and all other values, when a graph runs."""

    def __init__(self, network: Network) -> None:
        super().__init__(network.graph_module, garbage_collect_values=True)
        self.shapes: dict[Node, tuple[int, ...]] = {}
        self.values: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
        elif isinstance(value, list | tuple) and all(isinstance(one, Tensor) for one in value):
            self.values[n] = [tuple(one.shape) for one in value]
        else:
            self.values[n] = value
        return value

    @torch.no_grad()
    def run(self, *args: Any, **kwargs: Any) -> Any:
        return super().run(*args, **kwargs)
