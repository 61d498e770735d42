"""Static post-training quantization of weights and activations."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from microtome.core.affine import qparams_from_range
from microtome.core.observers import OBSERVERS, Observer, make_observer
from microtome.core.range_search import weight_qparams
from microtome.errors import OptionError, TargetError, WeightsError
from microtome.graph import edit
from microtome.graph.choosing.budget import Budget
from microtome.graph.choosing.float_fallback import Fallback, skipped
from microtome.graph.choosing.placement import candidates, ends, place, rule_of_thumb, supported_layers
from microtome.graph.network import Layer, Network
from microtome.graph.operators import output_axis
from microtome.graph.watching.observe import watch
from microtome.methods.base import EMPTY, FLOAT_BIASES, QUANTIZED, Context, Method, Phase, State, check_names
from microtome.types import Bits, ObserverName, QParams, QType


@dataclass(frozen=True)
class Quantize(Method):
    """Put quantizers where the target has integer kernels, with ranges from calibration data.

    Grids narrower than 8 bits run in the same 8-bit kernels; the packed weights are as small as the width says.
    Weights: per output channel, on the extremes or (`search_weights`) where the squared error is least.
    Activations: per tensor, range by `observer`. Calibration runs the float graph once and streams: memory does not
    grow with the number of batches.

    Attributes:
        observer: `minmax`, `moving_average`, `percentile`, `mse` or `kl`.
        percentile: for the observer of that name, in percent.
        search_weights: look for each channel's best range.
        skip: names of layers that stay in float.
        weight_bits: width of weights, 2 to 16; None leaves them in float.
        activation_bits: width of layers' inputs, 1 to 16; None leaves them in float.
        end_bits: width of both in the layers that no other layer stands before, or behind: few-bit networks lose most
            there (Esser et al., ICLR 2020, section 3). None treats them like the others.
        layer_bits: (weight, activation) widths of single layers, by name, over all of the above.
        budget: chooses widths layer by layer instead, from what each layer loses at each (mixed precision).
        fallback: leaves layers in float where the network gains enough by it; None leaves those of `skip` only.
        readers: names of sums and norms (`placement.readers`) that read integers too; None goes by a rule of thumb.
    """

    observer: ObserverName = "mse"
    percentile: float = 99.99
    search_weights: bool = True
    skip: frozenset[str] = frozenset()
    weight_bits: int | None = 8
    activation_bits: int | None = 8
    end_bits: int | None = None
    layer_bits: Mapping[str, Bits] = field(default_factory=dict)
    budget: Budget | None = None
    fallback: Fallback | None = None
    readers: frozenset[str] | None = None

    phase: ClassVar[Phase] = Phase.NUMBERS
    needs: ClassVar[State] = frozenset({"folded"})
    leaves: ClassVar[State] = frozenset({QUANTIZED, FLOAT_BIASES})

    def __post_init__(self) -> None:
        """Refuse observers and widths that there are not."""
        if self.observer not in OBSERVERS:
            raise OptionError(f"there is no observer {self.observer!r}.", f"Choose one of {', '.join(OBSERVERS)}.")
        if not 50 < self.percentile <= 100:
            raise OptionError(f"percentile must lie above 50 and up to 100, not {self.percentile}.")
        widths = [(self.weight_bits, self.activation_bits), *self.layer_bits.values()]
        for weight, activation in widths:
            if weight is not None and not 2 <= weight <= 16:
                hint = "The formats `ternary` and `binary` hold weights in fewer."
                raise OptionError(f"weights have no affine grid of {weight} bits: 2 to 16 do.", hint)
            if activation is not None and not 1 <= activation <= 16:
                raise OptionError(f"activations have no grid of {activation} bits: 1 to 16 do.")

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the network with quantizers.

        Raises:
            TargetError: the target has integer kernels for none of the layers.
            OptionError: `skip` names a layer that the network does not have, or nothing is known of the target.
            DataError: there is no calibration data, or it makes a value NaN.
            WeightsError: a grid would hold nothing but zeros, or a weight is not finite.
        """
        network = network.copy()
        capabilities = context.target
        check_names({*self.skip, *self.layer_bits}, (layer.name for layer in network.layers))
        widths, skip, found = self._chosen(network, context)
        layers = [pair for pair in supported_layers(network, capabilities, widths) if pair[0].name not in skip]
        if not layers:
            kinds = sorted({layer.op for layer in network.layers})
            raise TargetError(
                f"{capabilities.target} has integer kernels for none of the {len(network.layers)} layers "
                f"({', '.join(kinds) or 'none found'}).",
                "Choose another target, or another recipe.",
            )
        named = rule_of_thumb(network, capabilities) if self.readers is None else self.readers
        values = candidates(network, capabilities, skip, widths, named)
        observers = {value: make_observer(self.observer, percentile=self.percentile) for value in values}
        if observers:
            watch(network, observers, context.calibration)
        spans = {value: max(o.high, 0.0) - min(o.low, 0.0) for value, o in observers.items()}
        sites = place(network, capabilities, spans, skip, widths, named)
        for layer, support in layers:
            if support.weight is not None:
                self._quantize_weight(network, layer, support.weight)
        for site in sites:
            low, high = _merged([observers[value] for value in site.edges]).range(site.qtype)
            qparams = qparams_from_range(torch.tensor(low), torch.tensor(high), site.qtype)
            for value in site.edges:
                _refuse_nothing(spans[value], qparams, f"what {value.name} returns")
            for value, users in site.edges.items():
                edit.insert_quantizer(network.graph_module, value, list(users), qparams, value.name)
        edit.finish(network.graph_module)
        return self.done(network, found)

    def _chosen(self, network: Network, context: Context) -> tuple[dict[str, Bits], frozenset[str], dict[str, Any]]:
        """Return each layer's widths, the layers that stay in float, and what the history shall know of it."""
        by = {"activation": self.observer, "weight": "mse" if self.search_weights else "minmax"}
        found: dict[str, Any] = {"grids": by}
        layer_bits, skip = dict(self.layer_bits), self.skip
        if self.budget is not None:
            plan = self.budget.plan(
                network,
                context.target,
                context.calibration,
                skip=skip,
                activation_bits=self.activation_bits,
                sigmoid=context.sigmoid,
            )
            found |= {"plan": plan.as_row(), "pareto": [p.as_row() for p in plan.front]}
            layer_bits = {**plan.layer_bits, **layer_bits}
        if self.fallback is not None:
            plain = replace(self, fallback=None, budget=None, layer_bits=layer_bits)
            rows = self.fallback.rows(
                network, lambda kept: replace(plain, skip=plain.skip | kept).run(network, context), context.calibration
            )
            found["kept"] = [row.as_row() for row in rows]
            skip |= skipped(rows)
        return self._widths(network) | layer_bits, skip, found

    def _widths(self, network: Network) -> dict[str, Bits]:
        """Return the widths of every layer."""
        at_ends = ends(network) if self.end_bits is not None else frozenset()
        widths: dict[str, Bits] = {}
        for layer in network.layers:
            bits: Bits = (self.weight_bits, self.activation_bits)
            if layer.name in at_ends:
                bits = tuple(b and max(b, self.end_bits or 0) for b in bits)  # type: ignore[assignment]
            widths[layer.name] = bits
        return widths

    def _quantize_weight(self, network: Network, layer: Layer, qtype: QType) -> None:
        source = layer.weight
        weight = network.tensor(str(source.target))
        if not bool(weight.isfinite().all()):
            raise WeightsError(
                f"the weight of {layer.name} is NaN or infinite: float32 cannot hold it times the norm behind it.",
                "Look at the norm's scale and variance, or use an earlier checkpoint.",
            )
        qparams = weight_qparams(weight, replace(qtype, axis=output_axis(layer.node)), search=self.search_weights)
        _refuse_nothing(float(weight.abs().max()), qparams, f"the weight of {layer.name}")
        edit.insert_quantizer(network.graph_module, source, [layer.node], qparams, layer.name)


def _refuse_nothing(largest: float, qparams: QParams, what: str) -> None:
    """Raise WeightsError if a grid holds nothing but zeros of values that are none."""
    if 0 < largest < float(qparams.scale.min()) / 2:
        raise WeightsError(
            f"{what} is so small, at most {largest:.3g}, that {qparams.qtype.name} holds only zeros of it.",
            "Scale it up in the network, and what reads it down; or leave the layer in float: --skip LAYER.",
        )


def _merged(observers: Sequence[Observer]) -> Observer:
    """Return one observer that has seen what all have."""
    result = copy.deepcopy(observers[0])
    for observer in observers[1:]:
        result.merge(observer)
    return result
