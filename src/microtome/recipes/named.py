"""The named recipes: each is a function from a target and settings to methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from microtome.errors import OptionError
from microtome.graph.choosing.budget import Budget
from microtome.methods.adaround import AdaRound
from microtome.methods.attention import QuantizeAttention
from microtome.methods.base import Method
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
from microtome.recipes.chain import Recipe
from microtome.recipes.settings import FORMATS, Settings
from microtome.types import Capabilities

MIXED_WIDTHS = (8, 6, 5, 4, 3, 2)


@dataclass(frozen=True)
class Plan:
    """How a named recipe is made."""

    description: str
    build: Callable[[Capabilities, Settings], tuple[Method, ...]]


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


def _quantize(capabilities: Capabilities, settings: Settings, **changes: Any) -> Quantize:
    quantize = Quantize(
        capabilities,
        observer=settings.observer,
        percentile=settings.percentile,
        skip=settings.skip,
        readers=settings.readers,
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
