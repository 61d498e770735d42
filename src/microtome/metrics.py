"""The metrics, in one table: how they are called, what is better, and what loss is acceptable unless somebody says.

A metric of a structure compares two masks of one case; `computed_by` names its function of `clinical.masks.Masks`. A
metric of classes is one number for a cohort; its function takes probabilities, labels, a threshold and weights, as
`clinical.classification.auroc` does. A metric of numbers takes predictions, references, weights and their spread, as
`clinical.numbers.mae` does; one of images two arrays, as `clinical.pixels.psnr`; those of boxes are of
`clinical.detection`. Others belong to a task of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

STRUCTURE, CLASSES, NUMBERS, IMAGES, BOXES = "structure", "classes", "numbers", "images", "boxes"


@dataclass(frozen=True)
class Metric:
    """What is known of a metric, whatever its value.

    Attributes:
        title: as it is written in tables and sentences.
        words: what it says, for people who do not know it.
        of: `structure`, `classes`, `numbers`, `images`, `boxes`, or a task's own kind.
        computed_by: `module:function`; empty where the task computes it.
        unit: empty for shares, `length` for what is measured in millimetres (or pixels), or a unit's own symbol.
        better: which values are better.
        margin: the acceptable loss by default; None where a user must say it.
        guard: the loss that no verdict on another metric may hide; None is the margin, where there is one, 0 is none.
        best: what a perfect result has.
        worst: what stands for a structure that only one of two masks has; None is the diagonal of the image.
    """

    title: str
    words: str
    of: str = ""
    computed_by: str = ""
    unit: str = ""
    better: Literal["higher", "lower"] = "higher"
    margin: float | None = None
    guard: float | None = None
    best: float = 1.0
    worst: float | None = 0.0

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value is a better one."""
        return self.better == "lower"

    def gain(self, difference: float) -> float:
        """What a difference gains: it falls below zero where something is lost."""
        return -difference if self.lower_is_better else difference


