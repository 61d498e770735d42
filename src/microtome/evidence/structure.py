"""What was removed where: the layers of a parent beside those of the network that was made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from microtome.graph.network import Layer, Network
from microtome.graph.operators import groups, kind
from microtome.graph.watching.macs import LayerSize, layer_sizes

# Where fewer of the parent's layers have a namesake, the network is another one: the two are listed one after another.
ALIKE = 0.5


def structure(parent: Network, network: Network) -> dict[str, Any]:
    """Return the layers of both networks, side by side; empty where they have the same shapes, and no zeros.

    A layer that was factorized is a chain of layers called `NAME.LINK`: they count as one, with the narrowest of their
    widths.

    Returns:
        `parameters`, `nonzero` and `macs` of layers, each [parent, compressed]; `alike`, whether layers can be compared
        by name; and `layers`: `name`, `op`, and under `parent` and `compressed` what each has: `outputs` and `inputs`
        (channels), `weights`, `nonzero`, `macs`, `links` (layers that stand for it), or None without such a layer.
    """
    ours, theirs = _described(network), _described(parent)
    same = {name: row["shape"] for name, row in ours.items()} == {name: row["shape"] for name, row in theirs.items()}
    if same and all(row["nonzero"] == theirs[name]["nonzero"] for name, row in ours.items()):
        return {}
    found = {name: _standing_for(name, ours, theirs) for name in theirs}
    alike = sum(bool(links) for links in found.values()) >= ALIKE * len(found)
    rows = []
    if alike:
        taken = {link for links in found.values() for link in links}
        for name, row in theirs.items():
            rows.append(_row(name, row["op"], _joined([row]), _joined([ours[link] for link in found[name]])))
        rows += [_row(name, row["op"], None, _joined([row])) for name, row in ours.items() if name not in taken]
    else:
        rows += [_row(name, row["op"], _joined([row]), None) for name, row in theirs.items()]
        rows += [_row(name, row["op"], None, _joined([row])) for name, row in ours.items()]
    totals = {key: [sum(row[key] for row in side.values()) for side in (theirs, ours)] for key in ("nonzero", "macs")}
    return {"parameters": [parent.parameters, network.parameters], **totals, "alike": alike, "layers": rows}


def _described(network: Network) -> dict[str, dict[str, Any]]:
    sizes = {size.name: size for size in layer_sizes(network)}
    return {layer.name: _layer(network, layer, sizes[layer.name]) for layer in network.layers}


def _layer(network: Network, layer: Layer, size: LayerSize) -> dict[str, Any]:
    weight = network.tensor(str(layer.weight.target))
    parts, transposed = groups(layer.node), kind(layer.node) == "conv_transpose"
    rows, columns = (1, 0) if transposed else (0, 1)
    return {
        "op": layer.op,
        "shape": tuple(weight.shape),
        "outputs": int(weight.shape[rows]) * (parts if transposed else 1),
        "inputs": int(weight.shape[columns]) * (1 if transposed else parts),
        "weights": size.weights,
        "nonzero": int((weight != 0).sum()),
        "macs": size.macs,
    }


def _standing_for(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return the layers that stand for one of the parent's: itself, or the chain that it was factorized into."""
    if name in ours:
        return [name]
    return [link for link in ours if link.startswith(f"{name}.") and link not in theirs]


def _joined(links: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return what layers that stand for one have together; None where there are none."""
    if not links:
        return None
    sums = {key: sum(link[key] for link in links) for key in ("weights", "nonzero", "macs")}
    narrowest = min((link["outputs"] for link in links[:-1]), default=links[-1]["outputs"])
    return {
        "outputs": links[-1]["outputs"],
        "narrowest": min(narrowest, links[-1]["outputs"]),
        "inputs": links[0]["inputs"],
        **sums,
        "links": len(links),
    }


def _row(name: str, op: str, parent: dict[str, Any] | None, compressed: dict[str, Any] | None) -> dict[str, Any]:
    return {"name": name, "op": op, "parent": parent, "compressed": compressed}
