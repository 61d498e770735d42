"""Structured pruning by 30% of every group, on all networks of the capture list: what can be pruned, and what cannot.

Ours is the dependency analysis on the captured graph; the smaller network is exported to ONNX and OpenVINO and its
numbers compared there. Torch-Pruning (Fang et al., 2023; `pip install --no-deps torch-pruning`) prunes the modules
themselves, by its `BasePruner` with the same ratio, told which layers make the output and how many heads attention has;
without it that column stays empty.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.program import export_graph, network_from_export
from microtome.graph.structure.groups import ChannelGroup, channel_groups
from microtome.graph.structure.removal import keep_units
from microtome.runtimes import onnxruntime, openvino
from microtome.types import Port
from structure_networks import Subject, subjects

RATIO = 0.3
# The same float operators in another order, through some dozen layers with random weights.
CLOSE = 1e-2


def captured(subject: Subject) -> Network:
    module = subject.build().eval()
    if not subject.fixed:
        return capture(module, subject.shape)
    port = Port("input", subject.shape, (True, *[False] * len(subject.shape[1:])))
    return network_from_export(export_graph(module, [port]))


def strongest(network: Network, group: ChannelGroup, ratio: float = RATIO) -> list[int]:
    """Return the units that stay: of each part those whose rows have the largest norm; else whole parts."""
    norms = torch.zeros(group.units)
    for member in group.members:
        if member.role == "writes":
            rows = network.tensor(member.constant).float().movedim(member.axis, 0).flatten(1).square().sum(1)
            own = member.units >= 0
            norms.index_add_(0, member.units[own], rows[own])
    parts = norms.reshape(group.parts, -1)
    keep = max(round(parts.shape[1] * (1 - ratio)), 1)
    stay = torch.zeros_like(parts, dtype=torch.bool)
    stay.scatter_(1, parts.topk(keep, 1).indices, True)
    if keep == parts.shape[1]:
        gone = parts.sum(1).topk(len(parts) - max(round(len(parts) * (1 - ratio)), 1), largest=False).indices
        stay[gone] = False
    return stay.reshape(-1).nonzero()[:, 0].tolist()


def ours(subject: Subject, *, export: bool = True) -> dict[str, Any]:
    """Prune a network, export it, and return what came of it."""
    network = captured(subject)
    groups = channel_groups(network)
    free = [group for group in groups if group.reason is None]
    smaller = keep_units(network, {group.name: strongest(network, group) for group in free})
    x = torch.randn((1, *subject.shape), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = smaller(x)
    row: dict[str, Any] = {
        "groups": len(groups),
        "prunable": len(free),
        "heads": sum(group.kind == "heads" for group in free),
        "parameters": network.parameters,
        "left": smaller.parameters,
        "prunable_share": share(network, free),
        "reasons": {group.name: group.reason for group in groups if group.reason is not None},
    }
    if export:
        for target in (onnxruntime, openvino):
            with tempfile.TemporaryDirectory() as folder:
                session = target.open_session(target.export(smaller, Path(folder)), threads=1)
                output = torch.as_tensor(session.run(x.numpy()))
            error = float((output - expected).abs().max() / expected.abs().max())
            row[target.__name__.rpartition(".")[2]] = "same" if error < CLOSE else f"differs by {error:.2g}"
    return row


def share(network: Network, groups: list[ChannelGroup]) -> float:
    """Return which share of the parameters lies in rows or columns of groups that can be pruned."""
    touched: dict[str, Tensor] = {}
    for group in groups:
        for member in group.members:
            value = network.tensor(member.constant)
            mask = touched.setdefault(member.constant, torch.zeros(value.shape, dtype=torch.bool))
            mask.index_fill_(member.axis, (member.units >= 0).nonzero()[:, 0], True)
    counted = sum(int(mask.sum()) for name, mask in touched.items() if network.is_weight(name))
    return counted / network.parameters


def torch_pruning(subject: Subject) -> dict[str, Any]:
    """Prune the same module by Torch-Pruning, and return what came of it."""
    import torch_pruning as peer

    module = subject.build().eval()
    x = torch.randn((1, *subject.shape), generator=torch.Generator().manual_seed(0))
    names = [g.name for g in channel_groups(captured(subject)) if g.reason is not None and "output" in g.reason]
    last = [part for name, part in module.named_modules() if name in names]
    heads = {
        part.qkv: part.num_heads for part in module.modules() if hasattr(part, "qkv") and hasattr(part, "num_heads")
    }
    before = sum(p.numel() for p in module.parameters())
    smaller = copy.deepcopy(module)
    twins = dict(zip(module.modules(), smaller.modules(), strict=True))
    pruner = peer.pruner.BasePruner(
        smaller,
        x,
        importance=peer.importance.MagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=[twins[part] for part in last],
        num_heads={twins[part]: count for part, count in heads.items()},
    )
    pruner.step()
    with torch.no_grad():
        same = smaller(x).shape == module(x).shape
    return {"parameters": before, "left": sum(p.numel() for p in smaller.parameters()), "same_shape": bool(same)}


def attempt(run: Callable[[Subject], dict[str, Any]], subject: Subject) -> dict[str, Any]:
    """Return what came of one attempt; what it failed of is a result too."""
    try:
        return run(subject)
    except Exception as error:  # whatever a peer raises: the table says so
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"}


def line(name: str, row: dict[str, Any]) -> str:
    words = []
    for who in ("ours", "torch_pruning"):
        result = row.get(who)
        if result is None:
            words.append("–")
        elif "failed" in result:
            words.append(f"failed: {result['failed'][:60]}")
        else:
            words.append(f"{1 - result['left'] / result['parameters']:.0%} fewer parameters")
    mine = row["ours"]
    counts = f"{mine['prunable']} of {mine['groups']} groups" if "groups" in mine else ""
    files = f"ONNX {mine.get('onnxruntime', '–')}, OpenVINO {mine.get('openvino', '–')}"
    return f"| {name} | {counts} | {words[0]} | {files} | {words[1]} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", help="only these")
    parser.add_argument("--small", action="store_true", help="the small form of each network")
    parser.add_argument("--no-export", action="store_true", help="prune only")
    parser.add_argument("--json", type=Path, help="also write all rows to this file")
    options = parser.parse_args()
    peers: dict[str, Callable[[Subject], dict[str, Any]]] = {
        "ours": lambda subject: ours(subject, export=not options.no_export)
    }
    try:
        import torch_pruning as _  # noqa: F401
    except ImportError:
        print("Torch-Pruning is not installed: its column stays empty.")
    else:
        peers["torch_pruning"] = torch_pruning
    rows: dict[str, Any] = {}
    print("| network | groups that can be pruned | 30% of each | exported | Torch-Pruning |\n|---|---|---|---|---|")
    for subject in subjects(small=options.small):
        if options.networks and subject.name not in options.networks:
            continue
        rows[subject.name] = {who: attempt(run, subject) for who, run in peers.items()}
        print(line(subject.name, rows[subject.name]), flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps({"ratio": RATIO, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
