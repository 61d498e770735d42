"""Search for a narrower network among those that a parent holds."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from microtome.core import pareto
from microtome.core.distillation import distillation_loss
from microtome.errors import DataError, OptionError
from microtome.files import write_json
from microtome.graph import pt2
from microtome.graph.learning.space import Choice, Row, Space, chosen_row, mixed, proposed
from microtome.graph.learning.supernet import Supernet, with_own_statistics
from microtome.graph.learning.trainable import Trainable
from microtome.graph.network import Batch, Network
from microtome.graph.watching.observe import without_quantizers
from microtome.methods.base import (
    EMPTY,
    ENCODED_FIRST,
    QUANTIZED,
    SPARSE_FIRST,
    Context,
    Method,
    Phase,
    State,
    weights_are_free,
)
from microtome.training.settings import Training
from microtome.training.teachers import Teacher
from microtome.training.trainer import Loss
from microtome.types import Array

BYTES = 4  # of a weight in float
STATISTICS = 16  # batches that batch norms see before a network is judged


@dataclass(frozen=True)
class Search(Training, Method):
    """Find widths, layer by layer, blocks, kernels and a resolution that cost least for what they lose; train that.

    The parent becomes a supernet, whose narrower networks share its weights and are trained with it. Then they are
    measured: score on the tuning patients (distance from the teacher where none has a reference), latency on the target
    (multiply-accumulates where it cannot be measured), and weights. Candidates come from evolution; a predictor that
    learns from what was measured says which are worth it. Networks of one width throughout are measured first, so that
    the front in the history can be compared with them. What is finished is kept beside the checkpoint.

    Sources: Yu and Huang, ICCV 2019 (supernet); Cai et al., "Once-for-All", ICLR 2020, section 3.4 (evolution with a
    predictor); Deb et al., NSGA-II, 2002 (selection).

    Attributes: those of `Training`, for the network that is chosen, and:
        widths: shares of the channels that a layer may keep.
        multiple: channels are multiples of this where there are as many.
        depth: whether residual branches, and layers behind their like, may be taken out.
        kernels: whether a layer's kernel may lose its border, so that 3×3 is 1×1, and 5×5 is 3×3.
        resolutions: shares of the input's size, from 0.5 on, at which the network may look at it; the output keeps its
            size. Empty looks at all of it.
        supernet_steps: batches that the supernet is trained on.
        supernet_minutes: of the clock for that; see `minutes`.
        pool: narrower networks of mixed widths that are trained in the supernet, beside those of one width.
        samples: of them that learn in each step, beside the widest and the narrowest.
        evaluations: networks that are measured.
        by_round: of them between two updates of the predictor.
        faster: how many times faster than the parent the chosen network has to be; None does not ask.
        smaller: how many times fewer weights it has to have; None does not ask.
        loss: without `faster` and `smaller`, how much of the widest network's score the chosen one may lose in the
            supernet, before it is trained alone.
    """

    widths: tuple[float, ...] = (0.125, 0.25, 0.375, 0.5, 0.75)
    multiple: int = 1
    depth: bool = True
    kernels: bool = True
    resolutions: tuple[float, ...] = ()
    supernet_steps: int = 2000
    supernet_minutes: float | None = None
    pool: int = 12
    samples: int = 1
    evaluations: int = 48
    by_round: int = 6
    faster: float | None = None
    smaller: float | None = None
    loss: float = 0.03

    phase: ClassVar[Phase] = Phase.TRAINING
    leaves: ClassVar[State] = frozenset({"searched"})
    not_after: ClassVar[Mapping[str, str]] = (
        ENCODED_FIRST | SPARSE_FIRST | {QUANTIZED: "this changes widths: quantize after it"}
    )

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        super().__post_init__()
        if not self.widths or not all(0 < width <= 1 for width in self.widths):
            raise OptionError("widths are shares of the channels, above 0 and at most 1.", "Give at least one.")
        counts = (self.multiple, self.supernet_steps, self.samples, self.evaluations, self.by_round)
        if min(counts) < 1 or self.pool < 0:
            raise OptionError("a search needs at least one step, one sample and one measurement.")

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the network that was chosen, trained.

        Raises:
            OptionError: there is nothing to train on, nothing can become narrower, or nothing says what to choose by.
            DataError: there are no batches, or the loss becomes NaN.
        """
        batches = self.ready(context)
        weights_are_free(network)
        if context.score is None and self.faster is None and self.smaller is None:
            raise OptionError(
                "the search has no score to choose by: no tuning patient has a reference.",
                "Label some, or say how much faster or smaller the network has to be.",
            )
        space = Space(
            network,
            self.widths,
            multiple=self.multiple,
            depth=self.depth,
            kernels=self.kernels,
            resolutions=self.resolutions,
        )
        teacher = Teacher(context.teacher.to(network.device) if context.teacher else without_quantizers(network))
        imitation = context.loss or partial(_distilled, sigmoid=context.sigmoid)
        with _folder(context) as folder:
            trained, supernet = self._supernet(space, teacher, imitation, context, folder)
            rows = _Rows(self, space, trained, teacher, imitation, context, folder)
            rows.measure_all(batches)
            chosen = chosen_row(rows.rows, faster=self.faster, smaller=self.smaller, loss=self.loss)
            context.progress.say(
                f"search: {rows.rows[chosen]['parameters']:,} of {space.cost(space.uniform(1.0)).parameters:,} "
                f"weights, after {len(rows.rows)} measurements"
            )
            student = Trainable(rows.cut(rows.rows[chosen]), norms=self.learns_norms(network))
            curve = self.trainer(
                student,
                self.groups(student),
                self.loss_of(imitation, context),
                context,
                teacher=teacher if self.asks(network) else None,
            ).train(batches)
        found = {"training": curve, "supernet": supernet, **rows.found(chosen)}
        return self.done(replace(student.freeze(), history=network.history), found)

    def _supernet(
        self, space: Space, teacher: Teacher, imitation: Loss, context: Context, folder: Path
    ) -> tuple[Network, dict[str, Any]]:
        """Return the supernet's weights in the parent's graph, and how it was trained."""
        file, told = folder / "supernet.pt2", folder / "supernet.json"
        if told.exists():
            return pt2.load(file), json.loads(told.read_text())
        rng = np.random.default_rng(self.seed)
        narrow = [space.uniform(level) for level in space.levels[:-1]]
        pool = [*narrow, *(mixed(space, rng) for _ in range(self.pool))]
        supernet = Supernet(space, pool, norms=self.learns_norms(space.parent))
        own = self.loss_of(imitation, context)

        def lost(output: Tensor, wanted: Tensor, target: Tensor | None) -> Tensor:
            total = own(output, wanted, target)
            for answer in supernet.answers:
                total = total + imitation(answer.float(), output.detach(), None)
            return total

        trainer = self.trainer(
            supernet.full,
            self.groups(supernet.full),
            lost,
            replace(context, tuning=None, score=None, checkpoint=folder / "supernet.training"),
            teacher=teacher,
            steps=self.supernet_steps,
            minutes=self.supernet_minutes,
            before_step=lambda step: supernet.choose(step, self.samples, self.seed),
            student=supernet,
        )
        assert context.training is not None
        curve = trainer.train(context.training)
        trained = supernet.full.freeze()
        pt2.save(trained, file)
        write_json(told, curve)
        return trained, curve