# fmt: off
METRICS: Mapping[str, Metric] = {
    "dice": Metric("Dice", "overlap of two masks, 0 to 1", STRUCTURE, "microtome.clinical.overlap:dice_of_masks", margin=0.005),
    "nsd": Metric("NSD", "share of the surface within the tolerance, 0 to 1", STRUCTURE, "microtome.clinical.surface:nsd_of_masks", guard=0.01),
    "hd95": Metric("HD95", "95th percentile of the surface distance; lower is better", STRUCTURE, "microtome.clinical.surface:hd95_of_masks", unit="length", better="lower", guard=1.0, best=0.0, worst=None),
    "auroc": Metric("AUROC", "area under the ROC curve, 0.5 is chance", CLASSES, "microtome.clinical.classification:auroc", margin=0.01),
    "auprc": Metric("AUPRC", "area under the precision-recall curve", CLASSES, "microtome.clinical.classification:auprc", guard=0.02),
    "sensitivity": Metric("Sensitivity", "share of the positive cases found, at the operating point", CLASSES, "microtome.clinical.classification:sensitivity", guard=0.02),
    "specificity": Metric("Specificity", "share of the negative cases left alone, at the operating point", CLASSES, "microtome.clinical.classification:specificity", guard=0.02),
    "nmae": Metric("NMAE", "mean absolute error in standard deviations (SD) of the references; lower is better", NUMBERS, "microtome.clinical.numbers:nmae", unit="SD", better="lower", margin=0.05, guard=0.0, best=0.0, worst=None),
    "mae": Metric("MAE", "mean absolute error, in the reference's own units; lower is better", NUMBERS, "microtome.clinical.numbers:mae", unit="units", better="lower", best=0.0, worst=None),
    "rmse": Metric("RMSE", "root of the mean squared error, in the reference's own units; lower is better", NUMBERS, "microtome.clinical.numbers:rmse", unit="units", better="lower", best=0.0, worst=None),
    "concordance": Metric("Concordance", "Lin's concordance correlation coefficient, 1 is perfect", NUMBERS, "microtome.clinical.numbers:concordance", guard=0.02),
    "psnr": Metric("PSNR", "peak signal to noise ratio", IMAGES, "microtome.clinical.pixels:psnr", unit="dB", margin=0.5, best=100.0, worst=None),
    "ssim": Metric("SSIM", "structural similarity, 1 is perfect", IMAGES, "microtome.clinical.pixels:ssim", guard=0.01),
    "nrmse": Metric("NRMSE", "root mean squared error over the root mean square of the reference; lower is better", IMAGES, "microtome.clinical.pixels:nrmse", guard=0.02, better="lower", best=0.0, worst=None),
    "froc": Metric("FROC", "mean sensitivity at 1/8 to 8 false findings per image, at an overlap of 0.1", BOXES, margin=0.02),
    "map": Metric("mAP", "mean average precision at overlaps of 0.50 to 0.95, as COCO defines it", BOXES, guard=0.02),
    "ap50": Metric("AP50", "average precision at an overlap of 0.50", BOXES, guard=0.02),
    "ap10": Metric("AP10", "average precision at an overlap of 0.10", BOXES, guard=0.02),
    "sensitivity@0.125": Metric("Sensitivity at 1/8", "share of references found at 1/8 false findings per image", BOXES, guard=0.03),
    "sensitivity@0.25": Metric("Sensitivity at 1/4", "share of references found at 1/4 false findings per image", BOXES, guard=0.03),
    "sensitivity@0.5": Metric("Sensitivity at 1/2", "share of references found at 1/2 false findings per image", BOXES, guard=0.03),
    "sensitivity@1": Metric("Sensitivity at 1", "share of references found at 1 false findings per image", BOXES, guard=0.03),
    "sensitivity@2": Metric("Sensitivity at 2", "share of references found at 2 false findings per image", BOXES, guard=0.03),
    "sensitivity@4": Metric("Sensitivity at 4", "share of references found at 4 false findings per image", BOXES, guard=0.03),
    "sensitivity@8": Metric("Sensitivity at 8", "share of references found at 8 false findings per image", BOXES, guard=0.03),
    "hits": Metric("Found", "share of references found, at the operating point", BOXES, guard=0.02),
    "false": Metric("False", "false findings per image, at the operating point; lower is better", BOXES, unit="per image", better="lower", guard=0.1, best=0.0, worst=None),
}
# fmt: on


def named(of: str) -> tuple[str, ...]:
    """Return the names of the metrics of one kind, in the order in which they are shown."""
    return tuple(name for name, metric in METRICS.items() if metric.of == of)


def base(name: str) -> str:
    """Return `dice` of `dice/anterior`."""
    return name.partition("/")[0]


def part(name: str) -> str:
    """Return `anterior` of `dice/anterior`; empty for `dice`."""
    return name.partition("/")[2]


def about(name: str, own: Mapping[str, Metric] | None = None) -> Metric:
    """Return what is known of a metric; one that nobody has described gets its own name as title.

    Args:
        name: such as `dice` or `dice/anterior`.
        own: metrics of a task, over those of the table.
    """
    key = base(name)
    return (own or {}).get(key) or METRICS.get(key) or Metric(key, "")


def distinct(names: Iterable[str], keep: str = "") -> list[str]:
    """Leave out the metrics of a single structure where the mean over structures is there: both say the same.

    Args:
        names: in any order, such as `dice`, `dice/foreground`, `nsd`.
        keep: stays in any case, such as the metric of the verdict; the mean is left out in its place.
    """
    names = list(names)
    parts: dict[str, list[str]] = {}
    for name in names:
        if part(name):
            parts.setdefault(base(name), []).append(name)
    single = {first: found[0] for first, found in parts.items() if len(found) == 1 and first in names}
    left_out = {first if name == keep else name for first, name in single.items()}
    return [name for name in names if name not in left_out]


def title(name: str, own: Mapping[str, Metric] | None = None) -> str:
    """Return a metric as it is written in a sentence: `dice/anterior` → "Dice (anterior)"."""
    return about(name, own).title + (f" ({part(name)})" if part(name) else "")
