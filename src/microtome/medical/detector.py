"""How the raw heads of a detector become boxes, declared as data; `medical.decoding` carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from microtome.errors import OptionError

Anchor = tuple[float, ...]


@dataclass(frozen=True)
class Detector:
    """The heads of a detector, and what is done to its boxes.

    A head is one output (N, M, numbers) or, level by level, maps (N, A·numbers, *S), as they come out of convolutions.
    Sizes and places are in voxels of the network's grid. The numbers of a box have the axes in the order of `axes`.

    Attributes:
        head: `anchors`: offsets of centres and logarithms of sizes, against anchors (Faster R-CNN, RetinaNet: Lin et
            al., ICCV 2017); `points`: distances from points to the lower and then to the upper sides (FCOS: Tian et
            al., ICCV 2019); `queries`: centres and sizes as shares of the image (DETR: Carion et al., ECCV 2020);
            `corners`: lower and upper corners, decoded already.
        scores: names of the outputs with a score for each class, one name, or one per level. None named: they are the
            first numbers of each row of the only output, which is (N, M, classes + 2·d).
        boxes: likewise of the outputs with the numbers of the boxes.
        centreness: likewise of those with one more score each, whose product with the others counts, by its root.
        strides: of each level, in voxels; for `anchors` and `points`.
        anchors: of each level, the size of each anchor, in the order of the head, such as `[[[16, 16]], [[32, 32]]]`.
        shift: where the first anchor or point stands, in strides: 0 in torchvision and MONAI, 0.5 in the middle.
        weights: that offsets are divided by first, one for each number of a box.
        by_stride: distances of `points` are in strides of the level.
        axes: `xy` has the last axis first, as torchvision and COCO do; `stored` has the axes of the array. None is `xy`
            for pictures and `stored` for volumes.
        least: the smallest score that is kept.
        candidates: kept of each level, those of the highest scores.
        overlap: boxes of a class that overlap a better one by more are dropped (non-maximum suppression); None keeps
            all.
        limit: boxes kept of an image, those of the highest scores.

    Raises:
        OptionError: values that make no sense.
    """

    head: Literal["anchors", "points", "queries", "corners"]
    scores: tuple[str, ...] = ()
    boxes: tuple[str, ...] = ()
    centreness: tuple[str, ...] = ()
    strides: tuple[float, ...] = ()
    anchors: tuple[tuple[Anchor, ...], ...] = ()
    shift: float = 0.0
    weights: tuple[float, ...] | None = None
    by_stride: bool = False
    axes: Literal["xy", "stored"] | None = None
    least: float = 0.05
    candidates: int = 1000
    overlap: float | None = 0.5
    limit: int = 100

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        grid = self.head in ("anchors", "points")
        _require(bool(self.strides) == grid, f"'strides' go with anchors and points, not with {self.head}")
        _require(all(stride > 0 for stride in self.strides), "'strides' must be positive")
        _require(bool(self.anchors) == (self.head == "anchors"), f"'anchors' go with that head only, not {self.head}")
        _require(len(self.anchors) in (0, len(self.strides)), "'anchors' need an entry for each of 'strides'")
        sizes = [size for level in self.anchors for anchor in level for size in anchor]
        _require(all(size > 0 for size in sizes), "the sizes of 'anchors' must be positive")
        _require(all(self.anchors), "each level of 'anchors' needs one at least")
        _require(bool(self.scores) == bool(self.boxes), "'scores' and 'boxes' name outputs together, or neither does")
        _require(len(self.scores) == len(self.boxes), "'scores' and 'boxes' need equally many names")
        _require(len(self.centreness) in (0, len(self.scores)), "'centreness' needs as many names as 'scores'")
        _require(0 <= self.least < 1, f"'least' must be at least 0 and below 1, not {self.least}")
        _require(self.overlap is None or 0 <= self.overlap <= 1, f"'overlap' must be 0 to 1, not {self.overlap}")
        _require(self.candidates > 0 and self.limit > 0, "'candidates' and 'limit' must be positive")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of all outputs that it reads."""
        return (*self.scores, *self.boxes, *self.centreness)


def _require(truth: object, problem: str) -> None:
    if not truth:
        raise OptionError(f"Pipeline: detector: {problem}.", "Correct pipeline.json.")
