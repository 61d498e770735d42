"""Input for training: the train cases, epoch after epoch; and what early stopping looks at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
import torch

from microtome.batches.calibration import inputs, tensors
from microtome.batches.selection import balanced
from microtome.errors import LabelError, OptionError, SplitError
from microtome.medical.augment import Augmentation, augment
from microtome.medical.cohort import Cohort
from microtome.medical.foreground import foreground_points, prepare_labels, window_at
from microtome.medical.inputs import arrays_of, batch_of, each, label_channels
from microtome.medical.pipeline import Pipeline
from microtome.medical.prepare import prepare
from microtome.medical.sliding import block_of
from microtome.tasks import task
from microtome.tasks.base import Task
from microtome.types import Array, Batch, Case

# Share of windows that are centred on a labelled structure; the others lie anywhere.
ON_FOREGROUND = 0.5
# Voxels of each structure that are kept to centre windows on.
POINTS = 1000
# Images that float16 rounds by more, as a share of their standard deviation, are kept in float32.
HALF_NOISE = 2e-3
TUNING_BYTES = 1 << 29
Target = Array | float | tuple[float, ...]
# Streams of random numbers, apart from one another.
ORDER, DRAW, READ = 1, 2, 3


@dataclass(frozen=True)
class _Example:
    """A prepared case: image (C, *S), its labels on the same grid, voxels of each structure, and further numbers."""

    image: Array
    labels: Array | None
    points: tuple[Array, ...]
    numbers: Mapping[str, Array]

    @property
    def nbytes(self) -> int:
        arrays = (self.image, *self.points, *(() if self.labels is None else (self.labels,)))
        return sum(array.nbytes for array in arrays)


@dataclass(eq=False)
class TrainingBatches:
    """Iterating yields one epoch of shuffled batches (N, C, *S), float32, and then moves on to the next epoch.

    Of networks with several inputs a batch has all of them by name.

    Every case is seen once per epoch: its whole image, or one window of the pipeline's patch. What is drawn depends on
    `seed`, `epoch` and the case alone, not on what is cached or on how many processes there are. The last batch
    may be smaller. Images of sizes of their own (neither `patch` nor `size` in the pipeline) come one by one.

    Attributes:
        cohort: where the cases belong.
        cases: to train on; all of role train.
        pipeline: pre-processing of the network.
        batch: images per batch.
        seed: of order, windows and augmentation.
        cached_bytes: memory for prepared images, which are kept as float16; what is beyond is read anew each epoch.
        augment: small random shifts, zooms and changes of intensity.
        flips: spatial axes along which a mirrored image is another plausible image; only with `augment`.
        labelled: yield (x, y): y are label maps (N, *S) or classes (N,), int64; or numbers (N, K), float32.
        partly: with `labelled`, cases without a reference have the task's `unknown_target`, and are not refused.
        rank: of this process among `world`, for training in several processes. Each gets other cases, and all get
            equally many batches of equal sizes; the few cases that cannot be shared out change from epoch to epoch.
        world: number of processes.
        epoch: the next one to be yielded; set it to go on from there.

    Raises:
        OptionError: a number out of range, or fewer cases than processes.
        SplitError: no cases, or some that are not for training.
        LabelError: `labelled` and not `partly`, but a case has no reference.
    """

    cohort: Cohort
    cases: Sequence[Case]
    pipeline: Pipeline
    _: KW_ONLY
    batch: int = 4
    seed: int = 0
    cached_bytes: int = 2 << 30
    augment: bool = True
    flips: tuple[int, ...] = ()
    labelled: bool = False
    partly: bool = False
    rank: int = 0
    world: int = 1
    epoch: int = 0
    _cache: dict[int, _Example] = field(default_factory=dict, init=False, repr=False)
    _room: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check everything that needs no image."""
        self.cases, self.flips = tuple(self.cases), tuple(self.flips)
        if self.batch < 1:
            raise OptionError(f"a batch needs at least one image, not {self.batch}.")
        if any(not 0 <= axis < self.pipeline.network_dims for axis in self.flips):
            axes = ", ".join(map(str, range(self.pipeline.network_dims)))
            raise OptionError(f"there is no spatial axis {self.flips} to mirror.", f"The axes are {axes}.")
        if not 0 <= self.rank < self.world:
            raise OptionError(f"rank {self.rank} does not exist among {self.world} processes.")
        if any(case.role != "train" for case in self.cases) or not self.cases:
            raise SplitError("there are no cases to train on, or some of them are kept for tuning or evaluation.")
        if len(self.cases) < self.world:
            raise OptionError(f"{len(self.cases)} cases cannot be shared out to {self.world} processes.")
        if self.labelled and not self.partly:
            missing = [case.id for case in self.cases if not case.labelled]
            if missing:
                raise LabelError(f"{missing[0]} has no reference to train on.", "Label all cases, or train without.")
        self._room = self.cached_bytes

    def __len__(self) -> int:
        """Return the number of batches per epoch, the same for all ranks."""
        return math.ceil(self._share / self._per_batch)

    def __iter__(self) -> Iterator[Any]:  # tensors, or pairs of tensors
        """Yield one epoch."""
        epoch = self.epoch
        order = np.random.default_rng([self.seed, epoch, 0, ORDER]).permutation(len(self.cases))
        mine = order[self.rank * self._share : (self.rank + 1) * self._share]
        for first in range(0, len(mine), self._per_batch):
            drawn = [self._draw(int(position), epoch) for position in mine[first : first + self._per_batch]]
            numbers = {name: np.stack([one[name] for _, one, _ in drawn]) for name in drawn[0][1]}
            x = tensors(batch_of(np.stack([image for image, _, _ in drawn]), numbers, self.pipeline))
            if self.labelled:
                yield x, torch.from_numpy(np.stack([_target(label) for _, _, label in drawn]))
            else:
                yield x
        self.epoch = epoch + 1

    @property
    def _kind(self) -> Task:
        return task(self.pipeline.task)

    @property
    def _share(self) -> int:
        return len(self.cases) // self.world

    @property
    def _per_batch(self) -> int:
        return self.batch if self.pipeline.input_shape is not None else 1

    def _draw(self, position: int, epoch: int) -> tuple[Array, Mapping[str, Array], Target | None]:
        """Return image, further numbers and target of a case as they are in one epoch."""
        rng = np.random.default_rng([self.seed, epoch, position, DRAW])
        example = self._example(position)
        image, labels = example.image, example.labels
        patch, slices = block_of(self.pipeline, image.shape[1:]), self.pipeline.slices
        if patch is not None:
            centre = _centre(example, rng)
            image = window_at(image, centre, patch, slices)
            labels = None if labels is None else window_at(labels[None], centre, patch, slices and 1)[0]
        if self.augment:
            image, labels = self._augmented(image, labels, rng)
        target = self._target(self.cases[position], image.shape[1:], labels) if self.labelled else None
        return np.ascontiguousarray(image, np.float32), example.numbers, target

    def _target(self, case: Case, size: Sequence[int], labels: Array | None) -> Target:
        known = labels is not None if self._kind.MAPS else case.label is not None
        if known or not self.partly:
            return self._kind.training_target(case, labels)
        return self._kind.unknown_target(size, self.pipeline)

    def _augmented(self, image: Array, labels: Array | None, rng: np.random.Generator) -> tuple[Array, Array | None]:
        """Return an image and its labels changed; channels that are made of labels are moved as labels are."""
        how, marks = Augmentation(flips=self.flips), list(label_channels(self.pipeline))
        if not marks:
            return augment(image, labels, how, rng)
        others = [channel for channel in range(len(image)) if channel not in marks]
        maps = [*image[marks], *([] if labels is None else [labels])]
        seen, moved = augment(image[others], np.stack(maps, axis=-1), how, rng)
        assert moved is not None
        whole = np.empty((len(image), *seen.shape[1:]), np.float32)
        whole[others], whole[marks] = seen, np.moveaxis(moved[..., : len(marks)], -1, 0)
        return whole, None if labels is None else moved[..., -1].astype(labels.dtype)

    def _example(self, position: int) -> _Example:
        """Return a prepared case from memory or from disk. It is rounded to float16 either way."""
        if position in self._cache:
            return self._cache[position]
        example = self._read(self.cases[position], np.random.default_rng([self.seed, 0, position, READ]))
        if example.nbytes <= self._room:
            self._room -= example.nbytes
            self._cache[position] = example
        return example

    def _read(self, case: Case, rng: np.random.Generator) -> _Example:
        image = self.cohort.image(case)
        prepared = prepare(image, self.pipeline)
        labels: Array | None = None
        parts = block_of(self.pipeline, prepared.array.shape[1:]) is not None
        if self._kind.MAPS and (self.labelled or parts):
            mask = self.cohort.mask(case, image)
            labels = None if mask is None else prepare_labels(_narrow(mask), prepared)
        points: tuple[Array, ...] = ()
        if labels is not None and parts:
            points = tuple(p.astype(np.int32) for p in foreground_points(labels, rng, POINTS))
        return _Example(_halved(prepared.array), labels if self.labelled else None, points, prepared.numbers)


