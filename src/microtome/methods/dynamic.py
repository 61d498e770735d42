"""Dynamic quantization: weights beforehand, ranges of activations in each run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Node

from microtome.core.range_search import weight_qparams
from microtome.errors import OptionError, TargetError
from microtome.graph import edit
from microtome.graph.dynamic import insert_dynamic_quantizer
from microtome.graph.network import Network
from microtome.graph.operators import kind
from microtome.methods.base import EMPTY, FLOAT_BIASES, QUANTIZED, Context, Method, Phase, State, check_names
from microtome.types import QType

RECURRENT = ("lstm", "gru")


@dataclass(frozen=True)
class _Reader:
    """A layer: its name, its node, and the constants that are its weights."""

    name: str
    node: Node
    weights: tuple[Node, ...]


@dataclass(frozen=True)
class QuantizeDynamic(Method):
    """Quantize linear, LSTM and GRU layers without calibration data.

    Weights: per output row, symmetric. Inputs: per tensor, asymmetric, over the range that each run shows, zero
    included, so that nothing is clipped. The range is that of the whole batch. Of recurrent layers the input sequence
    and both weights of each direction are quantized; their hidden states stay in float. Where layers read the same
    value they share its quantizer.

    Source: ONNX, DynamicQuantizeLinear, and Jacob et al., CVPR 2018, section 2.1.

    Attributes:
        weight_bits: 2 to 8.
        activation_bits: 1 to 8; None leaves inputs in float.
        search_weights: look for each row's best range.
        skip: names of layers that stay in float. A recurrent layer is named after its weights' module.
    """

    weight_bits: int = 8
    activation_bits: int | None = 8
    search_weights: bool = True
    skip: frozenset[str] = frozenset()

    phase: ClassVar[Phase] = Phase.NUMBERS
    leaves: ClassVar[State] = frozenset({QUANTIZED, FLOAT_BIASES})

    def __post_init__(self) -> None:
        """Refuse widths that no kernel has."""
        activation = 8 if self.activation_bits is None else self.activation_bits
        if not 2 <= self.weight_bits <= 8 or not 1 <= activation <= 8:
            raise OptionError("dynamic quantization takes weights of 2 to 8 bits and inputs of 1 to 8.")

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the network with quantized weights and dynamic quantizers; no data is read.

        Raises:
            TargetError: the network has no linear or recurrent layer.
            OptionError: `skip` names a layer that is not there.
        """
        network = network.copy()
        readers = list(_readers(network))
        self._check(readers)
        chosen = [reader for reader in readers if reader.name not in self.skip]
        edges: dict[Node, list[Node]] = {}
        for reader in chosen:
            for source in reader.weights:
                self._quantize_weight(network, reader, source)
            value = reader.node.args[0]
            assert isinstance(value, Node)
            edges.setdefault(value, []).append(reader.node)
        if self.activation_bits is not None:
            for value, users in edges.items():
                insert_dynamic_quantizer(network.graph_module, value, users, self.activation_bits)
        edit.finish(network.graph_module)
        return self.done(network, {"grids": {"weight": "mse" if self.search_weights else "minmax"}})

    def _check(self, readers: list[_Reader]) -> None:
        check_names(self.skip, (reader.name for reader in readers), "linear or recurrent layer")
        if not readers:
            raise TargetError(
                "the network has no linear, LSTM or GRU layer to quantize dynamically.",
                "Choose a recipe that quantizes convolutions.",
            )

    def _quantize_weight(self, network: Network, reader: _Reader, source: Node) -> None:
        weight = network.tensor(str(source.target))
        qtype = QType(self.weight_bits, narrow=self.weight_bits > 2, axis=0)
        qparams = weight_qparams(weight, qtype, search=self.search_weights)
        name = reader.name if kind(reader.node) == "linear" else str(source.target)
        edit.insert_quantizer(network.graph_module, source, [reader.node], qparams, name)


def _readers(network: Network) -> Iterator[_Reader]:
    """Yield the linear layers, then the recurrent ones. Packed sequences are no networks of one image."""
    for layer in network.layers:
        if layer.op == "linear":
            yield _Reader(layer.name, layer.node, (layer.weight,))
    for node in network.graph_module.graph.nodes:
        if kind(node) in RECURRENT and isinstance(node.args[2], list | tuple):  # (x, state, weights, …)
            weights = tuple(
                part
                for part in node.args[2]
                if isinstance(part, Node) and part.op == "get_attr" and network.tensor(str(part.target)).ndim == 2
            )
            if weights:
                yield _Reader(str(weights[0].target).rpartition(".")[0], node, weights)
