"""Make a quantized network give what the float network gives, one block after the other.

What enters and what leaves a block lies on disk, sample by sample, so that memory holds one block and a few samples,
however many there are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from microtome.core.distillation import divergence
from microtome.core.rounding import annealed_beta
from microtome.errors import DataError
from microtome.graph.learning.soft_rounding import DroppedGrid, SoftWeight, decided, in_float
from microtome.graph.learning.trainable import SPARSE, Trainable
from microtome.graph.network import Batch, Network
from microtome.graph.operators import constant_source
from microtome.graph.structure.blocks import Block, blocks, join_unequal, run_block
from microtome.graph.structure.shared_grids import meets_others
from microtome.graph.watching.store import Store, Values

JUDGED = 4  # steps' worth of samples that tell whether a block became better
SMALLEST_POWER = 1e-12
USUAL_STEPS = 400
LARGEST_RATE = 0.3  # of logits, which lie within 2.4 of undecided


@dataclass(frozen=True)
class Schedule:
    """How a block is optimised.

    Attributes:
        steps: per block.
        samples: images per step.
        rate: of the rounding's logits (Adam), for 400 steps; with fewer it is larger in proportion, up to 0.3, so that
            logits come as far. Otherwise few steps end before weights are decided, near rounding to nearest.
        grid_rate: of the logarithm of activation scales; 0 leaves them.
        drop: share of activations that stay in float, drawn anew at each step.
        seed: of what is drawn.
        decisiveness: weight of the regularizer, where the loss is 1 for rounding to nearest.
        fisher: weigh each output's error with the squared gradient of the network's divergence from float.
        sigmoid: for that divergence: the network's channels are probabilities of their own.
    """

    steps: int
    samples: int
    rate: float
    grid_rate: float
    drop: float
    seed: int
    decisiveness: float = 1.0
    fisher: bool = False
    sigmoid: bool = False

    @property
    def pace(self) -> float:
        """The rate of logits that takes them as far in these steps as `rate` does in the usual number."""
        return max(self.rate, min(LARGEST_RATE, self.rate * USUAL_STEPS / self.steps))


def reconstruct(
    network: Network, batches: Iterable[Batch], schedule: Schedule, *, layers: int, joint: int = 0
) -> Network:
    """Learn the rounding of weights, and scales of activations, block by block.

    A block that did not become better than by rounding to nearest is rounded to nearest. Torch's random state is as
    before afterwards.

    Args:
        network: quantized; its weights not rounded yet, so that without quantizers it is the float network.
        batches: (N, C, *S), or several inputs by name; each image is a sample.
        schedule: how.
        layers: the most layers of a block.
        joint: how many pairs of neighbouring blocks are optimised together.

    Raises:
        DataError: there are no images, or they make values NaN.
        OutputError: the disk is full.
    """

    student = Trainable(
        network,
        weight=lambda q: SoftWeight(
            q.qparams,
            network.tensor(str(constant_source(q.node).target)),  # type: ignore[union-attr]
            zeros=SPARSE in network.state,
        ),
        activation=lambda q: DroppedGrid(q.qparams, learned=schedule.grid_rate > 0 and not meets_others(q.node)),
    )
    for parameter in student.weights():
        parameter.requires_grad_(False)
    cut = blocks(student.module, layers=layers)
    if joint:
        capacities = [
            sum(grid.capacity for grid in _inside(student, block) if isinstance(grid, SoftWeight)) for block in cut
        ]
        cut = join_unequal(cut, capacities, joint)
    devices = [network.device] if network.device.type == "cuda" else []
    with tempfile.TemporaryDirectory(prefix="microtome-") as folder, torch.random.fork_rng(devices):
        torch.manual_seed(schedule.seed)
        _Run(student, cut, schedule, Path(folder)).through(network.arguments(batch) for batch in batches)
    return student.freeze()


class _Run:
    """One reconstruction: the student, its blocks, and what crosses their borders in float and quantized."""

    def __init__(self, student: Trainable, cut: Sequence[Block], schedule: Schedule, folder: Path) -> None:
        self.student, self.cut, self.schedule = student, cut, schedule
        self.module: GraphModule = student.module
        self.real, self.rounded = Store(folder / "float"), Store(folder / "quantized")
        self.final = Store(folder / "final")  # the float network's output
        self.weight = Store(folder / "weight")  # of each element of a block's outputs
        self.generator = torch.Generator().manual_seed(schedule.seed)
        self.count = 0

    def through(self, batches: Iterable[tuple[Tensor, ...]]) -> None:
        """Learn all blocks, in order."""
        self._fill(batches)
        for position, block in enumerate(self.cut):
            grids = _inside(self.student, block)
            with in_float(grids):
                self._forward(block, self.real)
            soft = [grid for grid in grids if isinstance(grid, SoftWeight) and not grid.hard]
            dropped = [grid for grid in grids if isinstance(grid, DroppedGrid)]
            if soft or any(grid.learned for grid in dropped):
                if self.schedule.fisher:
                    self._weigh(position)
                self._learn(block, soft, dropped)
            for grid in soft:
                grid.hard = True
                grid.requires_grad_(False)
            self._forward(block, self.rounded)
            for grid in soft:
                grid.rest()
            alive = {node for later in self.cut[position + 1 :] for node in later.inputs}
            self.real.keep(alive)
            self.rounded.keep(alive)
            self.weight.keep(())

    def _fill(self, batches: Iterable[tuple[Tensor, ...]]) -> None:
        """Store the images, one sample each, and where it is asked for the float network's output."""
        starts = self.module.graph.find_nodes(op="placeholder")
        for batch in batches:
            for images in zip(*(torch.split(given, 1) for given in batch), strict=True):
                sample = dict(zip(starts, images, strict=True))
                self.real.put(self.count, sample)
                self.rounded.put(self.count, sample)
                if self.schedule.fisher:
                    own = {node: image.clone() for node, image in sample.items()}
                    with torch.no_grad(), in_float(slot.module for slot in self.student.slots):
                        self.final.put(self.count, _rest(self.module, self.cut, own))
                self.count += 1
        if not self.count:
            raise DataError("there are no calibration images.", "Give at least one training case.")

    @torch.no_grad()
    def _forward(self, block: Block, store: Store) -> None:
        """Run a block on all samples and keep its outputs."""
        for sample in range(self.count):
            made = run_block(self.module, block, store.get(sample, block.inputs))
            for node, value in made.items():
                if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
                    raise DataError(
                        f"a calibration image makes {node.name} NaN or infinite.",
                        "Check the pre-processing and the weights.",
                    )
            store.put(sample, made)

    def _weigh(self, position: int) -> None:
        """Store what each element of a block's outputs weighs: the squared gradient there, relative to its mean.

        Source: Li et al., "BRECQ", ICLR 2021, equation 10; as there, of the divergence between the float network and
        the one whose blocks are quantized up to here.
        """
        block, later = self.cut[position], self.cut[position + 1 :]
        (end,) = self.cut[-1].outputs
        with decided(_inside(self.student, block)):
            self._forward(block, self.rounded)
        behind = [grid for other in later for grid in _inside(self.student, other)]
        read = {node for other in later for node in other.inputs} - {n for other in later for n in other.outputs}
        for sample in range(self.count):
            values = self.rounded.get(sample, read | set(block.outputs))
            leaves = {n: values[n].requires_grad_() for n in block.outputs if _is_real(values[n])}
            values |= {node: leaf.clone() for node, leaf in leaves.items()}
            with in_float(behind):
                output = _rest(self.module, later, values)[end]
            wanted = self.final.get(sample, [end])[end]
            loss = divergence(output, wanted, sigmoid=self.schedule.sigmoid)
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            self.weight.put(sample, {node: _relative(g) for node, g in zip(leaves, found, strict=True)})

    def _learn(self, block: Block, soft: list[SoftWeight], dropped: list[DroppedGrid]) -> None:
        """Learn one block; keep what was learned if it is better than rounding to nearest."""
        schedule = self.schedule
        judged = range(min(self.count, JUDGED * schedule.samples))
        nearest = self._error(block, soft, judged)
        if nearest == 0:
            return
        logits = [grid.logits for grid in soft]
        scales = [grid.log_scale for grid in dropped if grid.learned]
        for scale in scales:
            scale.requires_grad_()
        start = [parameter.detach().clone() for parameter in (*logits, *scales)]
        groups = [{"params": logits, "lr": schedule.pace}, {"params": scales, "lr": schedule.grid_rate}]
        optimizer = torch.optim.Adam([group for group in groups if group["params"]], fused=True)
        for grid in dropped:
            grid.drop = schedule.drop
        total = sum(grid.logits.numel() for grid in soft)
        for step in range(schedule.steps):
            optimizer.zero_grad(set_to_none=True)
            for sample in torch.randint(self.count, (schedule.samples,), generator=self.generator).tolist():
                loss = self._loss(block, sample, schedule.drop) / (nearest * schedule.samples)
                loss.backward()  # type: ignore[no-untyped-call]
            for rounding in soft:
                rounding.pull(annealed_beta(step / schedule.steps), schedule.decisiveness / total)
            optimizer.step()
        for grid in dropped:
            grid.drop = 0.0
        for scale in scales:
            scale.requires_grad_(False)
        if not self._error(block, soft, judged) <= nearest:
            for parameter, value in zip((*logits, *scales), start, strict=True):
                parameter.data.copy_(value)

    @torch.no_grad()
    def _error(self, block: Block, soft: list[SoftWeight], samples: Sequence[int]) -> float:
        """Return the mean loss with decided weights and quantized inputs."""
        with decided(soft):
            return sum(float(self._loss(block, sample, 0.0)) for sample in samples) / len(samples)

    def _loss(self, block: Block, sample: int, drop: float) -> Tensor:
        """Return the squared error of a block's outputs, each relative to its power, summed."""
        given = self.rounded.get(sample, block.inputs)
        if drop:
            given = _mixed(self.real.get(sample, block.inputs), given, drop)
        wanted = self.real.get(sample, block.outputs)
        made = run_block(self.module, block, given)
        terms = []
        for node, target in wanted.items():
            if _is_real(target):
                error = (made[node].float() - target).square()
                if self.schedule.fisher:
                    error = error * self.weight.get(sample, [node])[node]
                terms.append(error.mean() / target.square().mean().clamp(min=SMALLEST_POWER))
        return torch.stack(terms).sum()


def _inside(student: Trainable, block: Block) -> list[nn.Module]:
    """Return the quantizers of a block's values and weights."""
    nodes = set(block.nodes)
    nodes |= {value for node in block.nodes for value in node.all_input_nodes if value.op == "call_module"}
    return [slot.module for slot in student.slots if slot.node in nodes - set(block.inputs)]


def _rest(module: GraphModule, later: Sequence[Block], values: Values) -> Values:
    """Run blocks to the network's end and return its output; without blocks, return what is there."""
    for block in later:
        values |= run_block(module, block, {node: values[node] for node in block.inputs})
    return {node: value for node, value in values.items() if node.op == "output"}


def _mixed(real: Values, rounded: Values, drop: float) -> Values:
    """Take each value from the float network with probability `drop`, from the quantized one otherwise."""
    return {
        node: torch.where(torch.rand_like(value) < drop, real[node], value) if _is_real(value) else value
        for node, value in rounded.items()
    }


def _is_real(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _relative(gradient: Tensor | None) -> Tensor | float:
    """Return a gradient's squares over their mean; 1 where there is none."""
    square = gradient.square() if gradient is not None else torch.zeros(())
    mean = float(square.mean())
    return square / mean if mean > 0 else 1.0
