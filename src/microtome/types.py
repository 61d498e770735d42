"""Small frozen values that several rooms share. Numpy only: no torch, no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

Role = Literal["train", "tuning", "evaluation"]
ObserverName = Literal["minmax", "moving_average", "percentile", "mse", "kl"]
CalibrationChoice = Literal["first", "random", "stratified", "foreground", "diverse"]
Array = np.ndarray
Batch = Array | Mapping[str, Array]
"""What a network takes or returns: float32 (N, C, *S), its first input or output; or all of them by name."""
Bits = tuple[int | None, int | None]
"""Widths of a layer's weight and of its input; None is float."""


@dataclass(frozen=True)
class QType:
    """An integer number format for tensors: how many bits, which grid, how many scales.

    `symmetric` puts real zero at integer zero (for signed) and leaves out the most negative value when
    `narrow`, so that the grid is the same on both sides, as weights want it. `axis` is the dimension that has a
    scale of its own (per channel); None is one scale for the tensor.
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    narrow: bool = False
    axis: int | None = None

    def __post_init__(self) -> None:
        """Refuse widths that no integer format has."""
        if not 1 <= self.bits <= 16:
            raise ValueError(f"bits must be 1 to 16, not {self.bits}")

    @property
    def qmin(self) -> int:
        """Smallest integer of the grid."""
        if not self.signed:
            return 0
        return -(1 << (self.bits - 1)) + (1 if self.narrow and self.bits > 1 else 0)

    @property
    def qmax(self) -> int:
        """Largest integer of the grid."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def name(self) -> str:
        """Such as `int8` or `uint8`."""
        return f"{'int' if self.signed else 'uint'}{self.bits}"


@dataclass(frozen=True)
class QParams:
    """Where a tensor's grid lies: `real = scale * (integer - zero_point)`.

    `scale` (float32) and `zero_point` (int32) are scalars (shape ()) or have one entry per channel (shape (C,)).
    """

    scale: torch.Tensor
    zero_point: torch.Tensor
    qtype: QType


@dataclass(frozen=True)
class OperatorSupport:
    """How a target runs one kind of operator in integers.

    Attributes:
        activation: format of the input; None leaves it in float.
        weight: format of the weight; its channel axis is the operator's own. None leaves it in float.
        spatial_dims: for convolutions, which dimensionalities have integer kernels.
        directly: the quantizer must stand right before the operator, not before a transparent one in between.
        output: numbers of axes of a tensor (batch and channels count) at which the output must be quantized too, or the
            target runs the operator in float.
    """

    activation: QType | None
    weight: QType | None
    spatial_dims: tuple[int, ...] = (1, 2, 3)
    directly: bool = False
    output: tuple[int, ...] = ()

    def at(self, bits: Bits) -> OperatorSupport:
        """Return the same with other widths. Two bits have no room for a grid without its most negative value."""
        weight, activation = self.weight, self.activation
        if weight is not None:
            weight = None if bits[0] is None else replace(weight, bits=bits[0], narrow=weight.narrow and bits[0] > 2)
        if activation is not None:
            activation = None if bits[1] is None else replace(activation, bits=bits[1])
        return replace(self, weight=weight, activation=activation)


@dataclass(frozen=True)
class Capabilities:
    """What a target can run, as data: the only thing that methods know of a runtime.

    `operators` maps `conv`, `conv_transpose`, `linear`, `matmul` to their integer support; kinds that are missing stay
    in float. `transparent` are operator kinds that the target runs on integers as they are (pooling, concat, …), so
    that a quantizer may stand before them instead of behind. `readers` are operator kinds without a
    weight that it can feed with integers, with the format: faster where an integer layer stands before them.

    Targets that only know graphs in integers from end to end name more: `integers` are operator kinds without a weight
    that read and give integers, each on a grid of its own; then every value that such an operator, or a layer, reads or
    gives has a quantizer. `same_grid` are those that give their integers on the grid of those that they read, rounded
    to it, such as averages.
    """

    target: str
    operators: Mapping[str, OperatorSupport] = field(default_factory=dict)
    transparent: frozenset[str] = frozenset()
    readers: Mapping[str, QType] = field(default_factory=dict)
    integers: Mapping[str, QType] = field(default_factory=dict)
    same_grid: frozenset[str] = frozenset()


FREE = -1
"""The size of an axis that a model file leaves open."""


