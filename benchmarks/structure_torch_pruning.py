"""Accuracy at equal multiplications: channels by our dependency analysis, and by Torch-Pruning's.

    python benchmarks/structure_torch_pruning.py [--share 0.9] [--steps 300] [--seeds 0] [--out torch_pruning]

The chest X-ray network, cut to the same share of its multiplications: by `prune`, and by Torch-Pruning (`pip install
--no-deps torch-pruning`; its `BasePruner`, importance by the norm of a channel, the same share of every layer, widths
in multiples of 8). Both then learn from the parent alike, by `distill`, and are judged on held-out patients in float32.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch

from microtome.graph import pt2
from microtome.graph.capture import capture
from microtome.graph.network import Network
from microtome.graph.watching.macs import layer_sizes
from microtome.terminal import RichProgress
from microtome.verbs.compress import compress
from microtome.verbs.options import CompressOptions
from networks import resnet18
from structure_plans import Plan, cut, student
from structure_subjects import subject

MARGIN, MULTIPLE = 0.01, 8


def macs(network: Network) -> int:
    return sum(size.macs for size in layer_sizes(network))


def peers_network(parent: Network, ratio: float) -> Network:
    """Return the parent with that share of each layer's channels taken away by Torch-Pruning."""
    import torch_pruning as peer

    weights = parent.graph_module.state_dict()
    module = resnet18(parent.shape[0], len(weights["fc.bias"])).eval()
    module.load_state_dict(weights, strict=False)
    x = torch.zeros(1, *parent.shape)
    pruner = peer.pruner.BasePruner(
        module,
        x,
        importance=peer.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        round_to=MULTIPLE,
        ignored_layers=[module.fc],
    )
    pruner.step()
    return capture(module, parent.shape)


def as_costly(parent: Network, wanted: int) -> Network:
    """Return Torch-Pruning's network with about so many multiplications, rather more than fewer."""
    ratios = [step / 100 for step in range(40, 90)]
    low, high = 0, len(ratios) - 1
    while low < high:  # the largest ratio that leaves as many
        middle = (low + high + 1) // 2
        low, high = (middle, high) if macs(peers_network(parent, ratios[middle])) >= wanted else (low, middle - 1)
    return peers_network(parent, ratios[low])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.9, help="of the multiplications that goes")
    parser.add_argument("--steps", type=int, default=300, help="of training")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--threads", type=int, default=2)
    default = os.environ.get("MICROTOME_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(default), help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("torch_pruning"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    given = subject("chest", options.data, options.out)
    training = {**student("chest"), "steps": options.steps}
    plans: dict[str, tuple[dict[str, Any], ...]] = {"ours": (dict(cut(options.share)), training)}
    theirs = options.out / "torch_pruning.pt2"
    plans["Torch-Pruning"] = ({**training, "student": str(theirs.resolve())},)
    for seed in options.seeds:
        for name, methods in plans.items():
            package = options.out / f"{name}-{seed}"
            if name != "ours" and not theirs.exists():
                parent = pt2.load(given.model)
                wanted = macs(pt2.load(options.out / f"ours-{seed}" / "network.pt2"))
                pt2.save(as_costly(parent, wanted), theirs)
            if not (package / "result.json").exists():
                recipe = Plan("peers", "chest", f"{name} {seed}", methods).recipe(options.out, 25.0)
                settings = CompressOptions(
                    recipe=recipe, margin=MARGIN, seed=seed, threads=options.threads, **given.options
                )
                compress(given.model, given.cohort, package, options=settings, progress=RichProgress())
            result = json.loads((package / "result.json").read_text())
            change = result["difference"]["auroc"]
            left = pt2.load(package / "network.pt2")
            row = {"who": name, "seed": seed, "parameters": left.parameters, "macs": macs(left), **change}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
