"""The reference networks that accuracy is measured on: trained once on real data, or published and loaded unchanged.

    python benchmarks/references.py hippocampus|hippocampus_dynunet|hippocampus_segresnet|hippocampus_swin
                                    |skin|chest|chest_vit|retina|meshnet|mobilenet [--retrain] [--data DIR]

Kept in $XDG_CACHE_HOME/microtome/references/NAME (~/.cache by default), never in git:

    network.pt2     the captured float32 network
    pipeline.json   its pre- and post-processing
    manifest.csv    the cases: image, mask or label, patient, split (train, val, test), subgroups
    dataset.json    the class names, for segmentation
    scores.json     what it reaches on the test cases, and how long training took

The split is the one that `load_cohort(folder, seed=0)` makes, so nobody evaluates on what a network was trained on.
The data folder is --data, or MICROTOME_DATA, or ../shared/data beside the repository; its README.md says what is in it.
The last line of the output is the path of network.pt2.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from microtome.medical.cohort import load_cohort
from microtome.medical.pipeline import Pipeline
from networks import (
    MESHNET_CLASSES,
    MeshNet,
    MobileNetV2,
    WNet,
    dynunet,
    load_published,
    resnet18,
    segresnet,
    swin_unetr,
    unet,
    vit,
)
from reference import Reference, store, trained
from training import (
    Augmentation,
    Recipe,
    Stage,
    dice_cross_entropy,
    segmentation_scores,
    smoothed_cross_entropy,
)

RETINA_CALIBRATION = 4  # of 14 patients; the weights come from another data set, so the other ten are all unseen
# Between the dark border (up to 15, JPEG ringing) and the fundus: the box is that of the fov_masks to 2 pixels.
FIELD_OF_VIEW = 20.0


def hippocampus(data: Path, device: str) -> Reference:
    """Residual 3-D U-Net with instance norm on the hippocampus volumes (MSD Task04)."""
    return _on_hippocampus(lambda classes: unet(3, 1, classes, norm="instance", depth=3), data, device, limit=720)


def hippocampus_dynunet(data: Path, device: str) -> Reference:
    """nnU-Net's plain network, MONAI's DynUNet, on the hippocampus volumes."""
    return _on_hippocampus(lambda classes: dynunet(1, classes), data, device, limit=900)


def hippocampus_segresnet(data: Path, device: str) -> Reference:
    """SegResNet, with group norm, on the hippocampus volumes."""
    return _on_hippocampus(lambda classes: segresnet(1, classes), data, device, limit=900)


def _on_hippocampus(build: Callable[[int], nn.Module], data: Path, device: str, *, limit: float) -> Reference:
    """Train a network for so many classes on the hippocampus volumes, for `limit` seconds at most."""
    cohort = load_cohort(data / "hippocampus", seed=0)
    patch = (48, 64, 48)  # volumes have up to 43×59×47 voxels: one window sees the whole
    pipeline = Pipeline(
        "segmentation", cohort.classes, spatial_dims=3, orientation="RAS", normalize="zscore", patch=patch
    )
    small = (40, 48, 40)
    recipe = Recipe(
        stages=(
            Stage(1500, 4, small, tuple(a / b for a, b in zip(small, patch, strict=True))),
            Stage(500, 4, patch, (1.0, 1.0, 1.0)),
        ),
        loss=dice_cross_entropy,
        # Left and right hippocampi are both in the data, so that a mirror image is another patient's other side.
        augmentation=Augmentation(
            rotation=10, scale=0.15, shift=0.08, flips=(0,), contrast=0.2, brightness=0.2, noise=0.1
        ),
        rate=3e-3,
        limit=limit,
    )
    torch.manual_seed(0)
    return trained(build(len(cohort.classes)), cohort, pipeline, recipe, device)


def hippocampus_swin(data: Path, device: str) -> Reference:
    """SwinUNETR on the hippocampus volumes (MSD Task04), in windows that overlap by a quarter."""
    cohort = load_cohort(data / "hippocampus", seed=0)
    patch, whole = (32, 64, 32), (48, 64, 48)
    pipeline = Pipeline(
        "segmentation", cohort.classes, spatial_dims=3, orientation="RAS", normalize="zscore", patch=patch, overlap=0.25
    )
    recipe = Recipe(
        stages=(Stage(1500, 2, patch, tuple(a / b for a, b in zip(patch, whole, strict=True))),),
        loss=dice_cross_entropy,
        augmentation=Augmentation(
            rotation=10, scale=0.15, shift=0.2, flips=(0,), contrast=0.2, brightness=0.2, noise=0.1
        ),
        rate=2e-3,
        limit=540,
        bfloat16=False,  # oneDNN's gradients of bfloat16 convolutions over few voxels hold garbage (torch 2.13)
    )
    torch.manual_seed(0)
    return trained(swin_unetr(1, len(cohort.classes)), cohort, pipeline, recipe, device, whole=whole)


def skin(data: Path, device: str) -> Reference:
    """Residual 2-D U-Net with batch norm on the dermoscopy images (ISIC 2017)."""
    cohort = load_cohort(data / "skin", seed=0)
    pipeline = Pipeline("segmentation", ("background", "lesion"), channels=3, size=(256, 256), normalize="zscore")
    recipe = Recipe(
        stages=(Stage(1500, 16, (128, 128), (1.0, 1.0)), Stage(350, 8, (256, 256), (1.0, 1.0))),
        loss=dice_cross_entropy,
        augmentation=Augmentation(rotation=45, scale=0.2, shift=0.1, flips=(0, 1), contrast=0.2, brightness=0.2),
        rate=3e-3,
        limit=750,
    )
    torch.manual_seed(0)
    reference = trained(unet(2, 3, 2, norm="batch", depth=4), cohort, pipeline, recipe, device)
    diagnoses = _diagnoses(data / "skin" / "ISIC-2017_Training_Part3_GroundTruth.csv")
    rows = [{**row, "diagnosis": diagnoses[Path(row["image"]).stem]} for row in reference.rows]
    return Reference(reference.module, reference.shape, pipeline, rows, reference.scores)


def chest(data: Path, device: str) -> Reference:
    """ResNet-18 on the chest X-rays (Kermany et al. 2018), official test folder."""
    cohort = load_cohort(data / "chest_xray", seed=0)
    pipeline = Pipeline("classification", cohort.classes, grayscale=True, size=(224, 224), normalize="zscore")
    recipe = Recipe(
        stages=(Stage(1200, 32, (112, 112), (1.0, 1.0)), Stage(220, 32, (224, 224), (1.0, 1.0))),
        loss=smoothed_cross_entropy,
        augmentation=Augmentation(
            rotation=10, scale=0.15, shift=0.1, flips=(1,), contrast=0.2, brightness=0.2, noise=0.1
        ),
        rate=2e-3,
        decay=5e-2,
    )
    torch.manual_seed(0)
    return trained(resnet18(1, len(cohort.classes)), cohort, pipeline, recipe, device)


def chest_vit(data: Path, device: str) -> Reference:
    """Vision transformer on the chest X-rays at half the resolution of `chest`: 49 patches and a class token."""
    cohort = load_cohort(data / "chest_xray", seed=0)
    size = (112, 112)
    pipeline = Pipeline("classification", cohort.classes, grayscale=True, size=size, normalize="zscore")
    recipe = Recipe(
        stages=(Stage(3000, 32, size, (1.0, 1.0)),),
        loss=smoothed_cross_entropy,
        augmentation=Augmentation(
            rotation=10, scale=0.15, shift=0.1, flips=(1,), contrast=0.2, brightness=0.2, noise=0.1
        ),
        rate=1e-3,
        decay=1e-1,
        limit=540,
    )
    torch.manual_seed(0)
    return trained(vit(1, len(cohort.classes), size), cohort, pipeline, recipe, device)


def retina(data: Path, device: str) -> Reference:
    """Little W-Net with its published weights (trained on DRIVE), on the CHASEDB1 images."""
    module = load_published(WNet(), data / "networks" / "lwnet_wnet_drive.safetensors")
    pipeline = Pipeline(
        "segmentation",
        ("background", "vessel"),
        channels=3,
        crop="foreground",
        crop_threshold=FIELD_OF_VIEW,
        size=(512, 512),
        normalize="unit",
        activation="sigmoid",
        threshold=0.4196,
    )
    rows = []
    for image in sorted((data / "retina").glob("Image_*.jpg")):
        patient, side = image.stem[6:8], image.stem[8]
        split = "train" if int(patient) <= RETINA_CALIBRATION else "test"
        mask = image.with_name(f"{image.stem}_1stHO.png")
        rows.append({"image": str(image), "mask": str(mask), "patient": patient, "split": split, "side": side})
    scores = segmentation_scores(module, rows, pipeline, device)
    return Reference(module, (3, 512, 512), pipeline, rows, scores)


def meshnet(data: Path, device: str) -> Reference:
    """MeshNet with 18 classes and its published weights (brainchop); one head without reference labels."""
    module = load_published(MeshNet(), data / "networks" / "meshnet_18cls.safetensors")
    pipeline = Pipeline("segmentation", MESHNET_CLASSES, spatial_dims=3, orientation="LIA", normalize="minmax")
    rows = [{"image": str(data / "brain" / "t1_crop.nii.gz"), "patient": "head", "split": "test"}]
    # The graph is the same for every size; a small example spares 1.4 GB per activation.
    return Reference(module, (1, 32, 32, 32), pipeline, rows)


def mobilenet(data: Path, device: str) -> Reference:
    """MobileNetV2 for ImageNet with its published int8 weights as floats: a backbone to fine-tune."""
    module = load_published(MobileNetV2(), data / "networks" / "mobilenet_v2_imagenet_tf2_int8.npz")
    classes = ("background", *(f"ImageNet {k}" for k in range(1000)))
    ones = (1.0, 1.0, 1.0)  # px / 127.5 − 1
    fixed = {"normalize": "fixed", "mean": ones, "std": ones, "scale": 127.5}
    pipeline = Pipeline("classification", classes, channels=3, size=(224, 224), **fixed)
    return Reference(module, (3, 224, 224), pipeline)


REFERENCES: dict[str, Callable[[Path, str], Reference]] = {
    function.__name__: function
    for function in (
        *(hippocampus, hippocampus_dynunet, hippocampus_segresnet, hippocampus_swin),
        *(skin, chest, chest_vit, retina, meshnet, mobilenet),
    )
}


def build(name: str, data: Path, *, retrain: bool = False, device: str = "cpu", threads: int = 2) -> Path:
    """Return the path of a reference's network.pt2; train or convert it first if it is not there yet."""
    folder = cache() / name
    if not (folder / "network.pt2").is_file() or retrain:
        data = data.resolve()
        if not data.is_dir():
            sys.exit(f"There is no data folder {data}: give it with --data.")
        torch.set_num_threads(threads)
        store(folder, REFERENCES[name](data, device))
    print((folder / "scores.json").read_text().strip())
    return folder / "network.pt2"


def cache() -> Path:
    """Where the references are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "microtome" / "references"


def _diagnoses(path: Path) -> dict[str, str]:
    with path.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    columns = {"melanoma": "melanoma", "seborrheic_keratosis": "seborrheic keratosis"}
    return {
        line["image_id"]: next((name for key, name in columns.items() if float(line[key]) == 1), "nevus")
        for line in lines
    }


def main() -> None:
    repository = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=REFERENCES)
    parser.add_argument("--retrain", action="store_true", help="replace what is in the cache")
    default = os.environ.get("MICROTOME_DATA") or repository.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(default), help="folder of the data sets")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="1 is faster on a machine that others use as well")
    options = parser.parse_args()
    settings = {"retrain": options.retrain, "device": options.device, "threads": options.threads}
    print(build(options.name, options.data, **settings))


if __name__ == "__main__":
    main()