@dataclass(frozen=True)
class Port:
    """An input or an output of a network.

    Attributes:
        name: under which it is given or returned.
        shape: without the batch: (channels, *spatial) of the example that the network was captured with. A model file
            may leave a size open: FREE there.
        dynamic: for the batch and each following axis, whether other sizes are allowed.
    """

    name: str
    shape: tuple[int, ...]
    dynamic: tuple[bool, ...]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; None where it cannot be computed."""

    value: float | None
    low: float | None
    high: float | None


Label = int | float | tuple[float | None, ...]
"""The number of a class; or several numbers, None where one is missing."""


@dataclass(frozen=True)
class Boxes:
    """The reference boxes of a case; there may be none.

    Attributes:
        labels: the number of each box's class.
        corners: of each, the lower corner and then the upper one.
        frame: what corners are in: `voxel`s of the image, axes as in its array, a voxel k reaching from k to k + 1; or
            millimetres, as in an affine of NIfTI (`ras`) or as in DICOM and ITK (`lps`).
    """

    labels: tuple[int, ...]
    corners: tuple[tuple[float, ...], ...]
    frame: Literal["voxel", "ras", "lps"] = "voxel"

    def numbered(self, numbers: Mapping[int, int]) -> Boxes:
        """Return the same boxes with other numbers of their classes."""
        return replace(self, labels=tuple(numbers[label] for label in self.labels))


@dataclass(frozen=True)
class Further:
    """What a network takes beside an image: one of these.

    Attributes:
        numbers: such as an age, as the network takes them.
        images: one file, or one per channel, on the image's grid.
        labels: a label map on the image's grid.
    """

    numbers: tuple[float, ...] = ()
    images: tuple[Path, ...] = ()
    labels: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read."""
        return self.images if self.labels is None else (self.labels,)


@dataclass(frozen=True)
class Case:
    """One examination: where its files are and whose it is.

    `id` and `patient` are pseudonyms that the cohort gave out (`case-0007`, `patient-003`): safe to print and to
    store. File names may identify a patient and must not reach a log, a report or a package.

    Attributes:
        image: one file; one file per channel; or the slices of one DICOM series.
        mask: the reference segmentation, on the image's grid.
        label: the reference class, an index into the cohort's class names; or reference numbers (or answers 0 and 1) in
            the order of the cohort's names, None where one is missing.
        index: position within the file, where one file holds the whole cohort (MedMNIST).
        role: what the case may be used for. `train` cases may have been seen in training; calibration takes from them.
        subgroups: further columns (site, sex, device, …) by which results are also shown.
        further_masks: other parts of the reference, where it lies in several files.
        target: the image that a network ought to make of this one.
        boxes: the boxes that a network ought to find.
        inputs: what the network takes beside the image, by name: numbers, or files on the image's grid. Filled in when
            the pipeline that declares it is known.
    """

    id: str
    patient: str
    image: tuple[Path, ...]
    mask: Path | None = None
    label: Label | None = None
    index: int | None = None
    role: Role = "evaluation"
    subgroups: Mapping[str, str] = field(default_factory=dict)
    further_masks: tuple[Path, ...] = ()
    inputs: Mapping[str, Further] = field(default_factory=dict)
    target: Path | None = None
    boxes: Boxes | None = None

    @property
    def labelled(self) -> bool:
        """Whether there is a reference, of whatever kind."""
        return any(one is not None for one in (self.mask, self.label, self.target, self.boxes))

    @property
    def number(self) -> int | float | None:
        """The label where it is a single number, as that of a class is."""
        return None if isinstance(self.label, tuple) else self.label

    @property
    def reference_files(self) -> tuple[Path, ...]:
        """The files that the reference lies in."""
        return tuple(path for path in (self.mask, *self.further_masks, self.target) if path is not None)

    def without_reference(self) -> Case:
        """Return the same examination, of which nothing is known."""
        return replace(self, mask=None, further_masks=(), label=None, target=None, boxes=None)


@dataclass(frozen=True)
class Forms:
    """The two ways in which a NIfTI header says where its voxels lie. Programs differ in which of them they take.

    Attributes:
        fields: what the header says of its grid, by the names of NIfTI-1 and in its own unit, to be copied as it is.
        qform: 4×4, voxel indices → RAS+ millimetres; None where its code is 0.
        sform: likewise.
    """

    fields: Mapping[str, Any]
    qform: Array | None
    sform: Array | None


@dataclass(frozen=True)
class Image:
    """An image read from files, on its own grid.

    `array` is (channels, *spatial) with the stored numeric type after rescaling: pictures (C, H, W), volumes
    (C, I, J, K) in nibabel's axis order. `affine` is 4×4, voxel indices → RAS+ millimetres; None for pictures, which
    have no physical grid (their spacing then is 1 pixel). `forms` are those of a NIfTI file; `affine` is the one of
    them that nibabel takes. `notes` say what had to be assumed to read it; they name no file. `inputs` are what the
    network takes beside it, by name: numbers (K,); an image (C, *spatial) or a label map (*spatial) on the same grid.
    """

    array: Array
    affine: Array | None = None
    forms: Forms | None = None
    notes: tuple[str, ...] = ()
    inputs: Mapping[str, Array] = field(default_factory=dict)

    @property
    def spatial(self) -> tuple[int, ...]:
        """Size of the spatial axes."""
        return tuple(self.array.shape[1:])

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres (pixels for pictures) per step along each spatial axis."""
        if self.affine is None:
            return (1.0,) * (self.array.ndim - 1)
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))
