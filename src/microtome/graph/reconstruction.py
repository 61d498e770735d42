"""Make a quantized network give what the float network gives, one block after the other.

What enters and what leaves a block lies on disk, sample by sample, so that memory holds one block and a few samples,
however many there are.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from microtome.core.affine import dequantize
from microtome.core.rounding import annealed_beta, indecision, logits_of, rectified_sigmoid
from microtome.errors import DataError
from microtome.graph.blocks import Block, blocks, run_block
from microtome.graph.learned import Grid, LearnedGrid
from microtome.graph.network import Network
from microtome.graph.operators import constant_source
from microtome.graph.trainable import Slot, Trainable
from microtome.types import QParams

DECISIVENESS = 1.0  # weight of the regularizer, where the loss is 1 for rounding to nearest
Values = dict[Node, Any]


@dataclass(frozen=True)
class Schedule:
    """How a block is optimised.

    Attributes:
        steps: per block.
        samples: images per step.
        rate: of the rounding's logits (Adam).
        grid_rate: of the logarithm of activation scales; 0 leaves them.
        drop: share of activations that stay in float, drawn anew at each step.
        seed: of what is drawn.
    """

    steps: int
    samples: int
    rate: float
    grid_rate: float
    drop: float
    seed: int


class SoftWeight(Grid):
    """A weight between two neighbours on its grid; the share of each is learned."""

    def __init__(self, qparams: QParams, weight: Tensor) -> None:
        """Start where the float weight is: halfway between what rounding down and up would give, by its fraction."""
        super().__init__()
        self.qtype, self._qparams = qparams.qtype, qparams
        shape = [-1 if axis == qparams.qtype.axis else 1 for axis in range(weight.ndim)]
        self._scale, self._zero = qparams.scale.reshape(shape), qparams.zero_point.reshape(shape)
        steps = weight.detach() / self._scale
        self.register_buffer("floor", steps.floor())
        self.logits = nn.Parameter(logits_of((steps - steps.floor()).clamp(1e-4, 1 - 1e-4)))
        self.off = self.hard = False

    floor: Tensor

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight as it is now; in float when `off`; decided when `hard`."""
        if self.off:
            return weight
        up = (self.logits >= 0).float() if self.hard else rectified_sigmoid(self.logits)
        integers = (self.floor + up + self._zero).clamp(self.qtype.qmin, self.qtype.qmax)
        return (integers - self._zero) * self._scale

    def grid(self) -> QParams:
        """Return the grid, which stays."""
        return self._qparams

    def settled(self, weight: Tensor) -> Tensor:
        """Return the decided weight."""
        integers = self.floor + (self.logits.detach() >= 0) + self._zero
        return dequantize(integers.clamp(self.qtype.qmin, self.qtype.qmax).to(torch.int32), self._qparams)


class DroppedGrid(LearnedGrid):
    """An activation grid that lets a random share of values pass in float (QDrop)."""

    def __init__(self, qparams: QParams) -> None:
        """Start from a grid per tensor; `drop` is the share that passes."""
        super().__init__(qparams)
        self.off, self.drop = False, 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Round; in float when `off`."""
        if self.off:
            return x
        rounded = super().forward(x)
        return torch.where(torch.rand_like(x) < self.drop, x, rounded) if self.drop else rounded


def reconstruct(network: Network, batches: Iterable[Tensor], schedule: Schedule, *, layers: int) -> Network:
    """Learn the rounding of weights, and scales of activations, block by block.

    Args:
        network: quantized; its weights not rounded yet, so that without quantizers it is the float network.
        batches: (N, C, *S); each image is a sample.
        schedule: how.
        layers: the most layers of a block.

    Raises:
        DataError: there are no images, or they make values NaN.
    """
    student = Trainable(
        network,
        weight=lambda q: SoftWeight(q.qparams, network.tensor(str(constant_source(q.node).target))),  # type: ignore[union-attr]
        activation=lambda q: DroppedGrid(q.qparams),
    )
    module = student.module
    for parameter in student.weights():
        parameter.requires_grad_(False)
    cut = blocks(module, layers=layers)
    generator = torch.Generator().manual_seed(schedule.seed)
    torch.manual_seed(schedule.seed)
    (start,) = [node for node in module.graph.nodes if node.op == "placeholder"]
    with tempfile.TemporaryDirectory(prefix="microtome-") as folder:
        real, rounded = _Store(Path(folder) / "float"), _Store(Path(folder) / "quantized")
        count = _fill(start, batches, real, rounded)
        for position, block in enumerate(cut):
            slots = [slot for slot in student.slots if slot.node in _around(block)]
            with _float(slots):
                for sample in range(count):
                    made = _run(module, block, real, sample)
                    _check(made, block)
                    real.put(sample, made)
            if any(isinstance(slot.module, SoftWeight) for slot in slots):
                _optimise(module, block, slots, real, rounded, count, schedule, generator)
            for slot in slots:
                if isinstance(slot.module, SoftWeight):
                    slot.module.hard = True
                    slot.module.requires_grad_(False)
            for sample in range(count):
                rounded.put(sample, _run(module, block, rounded, sample))
            alive = {node for later in cut[position + 1 :] for node in later.inputs}
            real.keep(alive)
            rounded.keep(alive)
    return student.freeze()


class _Store:
    """Values by node and sample, one file each."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._index: dict[Node, int] = {}
        self._next = itertools.count()

    def put(self, sample: int, values: Values) -> None:
        for node, value in values.items():
            number = self._index[node] if node in self._index else self._index.setdefault(node, next(self._next))
            torch.save(value, self._folder / f"{number}-{sample}.pt")

    def get(self, sample: int, nodes: Iterable[Node]) -> Values:
        return {node: torch.load(self._folder / f"{self._index[node]}-{sample}.pt") for node in nodes}

    def keep(self, nodes: set[Node]) -> None:
        """Drop all other values."""
        for node in set(self._index) - nodes:
            for file in self._folder.glob(f"{self._index.pop(node)}-*.pt"):
                file.unlink()


