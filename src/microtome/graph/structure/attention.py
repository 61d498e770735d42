"""Attention in a graph: written out as two products with a softmax in between, so that methods can reach its edges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node

from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.operators import aten, constant_source, kind

MINUS_INFINITY = float("-inf")

# Operators that pass values on as they are.
VIEWS = frozenset(
    {
        "reshape",
        "transpose",
        "identity",
        "chunk",
        "clone",
        "contiguous",
        "expand",
        "getitem",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "to",
        "unbind",
        "unsqueeze",
    }
)


@dataclass(frozen=True)
class Product:
    """A product of two computed values.

    Attributes:
        node: the matrix product; its factors are the first two arguments.
        of_softmax: the positions of factors that come straight from a softmax.
    """

    node: Node
    of_softmax: frozenset[int]


def expand_attention(network: Network) -> Network:
    """Return the network with attention written out as matrix product, scale, mask, softmax, matrix product.

    `scaled_dot_product_attention` becomes what its documentation defines; an `einsum` of two factors that is a matrix
    product of their last two axes becomes that product. Sums may be added in another order. Grouped queries
    (`enable_gqa`) and heads whose width is not fixed stay as they are.
    """
    network = network.copy()
    expand_in_place(network.graph_module)
    edit.finish(network.graph_module)
    return network


def expand_in_place(graph_module: GraphModule) -> None:
    """Do what `expand_attention` does, without a copy; `edit.finish` has to follow."""
    for node in list(graph_module.graph.nodes):
        if kind(node) == "attention":
            _write_out(graph_module, node)
        elif node.op == "call_function" and node.target is aten.einsum.default:
            _as_matmul(graph_module, node)


def products(network: Network) -> Iterator[Product]:
    """Yield the matrix products whose factors are both computed, in the graph's order."""
    for node in network.graph_module.graph.nodes:
        if kind(node) != "matmul":
            continue
        factors = node.args[:2]
        if all(isinstance(factor, Node) and constant_source(factor) is None for factor in factors):
            softmax = frozenset(i for i, factor in enumerate(factors) if "softmax" in kind(source(factor)))
            yield Product(node, softmax)


def source(value: Node) -> Node:
    """Follow a value back through views to the operator that computed it, or to its quantizer."""
    while kind(value) in VIEWS and isinstance(value.args[0], Node):
        value = value.args[0]
    return value


def _write_out(graph_module: GraphModule, node: Node) -> None:
    """Replace one attention node.

    scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, *, scale, enable_gqa)
    """
    settings = dict(zip(("attn_mask", "dropout_p", "is_causal"), node.args[3:], strict=False)) | dict(node.kwargs)
    query, key, value = node.args[:3]
    scale = settings.get("scale")
    if scale is None:
        width = _width(query)
        scale = None if width is None else width**-0.5
    if settings.get("enable_gqa") or scale is None:
        return
    with graph_module.graph.inserting_before(node):
        call = graph_module.graph.call_function
        turned = call(aten.transpose.int, (key, -2, -1))
        scores = call(aten.mul.Tensor, (call(aten.matmul.default, (query, turned)), scale))
        if settings.get("is_causal"):
            past = call(aten.tril.default, (call(aten.ones_like.default, (scores,)),))
            future = call(aten.eq.Scalar, (past, 0))
            scores = call(aten.masked_fill.Scalar, (scores, future, MINUS_INFINITY))
        mask = settings.get("attn_mask")
        if mask is not None and _is_bool(mask):
            scores = call(aten.masked_fill.Scalar, (scores, call(aten.logical_not.default, (mask,)), MINUS_INFINITY))
        elif mask is not None:
            scores = call(aten.add.Tensor, (scores, mask))
        weights = call(aten.softmax.int, (scores, -1))
        product = call(aten.matmul.default, (weights, value))
    _put(product, node)


def _as_matmul(graph_module: GraphModule, node: Node) -> None:
    """Replace one einsum where it is `matmul` of its factors, the last two axes swapped or not."""
    equation: Any = node.args[0]
    factors: Any = node.args[1]
    if len(factors) != 2 or "->" not in equation or "." in equation:
        return
    given, result = str(equation).replace(" ", "").split("->")
    left, right = given.split(",")
    batch = result[:-2]
    sizes_fit = len(left) == len(right) == len(result) >= 2 and len(set(left + right)) == len(result) + 1
    if not sizes_fit or left[:-2] != batch or right[:-2] != batch:
        return
    rows, columns = result[-2], result[-1]
    inner = next(iter(set(left) - set(result)), "")
    if {rows, inner} != set(left[-2:]) or {columns, inner} != set(right[-2:]):
        return
    graph = graph_module.graph
    with graph.inserting_before(node):
        first, second = factors
        if left[-1] != inner:
            first = graph.call_function(aten.transpose.int, (first, -2, -1))
        if right[-2] != inner:
            second = graph.call_function(aten.transpose.int, (second, -2, -1))
        product = graph.call_function(aten.matmul.default, (first, second))
    _put(product, node)


def _put(new: Node, old: Node) -> None:
    new.meta = dict(old.meta)
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)


def _width(query: Any) -> int | None:
    """Return the size of the last axis; None where it is not fixed or not known."""
    shape = getattr(query.meta.get("val"), "shape", None)
    return shape[-1] if shape is not None and isinstance(shape[-1], int) else None


def _is_bool(mask: Any) -> bool:
    return "bool" in str(getattr(mask.meta.get("val"), "dtype", ""))
