"""A student learns from a teacher, from labels, or from both: step by step, and the best weights seen are kept."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from microtome.core.distillation import cosine
from microtome.errors import DataError
from microtome.graph.network import first
from microtome.progress import Progress, Silent, TrainingBar
from microtome.training import loop

Loss = Callable[[Tensor, Any, Any], Tensor]
"""(student's output, teacher's output, target) → scalar. The last two are None where there is none."""

LONGEST = 1.0  # of the gradient, as a vector: a longer one is shortened
SMALLEST_SIZE = 1e-2


@dataclass(eq=False)
class Trainer:
    """Trains a module in place.

    Adam with a learning rate that warms up and then falls along half a cosine. Where `torch.distributed` is
    initialized, each process trains on its own batches and gradients are averaged.

    Attributes:
        student: (N, C, *S) → output. The loss is that of the first of several; the others shall be the teacher's.
        groups: its parameters as torch's optimizers take them, each group with its full learning rate, `lr`.
        loss: of a batch.
        steps: batches to train on.
        teacher: what the student imitates, with as many outputs; None where the loss asks for none.
        clipped: parameters whose gradient is shortened to at most 1.
        tuning: batches for early stopping: their mean loss says which weights are best.
        score: what says so instead, higher is better; called with the student in evaluation mode.
        check_every: steps between two looks at that.
        patience: looks without improvement after which training stops; None never.
        judged_from: the first step after which weights may be the best.
        before_step: called with the number of steps made, before each, and when training goes on from a checkpoint;
            with `minutes`, with how many these would be if there were no limit.
        amp: multiply in bfloat16.
        masks: weights that hold zeros, with 1 where they do not: zeros stay zero.
        penalty: is added to the loss of training, such as a norm of weights.
        minutes: of the clock, looks included, after which training ends as if that were what `steps` take: the rate
            falls with the larger share of the two. None sets no limit.
        checkpoint: file for the state of training; if it is there, training goes on from it. Deleted at the end.
        device: where the student is.
        inputs: names of what the student takes, in order, for batches that hold several inputs by name.
        progress: shows the steps.
    """

    student: nn.Module
    groups: Sequence[Mapping[str, Any]]
    loss: Loss
    _: KW_ONLY
    steps: int
    teacher: Callable[[Any], Tensor | tuple[Tensor, ...]] | None = None
    clipped: Sequence[nn.Parameter] = ()
    tuning: Iterable[Any] | None = None
    score: Callable[[], float] | None = None
    check_every: int = 100
    patience: int | None = None
    judged_from: int = 0
    before_step: Callable[[int], None] = lambda _: None
    amp: bool = False
    masks: Sequence[tuple[nn.Parameter, Tensor]] = ()
    penalty: Callable[[], Tensor] | None = None
    minutes: float | None = None
    checkpoint: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    inputs: Sequence[str] = ()
    progress: Progress = field(default_factory=Silent)

    def train(self, batches: Iterable[Any]) -> dict[str, Any]:
        """Train on batches of inputs, a tensor or several by name, or of (inputs, targets).

        If there are too few, epoch follows epoch.

        The student then holds the best weights that a look found (without tuning batches and score: the last) and is in
        evaluation mode.

        Returns:
            The course of training: `steps`, the running mean of `loss`, and `monitor`, the tuning loss; with a score
            also `score`. A list each.

        Raises:
            DataError: there are no batches, or the loss or its gradient is not finite. What the checkpoint holds is
                kept.
        """
        run = _Run(self)
        run.resume()
        for batch in itertools.islice(loop.endless(batches, run.step), self.steps - run.step):
            run.train(batch)
            last = run.place == self.steps
            if run.step % self.check_every == 0 or last:
                run.check()
                run.store()
                if last or (self.patience is not None and run.stale >= self.patience):
                    break
        if run.best < math.inf:
            self.student.load_state_dict(run.best_state)
        self.student.eval()
        if self.checkpoint is not None:
            self.checkpoint.unlink(missing_ok=True)
        return run.curve if self.score is not None else {k: v for k, v in run.curve.items() if k != "score"}


class _Run:
    """One training: the optimizer, and what was seen so far."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.student = trainer, trainer.student
        self.module = loop.distributed(self.student.train())
        groups = [{**group, "base": group["lr"]} for group in trainer.groups if group["params"]]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        self.bar = TrainingBar(trainer.progress, "train")
        self.step, self.stale, self.mean = 0, 0, math.nan
        self.spent, self.started = 0.0, time.monotonic()
        self.best, self.best_state = math.inf, self.state()
        self.curve: dict[str, list[Any]] = {"steps": [], "loss": [], "monitor": [], "score": []}

    def train(self, batch: Any) -> None:
        """Learn from one batch."""
        trainer, place = self.trainer, self.place
        trainer.before_step(place)
        loss = self.loss(self.module, batch)
        value = float(loss.detach())
        if trainer.penalty is not None:
            loss = loss + trainer.penalty()
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * cosine(place, trainer.steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._hold(gradients=True)
        length = float(nn.utils.clip_grad_norm_(trainer.clipped, LONGEST))
        self._check_finite("loss", value)
        self._check_finite("gradient", length)
        self.optimizer.step()
        self._hold()
        self.step += 1
        self.mean = value if math.isnan(self.mean) else 0.95 * self.mean + 0.05 * value
        self.bar.step(self.place, trainer.steps, self.mean)

    @property
    def place(self) -> int:
        """How many of all steps are made; of those that the clock allows, as many as that is of all."""
        steps, minutes = self.trainer.steps, self.trainer.minutes
        if minutes is None:
            return self.step
        return min(steps, max(self.step, int(steps * self.seconds / (60 * minutes))))

    @property
    def seconds(self) -> float:
        """How long training has taken, before it was interrupted and since."""
        return self.spent + time.monotonic() - self.started

    def _check_finite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        path = self.trainer.checkpoint
        kept = path is not None and path.exists()
        raise DataError(
            f"the training {what} is {value} at step {self.step + 1}.",
            f"Lower the rate, or check the images{'; the last checkpoint is kept' if kept else ''}.",
        )

    @torch.no_grad()
    def _hold(self, *, gradients: bool = False) -> None:
        """Set to zero again what is held there: weights, or their gradients."""
        for weight, mask in self.trainer.masks:
            held = weight.grad if gradients else weight
            if held is not None:
                held.mul_(mask)

    def loss(self, module: nn.Module, batch: Any) -> Tensor:
        """Return what the student loses on a batch."""
        trainer = self.trainer
        x, target = batch if isinstance(batch, tuple | list) else (batch, None)
        target = None if target is None else target.to(trainer.device)
        x = _moved(x, trainer.device)
        with torch.autocast(trainer.device.type, torch.bfloat16, enabled=trainer.amp):
            with torch.no_grad():
                wanted = None if trainer.teacher is None else trainer.teacher(x)
            inputs = [x[name] for name in trainer.inputs] if isinstance(x, Mapping) else [x]
            output = module(*inputs)
        imitated = None if wanted is None else first(wanted).float()
        loss = trainer.loss(first(output).float(), imitated, target)
        if isinstance(output, tuple) and isinstance(wanted, tuple):
            loss = loss + sum(map(relative_error, output[1:], wanted[1:]))
        return loss

    def check(self) -> None:
        """Look at the tuning batches, or at the score, and keep the best weights."""
        trainer = self.trainer
        lost = score = None
        if self.place >= trainer.judged_from and (trainer.score is not None or trainer.tuning is not None):
            self.student.eval()
            if trainer.score is not None:
                score = trainer.score()
            else:
                lost = self.tuning_loss()
            self.student.train()
            value = -score if score is not None else lost
            assert value is not None
            improved = value < self.best
            self.stale = 0 if improved else self.stale + 1
            if improved:
                self.best, self.best_state = value, self.state()
        seen = {"steps": self.step, "loss": round(self.mean, 6), "monitor": lost, "score": score}
        for name, value in seen.items():
            self.curve[name].append(round(value, 6) if isinstance(value, float) else value)

    @torch.no_grad()
    def tuning_loss(self) -> float:
        """Return the mean loss on the tuning batches."""
        losses = [float(self.loss(self.student, batch)) for batch in self.trainer.tuning or ()]
        if not losses:
            raise DataError("there are no tuning images.", "Leave early stopping out, or give tuning cases.")
        return sum(losses) / len(losses)

    def store(self) -> None:
        """Write the checkpoint."""
        path = self.trainer.checkpoint
        if path is None or not loop.is_first():
            return
        names = ("step", "stale", "mean", "best", "best_state", "curve")
        position = {name: getattr(self, name) for name in names} | {"spent": self.seconds}
        loop.store(path, {**position, "module": self.state(), "optimizer": self.optimizer.state_dict()})

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        stored = loop.stored(self.trainer.checkpoint, self.trainer.device)
        if stored is None:
            return
        module, optimizer = stored.pop("module"), stored.pop("optimizer")
        for name, value in stored.items():
            setattr(self, name, value)
        self.trainer.before_step(self.place)
        self.student.load_state_dict(module)
        self.optimizer.load_state_dict(optimizer)

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the student's weights."""
        return {name: value.detach().clone() for name, value in self.student.state_dict().items()}


def relative_error(output: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared error over the variance of what is wanted; 0 of what is no real number."""
    if not wanted.is_floating_point():
        return wanted.new_zeros((), dtype=torch.float32)
    wanted = wanted.float()
    return (output.float() - wanted).square().mean() / wanted.var(correction=0).clamp(min=SMALLEST_SIZE**2)


def size(weight: Tensor, mask: Tensor | None = None) -> float:
    """Return the root mean square of a tensor, for rates relative to it; what starts at zero needs to move too.

    Args:
        weight: of any shape.
        mask: 1 where values count, 0 where they are held at zero.
    """
    count = weight.numel() if mask is None else max(float(mask.sum()), 1.0)
    return max(math.sqrt(float(weight.detach().square().sum()) / count), SMALLEST_SIZE)


def _moved(x: Any, device: torch.device) -> Any:
    """Return a batch's input on a device: a tensor, or several by name."""
    return {name: value.to(device) for name, value in x.items()} if isinstance(x, Mapping) else x.to(device)