def _fill(start: Node, batches: Iterable[Tensor], *stores: _Store) -> int:
    """Store the images, one sample each, and return how many there are."""
    count = 0
    for batch in batches:
        for image in torch.split(batch, 1):
            for store in stores:
                store.put(count, {start: image.clone()})
            count += 1
    if not count:
        raise DataError("there are no calibration images.", "Give at least one training case.")
    return count


def _around(block: Block) -> set[Node]:
    """Return the nodes of a block, and the quantizers of its weights."""
    inside = set(block.nodes)
    return inside | {value for node in block.nodes for value in node.all_input_nodes if value.op == "call_module"}


@torch.no_grad()
def _run(module: Any, block: Block, store: _Store, sample: int) -> Values:
    made = run_block(module, block, store.get(sample, block.inputs))
    return {node: value.contiguous() if isinstance(value, Tensor) else value for node, value in made.items()}


def _check(values: Values, block: Block) -> None:
    for node, value in values.items():
        if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
            raise DataError(
                f"a calibration image makes {node.name} NaN or infinite.", "Check the pre-processing and the weights."
            )


@contextmanager
def _float(slots: list[Slot]) -> Iterator[None]:
    for slot in slots:
        slot.module.off = True  # type: ignore[assignment]
    try:
        yield
    finally:
        for slot in slots:
            slot.module.off = False  # type: ignore[assignment]


def _optimise(
    module: Any,
    block: Block,
    slots: list[Slot],
    real: _Store,
    rounded: _Store,
    count: int,
    schedule: Schedule,
    generator: torch.Generator,
) -> None:
    """Learn one block."""
    weights = [slot.module for slot in slots if isinstance(slot.module, SoftWeight)]
    grids = [slot.module for slot in slots if isinstance(slot.module, DroppedGrid)]
    scale = _nearest_error(module, block, weights, real, rounded, min(count, 4 * schedule.samples))
    if scale == 0:
        return
    groups = [{"params": [weight.logits for weight in weights], "lr": schedule.rate}]
    if schedule.grid_rate and grids:
        groups.append({"params": [grid.log_scale for grid in grids], "lr": schedule.grid_rate})
    optimizer = torch.optim.Adam(groups)
    for grid in grids:
        grid.drop = schedule.drop
    for step in range(schedule.steps):
        beta = annealed_beta(step / schedule.steps)
        optimizer.zero_grad(set_to_none=True)
        for sample in torch.randint(count, (schedule.samples,), generator=generator).tolist():
            given = _mixed(real.get(sample, block.inputs), rounded.get(sample, block.inputs), schedule.drop)
            wanted = real.get(sample, block.outputs)
            loss = _distance(run_block(module, block, given), wanted) / (scale * schedule.samples)
            loss.backward()  # type: ignore[no-untyped-call]
        if beta is not None:
            total = sum(weight.logits.numel() for weight in weights)
            for weight in weights:
                share = DECISIVENESS * weight.logits.numel() / total
                (share * indecision(rectified_sigmoid(weight.logits), beta)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for grid in grids:
        grid.drop = 0.0


@torch.no_grad()
def _nearest_error(
    module: Any, block: Block, weights: list[SoftWeight], real: _Store, rounded: _Store, count: int
) -> float:
    """Return what rounding to nearest loses: the unit in which the loss is measured."""
    for weight in weights:
        weight.hard = True
    errors = [
        float(_distance(run_block(module, block, rounded.get(k, block.inputs)), real.get(k, block.outputs)))
        for k in range(count)
    ]
    for weight in weights:
        weight.hard = False
    return sum(errors) / len(errors)


def _mixed(real: Values, rounded: Values, drop: float) -> Values:
    """Take each value from the float network with probability `drop`, from the quantized one otherwise."""
    if not drop:
        return rounded
    return {
        node: torch.where(torch.rand_like(value) < drop, real[node], value)
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for node, value in rounded.items()
    }


def _distance(made: Values, wanted: Values) -> Tensor:
    """Return the squared error of a block's outputs, each relative to its power, summed."""
    terms = [
        (made[node].float() - target).square().mean() / target.square().mean().clamp(min=1e-12)
        for node, target in wanted.items()
        if isinstance(target, Tensor) and target.is_floating_point()
    ]
    return torch.stack(terms).sum()
