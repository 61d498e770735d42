"""What every method is, and what it is run with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar

from microtome.errors import OptionError
from microtome.graph.network import Batch, Network
from microtome.progress import Progress, Silent
from microtome.records import nearest
from microtome.training.settings import LabelLoss
from microtome.training.trainer import Loss
from microtome.types import Capabilities

Batches = Iterable[Batch]
"""Calibration input: tensors (N, C, *S), float32, or several inputs by name; can be iterated more than once and streams
from disk.
"""

State = frozenset[str]


class Phase(IntEnum):
    """What a method changes: which operators there are, with which numbers they compute, or the weights by training."""

    STRUCTURE = 0
    NUMBERS = 1
    TRAINING = 2


@dataclass(frozen=True, eq=False)
class Context:
    """What a method is run with, beside the network: nothing of it is a setting.

    Attributes:
        calibration: a few images.
        training: many, for methods that train: images, or (images, targets); None where there are none.
        tuning: images of other patients, likewise, for early stopping.
        capabilities: of the target; None where no method asks for it.
        sigmoid: the network's channels are probabilities of their own, instead of a softmax over channels.
        teacher: what training imitates: the parent; None takes the network itself, in float.
        loss: of training; None distils the teacher.
        label_loss: (output, targets) → what it loses against the references that `training` has; None without any.
        score: of a network on the tuning patients, higher is better; None where none has a reference.
        margin: how much of the score may be lost.
        latency: of a network on the target, in milliseconds, as measured on this machine; None where it cannot be.
        load: another network by what a user calls it, such as a teacher or a student; None where none can be loaded.
        checkpoint: file for the state of training; if it is there, training goes on from it.
        progress: told of what is done.
    """

    calibration: Batches = ()
    training: Iterable[Any] | None = None
    tuning: Iterable[Any] | None = None
    capabilities: Capabilities | None = None
    sigmoid: bool = False
    teacher: Network | None = None
    loss: Loss | None = None
    label_loss: LabelLoss | None = None
    score: Callable[[Network], float] | None = None
    margin: float = 0.01
    latency: Callable[[Network], float] | None = None
    load: Callable[[str], Network] | None = None
    checkpoint: Path | None = None
    progress: Progress = field(default_factory=Silent)

    @property
    def target(self) -> Capabilities:
        """What the target can do.

        Raises:
            OptionError: it is not known.
        """
        if self.capabilities is None:
            raise OptionError("quantization needs to know what the target can do.", "Give the capabilities.")
        return self.capabilities


EMPTY = Context()
"""For methods that read nothing."""

ENCODED_FIRST = {"encoded": "weights in a format of their own cannot move any more: encode last"}
SPARSE_FIRST = {"sparse": "zeros would be filled again: make zeros after it"}

# States that several methods know.
QUANTIZED = "quantized"
FLOAT_BIASES = "float_biases"  # what is corrected in biases is taken from float weights: twice would be wrong


class Method(ABC):
    """Maps a network to a new one. Subclasses are frozen dataclasses; their fields are their settings.

    Class attributes say what holds before and after; a recipe checks the chain by them: no method names another.

    Attributes:
        phase: structure cannot change any more when the network is quantized.
        needs: states of the network that must hold.
        leaves: states that hold afterwards.
        takes: states that do not hold any more.
        again: whether it may run where something that it leaves holds already.
        not_after: states after which it makes no sense, each with the reason, such as `zeros would be filled again`.
    """

    phase: ClassVar[Phase]
    needs: ClassVar[State] = frozenset()
    leaves: ClassVar[State]
    takes: ClassVar[State] = frozenset()
    again: ClassVar[bool] = False
    not_after: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the changed network; the one passed stays as it was."""

    @property
    def trains(self) -> bool:
        """Whether it needs training data."""
        return self.phase is Phase.TRAINING

    def refusal(self, state: State) -> str | None:
        """Say why the method cannot run on a network in a state; None if it can."""
        if self.needs - state:
            return f"it needs a network in the state {_listed(self.needs - state)}"
        if self.phase is Phase.STRUCTURE and QUANTIZED in state:
            return "it changes the structure, and the network is quantized already"
        for name in sorted(self.not_after.keys() & state):
            return f"the network is {name} already, and {self.not_after[name]}"
        found = (self.leaves & state) - {FLOAT_BIASES}
        if not self.again and found:
            return f"the network is {_listed(found)} already"
        return None

    def done(self, network: Network, found: Mapping[str, Any] | None = None, **changes: Any) -> Network:
        """Return the network in its new state, with what the method found for the history."""
        history = (*network.history, *([found] if found else []))
        return replace(network, **{"state": self.after(network.state), "history": history, **changes})

    def after(self, state: State) -> State:
        """Return the state that the method leaves."""
        return (state - self.takes) | self.leaves


def check_names(named: Iterable[str], known: Iterable[str], what: str = "layer") -> None:
    """Check that a network has all that is named: what a method is told to skip must not be passed over in silence.

    Args:
        named: names that were given.
        known: those that there are.
        what: they are names of.

    Raises:
        OptionError: the first that there is not, with the nearest that there is.
    """
    known = list(dict.fromkeys(known))
    for name in sorted(set(named) - set(known)):
        advice = "`microtome inspect MODEL` lists the layers." if what == "layer" else f"There are: {', '.join(known)}."
        raise OptionError(f"the network has no {what} {name!r}{nearest(name, known)}.", advice)


def weights_are_free(network: Network) -> None:
    """Check that weights may move: in a format that is no affine grid they would leave it.

    Raises:
        OptionError: some are in such a format.
    """
    if network.formats:
        name = next(iter(network.formats.values())).format.name
        raise OptionError(
            f"weights in the format {name} cannot be rounded or trained further.", "Do that before they are encoded."
        )


def _listed(states: State) -> str:
    return " and ".join(sorted(states))
