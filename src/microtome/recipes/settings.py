"""What a recipe may be told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from microtome.core.formats import (
    AdditivePowerOfTwo,
    Binary,
    Codebook,
    Format,
    Logarithmic,
    Minifloat,
    PowerOfTwo,
    Ternary,
)
from microtome.core.observers import OBSERVERS
from microtome.errors import OptionError
from microtome.types import Bits

# Formats of weights, given the width asked for; some have a width of their own.
FORMATS: dict[str, Callable[[int], Format]] = {
    "codebook": lambda bits: Codebook(bits, integer=True),
    "power_of_two": PowerOfTwo,
    "additive": AdditivePowerOfTwo,
    "logarithmic": Logarithmic,
    "ternary": lambda bits: Ternary(),
    "binary": lambda bits: Binary(),
    "fp8": lambda bits: Minifloat("e4m3fn", scaled=True),
    "fp16": lambda bits: Minifloat("fp16"),
    "bf16": lambda bits: Minifloat("bf16"),
}


@dataclass(frozen=True)
class Settings:
    """What a recipe may be told.

    Attributes:
        observer: how activation ranges are found.
        percentile: for the observer of that name.
        skip: layers that stay in float.
        readers: sums and norms that read integers; None goes by a rule of thumb.
        weight_bits: width of weights; None leaves them in float.
        activation_bits: width of layers' inputs; None leaves them in float.
        weight_format: number format of weights, a key of FORMATS; None is the affine grid.
        end_bits: least width of the first and the last layers; None treats them like the others.
        layer_bits: widths of single layers.
        steps: of training, or of reconstruction per block; None takes the recipe's own.
        samples: images per step of reconstruction; None takes the recipe's own.
        average_bits: average width of weights that mixed precision may use.
        sigmoid: the network's channels are probabilities of their own, for the loss of training.
        seed: of what draws at random.
    """

    observer: str = "mse"
    percentile: float = 99.99
    skip: frozenset[str] = frozenset()
    readers: frozenset[str] | None = None
    weight_bits: int | None = 8
    activation_bits: int | None = 8
    weight_format: str | None = None
    end_bits: int | None = 8
    layer_bits: Mapping[str, Bits] = field(default_factory=dict)
    steps: int | None = None
    samples: int | None = None
    average_bits: float = 4.0
    sigmoid: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no method can do."""
        if self.observer not in OBSERVERS:
            raise OptionError(f"there is no observer {self.observer!r}.", f"Choose one of {', '.join(OBSERVERS)}.")
        if not 50 < self.percentile <= 100:
            raise OptionError(f"--percentile must lie above 50 and up to 100, not {self.percentile}.")
        if self.weight_format is not None and self.weight_format not in FORMATS:
            raise OptionError(
                f"there is no weight format {self.weight_format!r}.", f"Choose one of {', '.join(FORMATS)}."
            )
        if self.steps is not None and self.steps < 1:
            raise OptionError(f"--steps must be at least 1, not {self.steps}.")
