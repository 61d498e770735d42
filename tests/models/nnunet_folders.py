"""Small results folders as nnU-Net v2 writes them, of every kind, with random weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from PIL import Image

from microtome.models.nnunet.networks import OPERATORS, UNet
from microtome.models.nnunet.plans import read_plans

PLACES = {
    "conv_op": "torch.nn.modules.conv.Conv{}d",
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm{}d",
    "nonlin": "torch.nn.LeakyReLU",
}
LABELS = {"background": 0, "liver": 1, "tumour": 2}


@dataclass(frozen=True)
class Kind:
    """How a folder differs from the usual one: 3-D, one MR channel, three labels, one fold."""

    dims: int = 3
    channels: tuple[str, ...] = ("MRI",)
    schemes: tuple[str, ...] = ("ZScoreNormalization",)
    masked: bool = False
    labels: Mapping[str, Any] = field(default_factory=lambda: dict(LABELS))
    order: Sequence[int] | None = None
    folds: tuple[str, ...] = ("0",)
    residual: bool = False
    old: bool = False
    previous: str | None = None
    transpose: tuple[int, ...] = (0, 1, 2)
    mirror: tuple[int, ...] | None = ()
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    trainer: str = "nnUNetTrainer"
    reader: str = "SimpleITKIO"
    resampling: str = "resample_data_or_seg_to_shape"

    @property
    def configuration(self) -> str:
        if self.previous:
            return "3d_cascade_fullres"
        return "2d" if self.dims == 2 else "3d_fullres"


KINDS = {
    "usual": Kind(),
    "mirrored": Kind(mirror=(0, 1, 2)),
    "2d": Kind(dims=2, mirror=(0, 1)),
    "two channels": Kind(channels=("T1", "T2"), schemes=("ZScoreNormalization",) * 2),
    "ct": Kind(channels=("CT",), schemes=("CTNormalization",)),
    "ct and others": Kind(
        channels=("CT", "MR", "map"), schemes=("CTNormalization", "RescaleTo01Normalization", "NoNormalization")
    ),
    "masked": Kind(channels=("T1", "T2"), schemes=("ZScoreNormalization",) * 2, masked=True),
    "regions": Kind(labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}, order=(1, 2, 3)),
    "cascade": Kind(previous="3d_lowres"),
    "folds": Kind(folds=("0", "1", "2"), channels=("T1", "T2"), schemes=("ZScoreNormalization",) * 2),
    "residual": Kind(residual=True),
    "old plans": Kind(old=True),
    "old residual plans": Kind(old=True, residual=True),
    "transposed": Kind(transpose=(2, 0, 1), spacing=(2.0, 0.9, 1.1)),
    "ignored label": Kind(labels={**LABELS, "ignore": 3}),
    "batch norm": Kind(trainer="nnUNetTrainerBN"),
    "torch resampling": Kind(resampling="resample_torch_fornnunet", spacing=(1.5, 0.9, 1.1)),
    "pictures": Kind(
        dims=2,
        channels=("R", "G", "B"),
        schemes=("RGBTo01Normalization", "ZScoreNormalization", "RGBTo01Normalization"),
        reader="NaturalImage2DIO",
        mirror=(0, 1),
    ),
    "reoriented": Kind(reader="NibabelIOWithReorient", spacing=(1.2, 0.9, 1.1)),
}


def plans_of(kind: Kind) -> dict[str, Any]:
    """`plans.json` for a kind, with a configuration that inherits from another."""
    d, stages = kind.dims, 3
    norm = OPERATORS[f"{'BatchNorm' if kind.trainer.endswith('BN') else 'InstanceNorm'}{d}d"]
    shared = {"kernel_sizes": [[3] * d] * stages, "strides": [[1] * d, [2] * d, [2] * d]}
    count = {"n_blocks_per_stage": [1, 2, 1]} if kind.residual else {"n_conv_per_stage": [2, 2, 2]}
    title = "ResidualEncoderUNet" if kind.residual else "PlainConvUNet"
    keywords = {
        **shared,
        **count,
        "n_stages": stages,
        "features_per_stage": [4, 8, 8],
        "n_conv_per_stage_decoder": [2, 1],
        "conv_bias": True,
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin_kwargs": {"inplace": True},
        **{key: place.format(d) for key, place in PLACES.items()},
    }
    assert norm is not None
    how = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    back = {**how, "order": 1}
    if kind.resampling != "resample_data_or_seg_to_shape":
        how = back = {"is_seg": False, "force_separate_z": None}
    entries: dict[str, Any] = {
        "data_identifier": "x",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16] * d,
        "median_image_size_in_voxels": [20.0] * d,
        "spacing": list(kind.spacing[-d:]),
        "normalization_schemes": list(kind.schemes),
        "use_mask_for_norm": [kind.masked] * len(kind.schemes),
        "resampling_fn_data": kind.resampling,
        "resampling_fn_seg": kind.resampling,
        "resampling_fn_data_kwargs": how,
        "resampling_fn_seg_kwargs": {**back, "is_seg": True},
        "resampling_fn_probabilities": kind.resampling,
        "resampling_fn_probabilities_kwargs": back,
        "batch_dice": True,
    }
    if kind.old:
        entries |= {
            "UNet_class_name": title,
            "UNet_base_num_features": 4,
            "unet_max_num_features": 8,
            "n_conv_per_stage_encoder": next(iter(count.values())),
            "n_conv_per_stage_decoder": [2, 1],
            "num_pool_per_axis": [2] * d,
            "pool_op_kernel_sizes": shared["strides"],
            "conv_kernel_sizes": shared["kernel_sizes"],
        }
    else:
        entries["architecture"] = {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{title}",
            "arch_kwargs": keywords,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }
    name = kind.configuration
    configurations: dict[str, Any] = {"base": entries, name: {"inherits_from": "base", "batch_size": 1}}
    if kind.previous:
        configurations[name]["previous_stage"] = kind.previous
    statistics = {"percentile_00_5": -60.0, "percentile_99_5": 180.0, "mean": 40.0, "std": 55.0}
    return {
        "dataset_name": "Dataset900_Tiny",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": kind.reader,
        "transpose_forward": list(kind.transpose),
        "transpose_backward": [int(n) for n in np.argsort(kind.transpose)],
        "configurations": configurations,
        "foreground_intensity_properties_per_channel": {str(k): statistics for k in range(len(kind.channels))},
        "label_manager": "LabelManager",
    }


def dataset_of(kind: Kind) -> dict[str, Any]:
    found: dict[str, Any] = {
        "channel_names": {str(k): name for k, name in enumerate(kind.channels)},
        "labels": dict(kind.labels),
        "numTraining": 4,
        "file_ending": ".png" if kind.reader == "NaturalImage2DIO" else ".nii.gz",
    }
    return found if kind.order is None else {**found, "regions_class_order": list(kind.order)}


def make_folder(root: Path, kind: Kind, *, seed: int = 1) -> Path:
    """Write a results folder, and return it."""
    folder = root / "Dataset900_Tiny" / f"{kind.trainer}__nnUNetPlans__{kind.configuration}"
    folder.mkdir(parents=True)
    plans, dataset = plans_of(kind), dataset_of(kind)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    for k, fold in enumerate(kind.folds):
        (folder / f"fold_{fold}").mkdir()
        content = {
            "network_weights": weights_of(kind, seed + k),
            "optimizer_state": {},
            "current_epoch": 5,
            "init_args": {"plans": plans, "configuration": kind.configuration, "fold": k, "dataset_json": dataset},
            "trainer_name": kind.trainer,
            "inference_allowed_mirroring_axes": kind.mirror,
        }
        torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def weights_of(kind: Kind, seed: int) -> dict[str, torch.Tensor]:
    """Random weights under all the names that nnU-Net's own checkpoints have."""
    plans = read_plans(plans_of(kind), dataset_of(kind), kind.configuration)
    words = copy.deepcopy(dict(plans.entries["architecture"]["arch_kwargs"]))
    for key in ("conv_op", "norm_op", "nonlin"):
        name = words[key].rpartition(".")[2]
        words[key] = OPERATORS[name.replace("Instance", "Batch") if kind.trainer.endswith("BN") else name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = UNet(
            plans.inputs, plans.heads, words, title="ResidualEncoderUNet" if kind.residual else "PlainConvUNet"
        )
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                spread = torch.rand_like(tensor) if "running_var" in name else torch.randn_like(tensor)
                tensor.copy_(0.5 + spread if "running_var" in name else 0.35 * spread)
            if "seg_layers" in name and "bias" in name:
                tensor.zero_()  # no label is everywhere
    own = dict(network.state_dict())
    found = dict(own)
    for name, tensor in own.items():
        for part, place in ((".conv.", ".all_modules.0."), (".norm.", ".all_modules.1.")):
            if part in name:
                found[name.replace(part, place)] = tensor
    encoder = {name: tensor for name, tensor in found.items() if name.startswith("encoder.")}
    return found | {f"decoder.{name}": tensor for name, tensor in encoder.items()}


def make_images(folder: Path, kind: Kind, *, count: int = 1, seed: int = 0) -> list[list[Path]]:
    """Write images of an uneven grid with a border of zeros, one file per channel; return the files of each case."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    affine = np.diag([-0.8, 0.9, 1.6, 1.0])
    affine[:3, 3] = (10, -20, 5)
    cases = []
    if kind.reader == "NaturalImage2DIO":
        pixels = rng.integers(0, 255, (7, 9, 3), dtype=np.uint8).repeat(4, 0).repeat(3, 1)
        Image.fromarray(pixels).save(folder / "case0_0000.png")
        return [[folder / "case0_0000.png"]]
    for case in range(count):
        files = []
        inside = np.zeros((22, 25, 19), bool)
        inside[3:20, 2:24, 2:17] = True
        inside[8:11, 8:11, 8:11] = False  # a hole
        for k in range(len(kind.channels)):
            smooth = nib.Nifti1Image(
                np.where(inside, 60 + 40 * np.cumsum(rng.normal(size=inside.shape), 0), 0).astype(np.float32), affine
            )
            files.append(folder / f"case{case}_{k:04d}.nii.gz")
            nib.save(smooth, files[-1])
        cases.append(files)
    return cases