@dataclass(eq=False)
class TuningBatches:
    """A fixed small set of inputs of tuning cases (1, C, *S), for early stopping: read once, then kept.

    Of networks with several inputs each has all of them by name.

    Cases are spread over classes, subgroups and patients. There are at most `limit`, and no more than fit into
    `cached_bytes`, but at least one.

    Raises:
        SplitError: no tuning cases.
    """

    cohort: Cohort
    pipeline: Pipeline
    limit: int = 32
    seed: int = 0
    cached_bytes: int = TUNING_BYTES
    _kept: list[Batch] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that there is something to look at."""
        if not self.cohort.tuning or self.limit < 1:
            raise SplitError("there are no tuning cases.", "Give a share of the patients with --tuning.")

    def __iter__(self) -> Iterator[Any]:  # a tensor, or several by name
        """Yield the same tensors each time."""
        if not self._kept:
            self._kept = self._read()
        for x in self._kept:
            yield tensors(each(x, lambda array: array.astype(np.float32)))

    def _read(self) -> list[Batch]:
        rng = np.random.default_rng(self.seed)
        kept: list[Batch] = []
        room = self.cached_bytes
        for case in balanced(self.cohort.tuning, self.limit, rng):
            for x in inputs(self.cohort, case, self.pipeline, rng):
                half = each(x, lambda array: _halved(array[0])[None] if array.ndim > 2 else array)
                room -= sum(array.nbytes for array in arrays_of(half))
                if kept and room < 0:
                    return kept
                kept.append(half)
        return kept


def _target(label: Target | None) -> Array:
    """Return a target as an array: labels and classes int64, numbers float32."""
    array = np.asarray(label)
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)


def _centre(example: _Example, rng: np.random.Generator) -> tuple[int, ...]:
    """A voxel of a structure, each structure as often as the others; or any voxel."""
    if rng.random() < ON_FOREGROUND and example.points:
        voxels = example.points[rng.integers(len(example.points))]
        return tuple(int(n) for n in voxels[rng.integers(len(voxels))])
    return tuple(int(n) for n in rng.integers(example.image.shape[1:]))


def _narrow(labels: Array) -> Array:
    return labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.uint16)


def _halved(array: Array) -> Array:
    """Return an image (C, *S) in float16, or in float32 if a channel would lose of its contrast.

    Float16 reaches from 6e-8 to 65504 with three digits: too few for ADC maps in m²/s, and for contrast on an offset.
    """
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    for channel, rounded in zip(array, half, strict=True):
        noise = float(np.square(rounded.astype(np.float64) - channel).mean())
        if not noise <= (HALF_NOISE * float(channel.std(dtype=np.float64))) ** 2:  # infinity is noise too
            return np.asarray(array, np.float32)
    return half