class _Rows:
    """What was measured so far."""

    def __init__(
        self,
        settings: Search,
        space: Space,
        trained: Network,
        teacher: Teacher,
        imitation: Loss,
        context: Context,
        folder: Path,
    ) -> None:
        self.settings, self.space, self.trained = settings, space, trained
        self.teacher, self.imitation, self.context = teacher, imitation, context
        self.file = folder / "rows.json"
        self.rows: list[Row] = json.loads(self.file.read_text())["rows"] if self.file.exists() else []
        self.statistics: list[Batch] = []

    def measure_all(self, batches: Iterable[Any]) -> None:
        """Measure networks of one width, then what evolution and the predictor propose."""
        if hasattr(batches, "epoch"):
            batches.epoch = 0  # the same images when it goes on
        self.statistics = [_image(batch) for batch in islice(batches, STATISTICS)]
        if not self.statistics:
            raise DataError("there are no training images.", "Give at least one training case.")
        settings, space = self.settings, self.space
        for level in reversed(space.levels):
            self._measure(space.uniform(level), "uniform widths")
        total = max(settings.evaluations, len(self.rows))
        for choice in self.context.progress.track(self._proposals(total), "search", total - len(self.rows)):
            self._measure(choice, "search")

    def _proposals(self, total: int) -> Iterator[Choice]:
        """Yield networks to measure, until so many are or the space has no other."""
        settings = self.settings
        known = -1
        while known < len(self.rows) < total:
            known = len(self.rows)
            rng = np.random.default_rng([settings.seed, known])
            measured, most = [_choice(row) for row in self.rows], min(settings.by_round, total - known)
            worst = max(-row["score"] for row in self.rows if row["group"] == "uniform widths")
            yield from proposed(self.space, measured, self._objectives(), most, rng, worst=worst)

    def cut(self, row: Row) -> Network:
        """Return a row's network, with the supernet's weights and statistics of its own."""
        return with_own_statistics(self.space.cut(_choice(row), self.trained), self.statistics)

    def found(self, chosen: int) -> dict[str, Any]:
        """Return what the history says: the front, networks of one width, and which was chosen."""
        front = set(pareto.fronts(self._objectives())[0].tolist())
        kept = sorted(front | {k for k, row in enumerate(self.rows) if row["group"] == "uniform widths"} | {chosen})
        rows = [self.rows[k] | {"on_front": k in front, "chosen": k == chosen} for k in kept]
        return {"search": rows, "measured": len(self.rows)}

    def _measure(self, choice: Choice, group: str) -> None:
        widths = dict(zip((group.name for group in self.space.groups), choice.widths, strict=True))
        if any(_choice(row) == choice for row in self.rows):
            return
        row: Row = {
            "name": f"{group} {len(self.rows)}",
            "group": group,
            "widths": widths,
            "removed": sorted(choice.removed),
            "kernels": sorted(choice.kernels),
            "resolution": choice.resolution,
        }
        cost, network = self.space.cost(choice), self.cut(row)
        row |= {"parameters": cost.parameters, "macs": cost.macs, "bytes": BYTES * cost.parameters}
        row["cost"] = float(cost.macs)
        if self.context.latency is not None:
            row["latency_ms"] = row["cost"] = round(self.context.latency(network), 4)
        row["score"] = round(self._quality(network), 6)
        self.rows.append(row)
        write_json(self.file, {"rows": self.rows})

    @torch.no_grad()
    def _quality(self, network: Network) -> float:
        """Return the score; without one, how near the network is to its teacher on tuning (or training) images."""
        if self.context.score is not None:
            return self.context.score(network)
        images = self.statistics if self.context.tuning is None else (_image(batch) for batch in self.context.tuning)
        lost = []
        for x in images:
            wanted = self.teacher(x)
            wanted = wanted[0] if isinstance(wanted, tuple) else wanted
            lost.append(float(self.imitation(network(x).float(), wanted.float(), None)))
        return -sum(lost) / max(len(lost), 1)

    def _objectives(self) -> Array:
        """Return what is to be small, of each row: lost quality, and the logarithms of cost and bytes."""
        values = [[-row["score"], math.log(row["cost"]), math.log(row["bytes"])] for row in self.rows]
        return np.array(values, float)


@contextmanager
def _folder(context: Context) -> Iterator[Path]:
    """Yield where finished work lies: beside the checkpoint, until the search is done; or for this search alone."""
    if context.checkpoint is None:
        with tempfile.TemporaryDirectory(prefix="microtome-") as name:
            yield Path(name)
        return
    folder = context.checkpoint.with_suffix(".search")
    folder.mkdir(exist_ok=True)
    yield folder
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def _choice(row: Row) -> Choice:
    return Choice(
        tuple(row["widths"].values()), frozenset(row["removed"]), frozenset(row["kernels"]), float(row["resolution"])
    )


def _image(batch: Any) -> Any:
    """Return the input of a batch that may have targets."""
    return batch[0] if isinstance(batch, tuple | list) else batch


def _distilled(student: Tensor, teacher: Tensor, _: Tensor | None, *, sigmoid: bool) -> Tensor:
    return distillation_loss(student, teacher, sigmoid=sigmoid)
