"""Quantization of what attention multiplies, and of GELU outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch.fx import Node

from microtome.core.affine import qparams_from_range
from microtome.core.attention_formats import UnevenKind, UnevenSearch, uneven_grids
from microtome.core.observers import make_observer
from microtome.errors import OptionError
from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.nonuniform import insert_uneven
from microtome.graph.operators import kind
from microtome.graph.quantizers import qparams_of
from microtome.graph.structure.attention import expand_in_place, products, source
from microtome.graph.watching.observe import Watcher, watch
from microtome.methods.base import EMPTY, QUANTIZED, Context, Method, Phase, State
from microtome.types import Capabilities, ObserverName, OperatorSupport, QType

SoftmaxGrid = Literal["uniform", "log2", "logsqrt2", "twin"]
GeluGrid = Literal["uniform", "twin"]
SOFTMAX: Mapping[str, UnevenKind | None] = {
    "uniform": None,
    "log2": "log2",
    "logsqrt2": "logsqrt2",
    "twin": "twin_softmax",
}
ASYMMETRIC = QType(8, signed=False, symmetric=False)
FACTORS = OperatorSupport(ASYMMETRIC, ASYMMETRIC)


@dataclass(frozen=True)
class _Edge:
    """A value, the products that read it, and the format that they want."""

    value: Node
    users: tuple[Node, ...]
    qtype: QType
    of_softmax: bool


@dataclass(frozen=True)
class QuantizeAttention(Method):
    """Put quantizers on queries, keys, values and softmax outputs, and give GELU outputs another grid.

    `Quantize` reaches the linear layers only; this one reaches the products of two computed values. Attention is
    written out first (`graph.structure.attention`). Ranges come from the values that flow in the quantized network;
    calibration streams. Where a factor was quantized already, behind nothing but views, it keeps that grid. Layer norms
    and softmax itself compute in float. A network without attention stays as it is.

    Products are quantized if the target runs `matmul` in integers, the first factor in the format of its activation,
    the second in that of its weight. Where nothing is known of a target: all products, asymmetric.

    Uneven grids: Yuan et al., "PTQ4ViT", ECCV 2022 (`twin`); Lin et al., "FQ-ViT", IJCAI 2022 (`log2`); Li et al.,
    "RepQ-ViT", ICCV 2023 (`logsqrt2`). No runtime here has integer kernels for them: a product with such a factor, and
    a linear layer behind such a GELU, run in float on rounded values.

    Attributes:
        bits: width of the factors; GELU outputs keep the width that `Quantize` gave them.
        softmax: grid of softmax outputs. `uniform` has integer kernels; of the others, `twin` pays in accuracy at any
            width, logarithmic ones at 3 to 5 bits.
        gelu: grid of GELU outputs that a quantizer stands on.
        observer: for uniform grids, see `Quantize`.
        percentile: for the observer of that name, in percent.
    """

    bits: int = 8
    softmax: SoftmaxGrid = "uniform"
    gelu: GeluGrid = "uniform"
    observer: ObserverName = "mse"
    percentile: float = 99.99

    phase: ClassVar[Phase] = Phase.NUMBERS
    needs: ClassVar[State] = frozenset({QUANTIZED})
    leaves: ClassVar[State] = frozenset({"attention_quantized"})

    def __post_init__(self) -> None:
        """Refuse grids that there are not."""
        if self.softmax not in SOFTMAX or self.gelu not in ("uniform", "twin"):
            raise OptionError(
                f"there is no grid {self.softmax!r} for softmax, or no grid {self.gelu!r} for GELU.",
                f"Choose one of {', '.join(SOFTMAX)} for softmax, uniform or twin for GELU.",
            )
        least, most = {"uniform": (1, 16), "twin": (3, 9)}.get(self.softmax, (2, 8))
        if not least <= self.bits <= most:
            raise OptionError(f"softmax outputs have no {self.softmax} grid of {self.bits} bits: {least} to {most} do.")

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the network with quantized attention.

        Raises:
            OptionError: GELU outputs have no twin grid of their width.
            DataError: there is no calibration data, or it makes a value NaN.
        """
        network = network.copy()
        expand_in_place(network.graph_module)
        edges = self._edges(network, context.capabilities)
        gelus = [node for node in network.graph_module.graph.nodes if self._wants_twin(node)]
        watchers: dict[Node, Watcher] = {node.args[0]: self._gelu_search(network, node) for node in gelus}
        for edge in edges:
            uneven = SOFTMAX[self.softmax] if edge.of_softmax else None
            watchers[edge.value] = (
                UnevenSearch(uneven_grids(uneven, self.bits))
                if uneven
                else make_observer(self.observer, percentile=self.percentile)
            )
        if watchers:
            watch(network, watchers, context.calibration)
        for edge in edges:
            _insert(network, edge, watchers[edge.value])
        for node in gelus:
            value = node.args[0]
            assert isinstance(value, Node)
            readers = list(node.users)
            node.replace_all_uses_with(value)
            insert_uneven(network.graph_module, value, readers, watchers[value].best)  # type: ignore[attr-defined]
        edit.finish(network.graph_module)
        return self.done(network)

    def _edges(self, network: Network, capabilities: Capabilities | None) -> tuple[_Edge, ...]:
        """Return what to quantize; factors that have a grid already get the same again, at once."""
        support = FACTORS if capabilities is None else capabilities.operators.get("matmul")
        if support is None:
            return ()
        support = support.at((self.bits, self.bits))
        wanted: dict[Node, _Edge] = {}
        for product in list(products(network)):
            for position, qtype in enumerate((support.activation, support.weight)):
                value = product.node.args[position]
                assert isinstance(value, Node)
                if qtype is None or kind(value) == "quantizer" or _kept(network, value, product.node, qtype):
                    continue
                seen = wanted.get(value)
                users = (*(seen.users if seen else ()), product.node)
                shared = seen.qtype if seen and seen.qtype.symmetric else replace(qtype, narrow=False)
                wanted[value] = _Edge(value, tuple(dict.fromkeys(users)), shared, position in product.of_softmax)
        return tuple(wanted.values())

    def _wants_twin(self, node: Node) -> bool:
        """Whether this is a quantizer right behind a GELU."""
        value = node.args[0] if node.args else None
        return self.gelu == "twin" and kind(node) == "quantizer" and isinstance(value, Node) and kind(value) == "gelu"

    def _gelu_search(self, network: Network, quantizer: Node) -> UnevenSearch:
        bits = qparams_of(network, quantizer).qtype.bits
        if not 3 <= bits <= 9:
            raise OptionError(f"GELU outputs have no twin grid of {bits} bits: 3 to 9 do.")
        return UnevenSearch(uneven_grids("twin_gelu", bits))


def _kept(network: Network, value: Node, product: Node, qtype: QType) -> bool:
    """Quantize a factor once more on the grid that it lies on already, so that it stands right before the product."""
    origin = source(value)
    if kind(origin) != "quantizer":
        return False
    qparams = qparams_of(network, origin)
    found = qparams.qtype
    if found.axis is not None or found.bits > qtype.bits or (qtype.symmetric and not found.symmetric):
        return False
    edit.insert_quantizer(network.graph_module, value, [product], qparams, value.name)
    return True


def _insert(network: Network, edge: _Edge, watcher: Watcher) -> None:
    if isinstance(watcher, UnevenSearch):
        insert_uneven(network.graph_module, edge.value, edge.users, watcher.best)
        return
    low, high = watcher.range(edge.qtype)  # type: ignore[attr-defined]
    qparams = qparams_from_range(torch.tensor(low), torch.tensor(high), edge.qtype)
    edit.insert_quantizer(network.graph_module, edge.value, list(edge.users), qparams, edge.value.name)
