"""Recipes: named chains of methods. A recipe is checked before it runs, and what it did is kept with the network."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

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
from microtome.graph.budget import Budget
from microtome.graph.network import Network
from microtome.methods.adaround import AdaRound
from microtome.methods.attention import QuantizeAttention
from microtome.methods.base import Batches, Method
from microtome.methods.bias_correction import CorrectBias
from microtome.methods.dynamic import QuantizeDynamic
from microtome.methods.encode import EncodeWeights
from microtome.methods.equalize import Equalize
from microtome.methods.even_layernorm import EvenLayerNorm
from microtome.methods.finetune import Finetune
from microtome.methods.fold import FoldBatchNorm
from microtome.methods.gptq import Gptq
from microtome.methods.quantize import Quantize
from microtome.methods.reconstruct import Reconstruct
from microtome.methods.smooth import Smooth
from microtome.types import Bits, Capabilities

MIXED_WIDTHS = (8, 6, 5, 4, 3, 2)


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


Calibration = TypeVar("Calibration", bound=Batches)


@dataclass(frozen=True)
class Data(Generic[Calibration]):
    """What methods may read.

    Attributes:
        calibration: a few images.
        training: many, for methods that train; None where there are none.
        tuning: images of other patients, for early stopping.
    """

    calibration: Calibration
    training: Batches | None = None
    tuning: Batches | None = None


@dataclass(frozen=True)
class Plan:
    """How a named recipe is made."""

    description: str
    build: Callable[[Capabilities, Settings], tuple[Method, ...]]


@dataclass(frozen=True)
class Recipe:
    """A named chain of methods."""

    name: str
    methods: tuple[Method, ...]

    def __post_init__(self) -> None:
        """Check that each method finds the state that it needs."""
        state: frozenset[str] = frozenset()
        for method in self.methods:
            missing, unwanted = method.needs - state, method.refuses & state
            if missing or unwanted:
                raise OptionError(
                    f"the recipe {self.name} cannot run {type(method).__name__} "
                    f"{'before ' + ', '.join(sorted(missing)) if missing else 'after ' + ', '.join(sorted(unwanted))}.",
                    "Reorder its methods.",
                )
            state |= method.leaves

    @property
    def trains(self) -> bool:
        """Whether it needs training data."""
        return any(_trains(method) for method in self.methods)

    def describe(self) -> list[dict[str, Any]]:
        """Return the methods with their settings, as plain values."""
        return [{"method": type(method).__name__, **_settings(method)} for method in self.methods]


def recipe(name: str, capabilities: Capabilities, settings: Settings | None = None) -> Recipe:
    """Build a recipe by name for a target.

    Args:
        name: a key of RECIPES.
        capabilities: of the target.
        settings: see Settings.

    Raises:
        OptionError: an unknown name, or methods in an order that makes no sense.
    """
    if name not in RECIPES:
        raise OptionError(f"there is no recipe {name!r}.", f"Choose one of {', '.join(RECIPES)}.")
    return Recipe(name, RECIPES[name].build(capabilities, settings or Settings()))


def run(
    chosen: Recipe,
    network: Network,
    data: Data[Any] | Batches,
    *,
    checkpoints: Path | None = None,
    announce: Callable[[str], None] = lambda _: None,
    watch: Callable[[int, int, float], None] | None = None,
) -> Network:
    """Run the methods one after the other.

    Args:
        chosen: the recipe.
        network: the parent; it is not changed.
        data: calibration input, or all that methods may read.
        checkpoints: folder for the network after each method; a method whose result lies there is not run again, and
            training that was interrupted goes on.
        announce: called with each method's name before it runs.
        watch: called after each step of training with step, number of steps and loss.

    Raises:
        OptionError: the network is already in a state that a method refuses, or there is nothing to train on.
    """
    data = data if isinstance(data, Data) else Data(data)
    parent = network
    for position, method in enumerate(chosen.methods):
        name = type(method).__name__
        unwanted = method.refuses & network.state
        if unwanted:
            raise OptionError(
                f"the network is already {', '.join(sorted(unwanted))}: {name} cannot run on it.",
                "Start from the uncompressed network.",
            )
        if method.leaves <= network.state and not method.refuses:
            continue
        checkpoint = checkpoints / f"{position}-{name}.pt2" if checkpoints is not None else None
        if checkpoint is not None and checkpoint.exists():
            network = Network.load(checkpoint)
            continue
        announce(name)
        start = time.perf_counter()
        before = network.history
        ready, batches = method, data.calibration
        if _trains(method):
            if data.training is None:
                raise OptionError(f"the recipe {chosen.name} trains, but there are no training images.")
            half_done = None if checkpoint is None else checkpoint.with_suffix(".training")
            told = {"teacher": parent, "tuning": data.tuning, "checkpoint": half_done, "watch": watch}
            ready, batches = replace(method, **told), data.training  # type: ignore[type-var]
        network = ready(network, batches)
        record = {"method": name, **_settings(method), "seconds": round(time.perf_counter() - start, 3)}
        for found in network.history[len(before) :]:  # what the method itself found worth keeping
            record.update(found)
        network = replace(network, history=(*before, record))
        if checkpoint is not None:
            scratch = checkpoint.with_suffix(".tmp")
            network.save(scratch)
            scratch.rename(checkpoint)
    return network


def _quantize(capabilities: Capabilities, settings: Settings, **changes: Any) -> Quantize:
    quantize = Quantize(
        capabilities,
        observer=settings.observer,
        percentile=settings.percentile,
        skip=settings.skip,
        weight_bits=settings.weight_bits,
        activation_bits=settings.activation_bits,
        end_bits=settings.end_bits,
        layer_bits=settings.layer_bits,
    )
    return replace(quantize, **changes)


def _float(capabilities: Capabilities, settings: Settings) -> tuple[Method, ...]:
    return ()


def _minmax(capabilities: Capabilities, settings: Settings) -> tuple[Method, ...]:
    return FoldBatchNorm(), _quantize(capabilities, settings, observer="minmax", search_weights=False)


def _ranges(capabilities: Capabilities, settings: Settings) -> tuple[Method, ...]:
    return FoldBatchNorm(), _quantize(capabilities, settings)


def _ptq(capabilities: Capabilities, settings: Settings) -> tuple[Method, ...]:
    quantize = _quantize(capabilities, settings)
    if settings.weight_format is None:
        return FoldBatchNorm(), quantize, CorrectBias()
    if settings.weight_bits is None:
        raise OptionError(f"weights cannot be float and {settings.weight_format}.", "Leave one of the two out.")
    try:
        encode = EncodeWeights(capabilities, FORMATS[settings.weight_format](settings.weight_bits))
    except ValueError as error:
        raise OptionError(f"{settings.weight_format} weights have no {settings.weight_bits} bits: {error}.") from error
    return FoldBatchNorm(), quantize, encode, CorrectBias()


def _equalized(capabilities: Capabilities, settings: Settings) -> tuple[Method, ...]:
    return FoldBatchNorm(), Equalize(), _quantize(capabilities, settings), CorrectBias()


def _transformer(capabilities: Capabilities, settings: Settings) -> tuple[Method, ...]:
    attention = QuantizeAttention(softmax="twin", observer=settings.observer, capabilities=capabilities)
    return FoldBatchNorm(), EvenLayerNorm(), _quantize(capabilities, settings), attention, CorrectBias()


def _smooth(capabilities: Capabilities, settings: Settings) -> tuple[Method, ...]:
    return FoldBatchNorm(), Smooth(), _quantize(capabilities, settings), CorrectBias()


def _dynamic(capabilities: Capabilities, settings: Settings) -> tuple[Method, ...]:
    weight = 8 if settings.weight_bits is None else settings.weight_bits
    return FoldBatchNorm(), QuantizeDynamic(weight, settings.activation_bits, skip=settings.skip)


def _mixed(capabilities: Capabilities, settings: Settings) -> tuple[Method, ...]:
    widths = tuple((bits, settings.activation_bits) for bits in MIXED_WIDTHS)
    budget = Budget(bits=settings.average_bits, widths=widths, sigmoid=settings.sigmoid)
    quantize = _quantize(capabilities, settings, budget=budget, end_bits=None)
    return FoldBatchNorm(), quantize, CorrectBias()


def _gptq(capabilities: Capabilities, settings: Settings) -> tuple[Method, ...]:
    return FoldBatchNorm(), _quantize(capabilities, settings), Gptq(seed=settings.seed), CorrectBias()


def _adaround(capabilities: Capabilities, settings: Settings) -> tuple[Method, ...]:
    return FoldBatchNorm(), _quantize(capabilities, settings), AdaRound(seed=settings.seed, **_length(settings))


def _reconstruct(capabilities: Capabilities, settings: Settings) -> tuple[Method, ...]:
    return FoldBatchNorm(), _quantize(capabilities, settings), Reconstruct(seed=settings.seed, **_length(settings))


def _trained(weights: str) -> Callable[[Capabilities, Settings], tuple[Method, ...]]:
    def build(capabilities: Capabilities, settings: Settings) -> tuple[Method, ...]:
        if weights != "affine":
            settings = replace(settings, weight_bits=2)
        method = Finetune(weights=weights, sigmoid=settings.sigmoid, seed=settings.seed, **_steps(settings))  # type: ignore[arg-type]
        return FoldBatchNorm(), _quantize(capabilities, settings), method

    return build


def _steps(settings: Settings) -> dict[str, Any]:
    return {} if settings.steps is None else {"steps": settings.steps}


def _length(settings: Settings) -> dict[str, Any]:
    return _steps(settings) | ({} if settings.samples is None else {"samples": settings.samples})


RECIPES: dict[str, Plan] = {
    "int8": Plan("fold batch norms, ranges of least squared error, correct biases (the default, at any width)", _ptq),
    "minmax": Plan("fold batch norms, ranges from the extremes: what everybody has", _minmax),
    "ranges": Plan("fold batch norms, ranges of least squared error", _ranges),
    "equalized": Plan("equalize the ranges of channels across layers, then as int8", _equalized),
    "smooth": Plan("move outliers of activations into weights, then as int8", _smooth),
    "transformer": Plan("even layer norms, then as int8, and products of attention where the target can", _transformer),
    "dynamic": Plan("linear and recurrent layers, with activation ranges found in each run: no images", _dynamic),
    "mixed": Plan("widths of weights layer by layer, for the least loss within --average-bits", _mixed),
    "gptq": Plan("second-order rounding of weights, then correct biases", _gptq),
    "adaround": Plan("learn the rounding of weights, layer by layer", _adaround),
    "reconstruct": Plan("learn rounding and ranges block by block, with activations quantized at random", _reconstruct),
    "qat": Plan("train with quantization, distilling the float network", _trained("affine")),
    "ternary": Plan("train with weights of three values", _trained("ternary")),
    "binary": Plan("train with weights of two values", _trained("binary")),
    "f32": Plan("no compression: the network as it is, for comparison", _float),
}


def _trains(method: Method) -> bool:
    return bool(getattr(method, "trains", False))


def _settings(method: Any) -> dict[str, Any]:
    """Return a method's fields as plain values that JSON can hold."""
    fields = [f for f in dataclasses.fields(method) if f.metadata.get("setting", True)]
    return {f.name: _plain(getattr(method, f.name)) for f in fields}


def _plain(value: Any) -> Any:
    if isinstance(value, Capabilities):
        return value.target
    if isinstance(value, frozenset | set):
        return sorted(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return _settings(value) if dataclasses.is_dataclass(value) else value
