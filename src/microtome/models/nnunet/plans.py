"""`plans.json` and `dataset.json`: one configuration, with what it inherits, in the form of today.

Plans before nnU-Net 2.4 say how a network is built in other words; they are brought into those of today.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microtome.errors import OptionError, ReadError
from microtome.records import nearest

AGAIN = "Copy the folder again from where it was trained."
OLD_NETWORKS = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}


@dataclass(frozen=True)
class Plans:
    """What a network of one configuration was trained with.

    Attributes:
        configuration: its name, such as `3d_fullres`.
        entries: what the configuration says, with what it inherits.
        plans: the whole of `plans.json`.
        dataset: `dataset.json`.
    """

    configuration: str
    entries: Mapping[str, Any]
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the image's channels."""
        named = self.dataset.get("channel_names", self.dataset.get("modality"))
        if not isinstance(named, Mapping) or not named:
            raise ReadError("dataset.json names no channels ('channel_names').", AGAIN)
        return tuple(str(named[key]) for key in sorted(named, key=int))

    @property
    def labels(self) -> dict[str, tuple[int, ...]]:
        """The label numbers behind each name, in the order of `dataset.json`; what is to be ignored is left out.

        Raises:
            ReadError: there are none, or they are no numbers.
        """
        found: dict[str, tuple[int, ...]] = {}
        labels = self.dataset.get("labels")
        for name, numbers in labels.items() if isinstance(labels, Mapping) else ():
            if name == "ignore":
                continue
            several = numbers if isinstance(numbers, list) else [numbers]
            if not several or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in several):
                raise ReadError(f"dataset.json gives the label {name!r} no number but {numbers!r}.", AGAIN)
            found[str(name)] = tuple(several)
        if len(found) < 2:
            raise ReadError("dataset.json names no labels.", AGAIN)
        return found

    @property
    def has_regions(self) -> bool:
        """Whether outputs are regions that may overlap."""
        return any(len(numbers) > 1 for numbers in self.labels.values())

    @property
    def foreground(self) -> dict[str, tuple[int, ...]]:
        """The labels or regions but for the background."""
        return {name: numbers for name, numbers in self.labels.items() if set(numbers) != {0}}

    @property
    def numbers(self) -> tuple[int, ...]:
        """All label numbers, the background's among them, rising."""
        return tuple(sorted({0, *(n for numbers in self.labels.values() for n in numbers)}))

    @property
    def heads(self) -> int:
        """Channels of the network's output."""
        return len(self.foreground) if self.has_regions else len(self.numbers)

    @property
    def previous(self) -> str | None:
        """The configuration whose label maps are further input channels, in a cascade."""
        return self.entries.get("previous_stage")

    @property
    def inputs(self) -> int:
        """Channels of the network's input; in a cascade, one more for each label but the background."""
        return len(self.channels) + (len(self.numbers) - 1 if self.previous else 0)

    @property
    def patch(self) -> tuple[int, ...]:
        """Size of the windows."""
        return tuple(int(n) for n in self.entries["patch_size"])


def read_plans(plans: Mapping[str, Any], dataset: Mapping[str, Any], configuration: str) -> Plans:
    """Take one configuration out of the plans.

    Raises:
        OptionError: there is no such configuration.
        ReadError: the plans are of a kind that is not known.
    """
    every = plans.get("configurations")
    if not isinstance(every, Mapping):
        version = "those of nnU-Net 1" if "plans_per_stage" in plans else "of a kind that is not known"
        raise ReadError(
            f"The plans are {version}: they hold no 'configurations'.",
            "Give a results folder of nnU-Net 2, or the network as file.py:factory with --weights and --pipeline.",
        )
    if configuration not in every:
        names = ", ".join(map(str, every))
        raise OptionError(
            f"the plans have no configuration {configuration!r}{nearest(configuration, every)}.", f"They have {names}."
        )
    entries = _modern(_inherited(every, configuration))
    missing = [key for key in ("patch_size", "spacing", "normalization_schemes", "architecture") if key not in entries]
    if missing:
        raise ReadError(
            f"The plans are of a kind that is not known: {configuration} has no {', '.join(missing)}.",
            "Give the network as file.py:factory with --weights and --pipeline.",
        )
    return Plans(configuration, entries, plans, dataset)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object of the folder.

    Raises:
        ReadError: missing or broken.
    """
    if not path.is_file():
        raise ReadError(f"The nnU-Net folder has no {path.name} ({path}).", AGAIN)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReadError(f"{path} is broken ({error}).", AGAIN) from error
    if not isinstance(content, dict):
        raise ReadError(f"{path} is no JSON object.", AGAIN)
    return content


def _inherited(every: Mapping[str, Any], name: str, seen: Sequence[str] = ()) -> dict[str, Any]:
    """A configuration over the one that it inherits from."""
    own = every.get(name)
    if not isinstance(own, Mapping) or name in seen:
        raise ReadError(f"The plans' configuration {seen[-1] if seen else name} inherits from nothing.", AGAIN)
    parent = own.get("inherits_from")
    return {**(_inherited(every, parent, (*seen, name)) if parent else {}), **own}


def _modern(entries: dict[str, Any]) -> dict[str, Any]:
    """A configuration with an `architecture`, made of the older entries where it has none."""
    title = entries.get("UNet_class_name")
    if "architecture" in entries or title not in OLD_NETWORKS:
        return entries
    stages = entries["n_conv_per_stage_encoder"]
    dims = len(entries["patch_size"])
    most, first = entries["unet_max_num_features"], entries["UNet_base_num_features"]
    keywords = {
        "n_stages": len(stages),
        "features_per_stage": [min(first * 2**k, most) for k in range(len(stages))],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": entries["conv_kernel_sizes"],
        "strides": entries["pool_op_kernel_sizes"],
        OLD_NETWORKS[str(title)]: stages,
        "n_conv_per_stage_decoder": entries["n_conv_per_stage_decoder"],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {**entries, "architecture": {"network_class_name": title, "arch_kwargs": keywords}}
