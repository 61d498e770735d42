"""Chains of layers that give again what the layers gave that they stand for: least squares, no training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from microtome.core.columns import Geometry, from_rows, rows
from microtome.core.decomposition.least_squares import Regression
from microtome.errors import DataError
from microtome.graph import edit
from microtome.graph.network import Batch, Network
from microtome.graph.operators import constant_source
from microtome.graph.watching.axis_moments import drawn, drawn_columns
from microtome.graph.watching.moments import geometry
from microtome.graph.watching.observe import Unquantized


def refit(
    network: Network,
    parent: Network,
    pairs: Mapping[str, str],
    batches: Iterable[Batch],
    *,
    damping: float,
    most: int,
    seed: int = 0,
) -> None:
    """Fit layers, one after the other, to what other layers give in a parent network; edits the network.

    What a layer reads comes from the network as it is by then, so that each makes up for errors before it as well
    (Zhang et al., "Accelerating Very Deep Convolutional Networks", TPAMI 2016, section 3.3, asymmetric reconstruction).
    One pass over the batches per layer. A layer of which a bias is learned has one afterwards.

    Args:
        network: a copy that may be edited; call `edit.finish` behind.
        parent: what it was before.
        pairs: for the name of each layer to fit, in order of execution, that of the parent's layer.
        batches: (N, C, *S).
        damping: see `Regression.solve`.
        most: output positions per batch.
        seed: of their draw.

    Raises:
        DataError: there are no batches, or one makes a value NaN or infinite.
    """
    ours = {layer.name: layer for layer in network.layers}
    theirs = {layer.name: layer.node for layer in parent.layers}
    for name, other in pairs.items():
        layer = ours[name]
        where = geometry(layer.node)
        fitted = _fitted(network, layer.node, parent, theirs[other], where, batches, most=most, seed=seed)
        if not fitted.count:
            raise DataError("there are no calibration images.", "Give at least one training case.")
        weight = network.tensor(str(layer.weight.target))
        found, bias = fitted.solve(rows(weight, where)[0], damping)
        if not bool(torch.isfinite(found).all() and torch.isfinite(bias).all()):
            raise DataError(f"a calibration image makes the input of {name} NaN or infinite.", "Check the images.")
        edit.own_constant(network.graph_module, layer.node, 1, from_rows(found[None], where, weight.shape).to(weight))
        edit.set_bias(network.graph_module, layer.node, bias.to(weight), str(_weight(layer.node)))


def _weight(node: Node) -> str:
    source = constant_source(node.args[1])
    assert source is not None
    return str(source.target).removesuffix(".weight")


def _fitted(
    network: Network,
    node: Node,
    parent: Network,
    other: Node,
    where: Geometry,
    batches: Iterable[Batch],
    *,
    most: int,
    seed: int,
) -> Regression:
    """Regress what a layer of the parent gives on what a layer of the network sees."""
    fitted, generator = Regression(), torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}

    def see(_: Node, arguments: tuple[Any, ...], value: Tensor) -> None:
        found["positions"] = drawn(where, arguments[0], value, most, generator)
        found["inputs"] = drawn_columns(where, arguments[0], value, found["positions"])

    def hear(_: Node, arguments: tuple[Any, ...], value: Tensor) -> None:
        flat = value if not where.kernel else value.movedim(1, -1)
        found["outputs"] = flat.reshape(-1, flat.shape[-1])[found["positions"].to(value.device)].cpu()

    ours, theirs = Unquantized(network, [node], see), Unquantized(parent, [other], hear)
    for batch in batches:
        ours(batch)
        theirs(batch)
        fitted.update(found["inputs"], found["outputs"])
    return fitted
