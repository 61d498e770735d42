"""Quantization-aware training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from microtome.core.distillation import cosine, distillation_loss
from microtome.core.search import weight_qparams
from microtome.errors import DataError, OptionError
from microtome.graph.learning import loop
from microtome.graph.learning.learned import BinaryWeight, ClippedGrid, Grid, LearnedGrid, ObservedGrid
from microtome.graph.learning.trainable import Trainable
from microtome.graph.network import Network
from microtome.graph.quantizers import Quantizer
from microtome.graph.structure.meeting import meets_others
from microtome.graph.watching.observe import without_quantizers
from microtome.methods.base import Batches
from microtome.types import QType

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(student's output, teacher's output, target if the batches hold one) → scalar."""

Watch = Callable[[int, int, float], None]
"""(step, of how many, loss), called after each step."""

NOT_A_SETTING = {"setting": False}
WORST = math.inf
SMALLEST_SIZE = 1e-2


@dataclass(frozen=True)
class Finetune:
    """Train the quantized network on: fake-quantized forward, gradients straight through the rounding.

    The default loss distils the float network, so that no labels are needed. Batch norms are folded before
    (`FoldBatchNorm`), hence their statistics are frozen. Where `torch.distributed` is initialized, each process trains
    on its own batches and gradients are averaged.

    Attributes:
        steps: batches to train on.
        rate: learning rate of weights (Adam), relative to the root mean square of each tensor, so that it serves
            networks of any width; half a cosine down to zero.
        grid_rate: learning rate of the logarithm of scales.
        ranges: how activation ranges are found: `learned` (LSQ), `clipped` (PACT) or `observed` (moving average over
            the first tenth of the steps, then frozen).
        weights: of layers whose weights have 2 bits: `affine` (LSQ, four values), `ternary` (LSQ, three values), or
            `binary` (XNOR-Net, two). Wider weights are always affine.
        gradual: widths that weights pass through before their own, each for an equal share of the first half.
        sigmoid: the network's channels are probabilities of their own; for the default loss.
        temperature: of the default loss.
        decay: weight decay.
        check_every: steps between looks at the tuning loss; the best network seen is returned.
        patience: looks without improvement after which training stops; None never.
        amp: multiply in bfloat16.
        seed: of torch's generator.
        loss: instead of the default loss.
        teacher: the float network; None takes the network itself with quantizers off.
        tuning: batches for early stopping.
        checkpoint: file for the state of training; if it is there, training goes on from it.
        watch: told of each step.
    """

    steps: int = 1000
    rate: float = 1e-2
    grid_rate: float = 5e-3
    ranges: Literal["learned", "clipped", "observed"] = "learned"
    weights: Literal["affine", "ternary", "binary"] = "affine"
    gradual: tuple[int, ...] = ()
    sigmoid: bool = False
    temperature: float = 1.0
    decay: float = 0.0
    check_every: int = 100
    patience: int | None = None
    amp: bool = False
    seed: int = 0
    loss: Loss | None = field(default=None, metadata=NOT_A_SETTING)
    teacher: Network | None = field(default=None, metadata=NOT_A_SETTING)
    tuning: Batches | None = field(default=None, metadata=NOT_A_SETTING)
    checkpoint: Path | None = field(default=None, metadata=NOT_A_SETTING)
    watch: Watch | None = field(default=None, metadata=NOT_A_SETTING)

    needs: ClassVar[frozenset[str]] = frozenset({"quantized"})
    refuses: ClassVar[frozenset[str]] = frozenset({"finetuned", "encoded"})
    leaves: ClassVar[frozenset[str]] = frozenset({"finetuned"})
    trains: ClassVar[bool] = True

    def __call__(self, network: Network, batches: Batches) -> Network:
        """Return the trained network; `batches` yields images, or (images, targets).

        Raises:
            OptionError: `steps` is not positive, or a width of `gradual` is no width.
            DataError: there are no batches, or the loss becomes NaN.
        """
        if self.steps < 1 or any(not 2 <= bits <= 16 for bits in self.gradual):
            raise OptionError("training needs at least one step, and widths of 2 to 16 bits.")
        torch.manual_seed(self.seed)
        run = _Run(self, network)
        run.resume()
        for batch in itertools.islice(loop.endless(batches, run.step), self.steps - run.step):
            run.train(batch)
            last = run.step == self.steps
            if run.step % self.check_every == 0 or last:
                run.check()
                run.store()
                if self.patience is not None and run.stale >= self.patience:
                    break
        result = run.finished()
        if self.checkpoint is not None:
            self.checkpoint.unlink(missing_ok=True)
        curve = {"steps": run.curve_steps, "loss": run.curve_loss, "monitor": run.curve_monitor}
        return replace(result, state=result.state | self.leaves, history=(*result.history, {"training": curve}))

    def weight_module(self, quantizer: Quantizer, weight: Tensor) -> Grid:
        """Return the module that rounds a weight in training."""
        qparams = quantizer.qparams
        if qparams.qtype.bits > 2 or self.weights == "affine":
            return LearnedGrid(qparams)
        if self.weights == "binary":
            return BinaryWeight(qparams)
        return LearnedGrid(weight_qparams(weight, QType(2, narrow=True, axis=qparams.qtype.axis), search=True))

    def activation_module(self, quantizer: Quantizer) -> Grid | None:
        """Return the module that rounds an activation in training; None where values that are concatenated share it."""
        if meets_others(quantizer.node):
            return None
        if self.ranges == "learned":
            return LearnedGrid(quantizer.qparams)
        if self.ranges == "clipped":
            return ClippedGrid(quantizer.qparams)
        return ObservedGrid(quantizer.qparams, until=max(1, self.steps // 10))


class _Run:
    """One training: the student, its optimizer, and what was seen so far."""

    def __init__(self, settings: Finetune, network: Network) -> None:
        self.settings, self.network = settings, network
        self.teacher = settings.teacher.to(network.device) if settings.teacher else without_quantizers(network)
        self.student = Trainable(
            network,
            weight=lambda q: settings.weight_module(q, network.tensor(_constant(q))),
            activation=settings.activation_module,
        )
        self.module = loop.distributed(self.student.module.train())
        groups: list[dict[str, Any]] = [
            {"params": [weight], "base": settings.rate * _size(weight), "weight_decay": settings.decay}
            for weight in self.student.weights()
        ]
        groups.append({"params": self.student.grids(), "base": settings.grid_rate, "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.rate)
        self.step, self.stale, self.mean = 0, 0, math.nan
        self.best, self.best_state = WORST, self._state()
        self.curve_steps: list[int] = []
        self.curve_loss: list[float] = []
        self.curve_monitor: list[float | None] = []
        self.final_bits = {slot.position: slot.module.qtype.bits for slot in self.student.slots}

    def train(self, batch: Tensor | tuple[Tensor, Tensor]) -> None:
        """Learn from one batch."""
        settings = self.settings
        self._set_width()
        x, target = batch if isinstance(batch, tuple | list) else (batch, None)
        x = x.to(self.network.device)
        target = None if target is None else target.to(self.network.device)
        loss = self._loss(self.module, x, target)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DataError(
                f"the training loss is {value} at step {self.step + 1}.", "Lower the rate, or check the images."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * cosine(self.step, settings.steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.student.weights(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.mean = value if math.isnan(self.mean) else 0.95 * self.mean + 0.05 * value
        if settings.watch is not None:
            settings.watch(self.step, settings.steps, self.mean)

    def check(self) -> None:
        """Look at the tuning loss, and keep the best network."""
        value = None
        if self.settings.tuning is not None and not self._still_wider():
            value = self._tuning_loss(self.settings.tuning)
            improved = value < self.best
            self.stale = 0 if improved else self.stale + 1
            if improved:
                self.best, self.best_state = value, self._state()
        self.curve_steps.append(self.step)
        self.curve_loss.append(round(self.mean, 6))
        self.curve_monitor.append(None if value is None else round(value, 6))

    def finished(self) -> Network:
        """Return the best network seen; the last where there was nothing to judge by."""
        if self.best < WORST:
            self.student.module.load_state_dict(self.best_state)
        self.student.module.eval()
        return self.student.freeze()

    def store(self) -> None:
        """Write the checkpoint."""
        path = self.settings.checkpoint
        if path is None or not loop.is_first():
            return
        loop.store(path, {**self._position(), "module": self._state(), "optimizer": self.optimizer.state_dict()})

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        stored = loop.stored(self.settings.checkpoint, self.network.device)
        if stored is None:
            return
        module, optimizer = stored.pop("module"), stored.pop("optimizer")
        for name, value in stored.items():
            setattr(self, name, value)
        self._set_width()
        self.student.module.load_state_dict(module)
        self.optimizer.load_state_dict(optimizer)

    def _position(self) -> dict[str, Any]:
        names = ("step", "stale", "mean", "best", "best_state", "curve_steps", "curve_loss", "curve_monitor")
        return {name: getattr(self, name) for name in names}

    def _state(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.student.module.state_dict().items()}

    def _loss(self, module: Any, x: Tensor, target: Tensor | None) -> Tensor:
        settings = self.settings
        with torch.autocast(x.device.type, torch.bfloat16, enabled=settings.amp):
            with torch.no_grad():
                teacher = self.teacher(x)
            student = module(x)
        if settings.loss is not None:
            return settings.loss(student.float(), teacher.float(), target)
        return distillation_loss(student, teacher, sigmoid=settings.sigmoid, temperature=settings.temperature)

    @torch.no_grad()
    def _tuning_loss(self, tuning: Iterable[Any]) -> float:
        self.student.module.eval()
        losses = []
        for batch in tuning:
            x, target = batch if isinstance(batch, tuple | list) else (batch, None)
            losses.append(float(self._loss(self.student.module, x.to(self.network.device), target)))
        self.student.module.train()
        if not losses:
            raise DataError("there are no tuning images.", "Leave early stopping out, or give tuning cases.")
        return sum(losses) / len(losses)

    def _still_wider(self) -> bool:
        """Whether weights have not come down to their own width yet."""
        return bool(self.settings.gradual) and self.step < self.settings.steps // 2

    def _set_width(self) -> None:
        """Give weights the width of this step; where it changes, place their grids anew."""
        widths = self.settings.gradual
        stage = len(widths) if not self._still_wider() else self.step * len(widths) * 2 // self.settings.steps
        for slot in self.student.slots:
            if slot.weight is None or not isinstance(slot.module, LearnedGrid):
                continue
            final = self.final_bits[slot.position]
            bits = final if stage >= len(widths) else max(widths[stage], final)
            if bits != slot.module.qtype.bits:
                slot.module.narrow(bits, self.student.weight_of(slot).detach())


def _size(weight: Tensor) -> float:
    """Return the root mean square of a tensor; biases may start at zero and need to move too."""
    return max(float(weight.detach().square().mean().sqrt()), SMALLEST_SIZE)


def _constant(quantizer: Quantizer) -> str:
    source = quantizer.node.args[0]
    return str(source.target)  # type: ignore[union-attr]
