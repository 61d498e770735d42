"""Static post-training quantization of weights and activations."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from microtome.core.affine import qparams_from_range
from microtome.core.observers import Observer, make_observer
from microtome.core.search import weight_qparams
from microtome.errors import DataError, OptionError, TargetError
from microtome.graph import edit
from microtome.graph.network import Network
from microtome.graph.observe import Observed
from microtome.graph.operators import constant_source, output_axis
from microtome.graph.placement import candidates, place, supported_layers
from microtome.methods.base import Batches
from microtome.types import Capabilities


@dataclass(frozen=True)
class Quantize:
    """Put quantizers where the target has integer kernels, with ranges from calibration data.

    Weights: per output channel, on the extremes or (`search_weights`) where the squared error is least.
    Activations: per tensor, range by `observer`. Calibration runs the float graph once and streams: memory does not
    grow with the number of batches.

    Attributes:
        capabilities: of the target.
        observer: `minmax`, `moving_average`, `percentile`, `mse` or `kl`.
        percentile: for the observer of that name, in percent.
        search_weights: look for each channel's best range.
        skip: names of layers that stay in float.
    """

    capabilities: Capabilities
    observer: str = "mse"
    percentile: float = 99.99
    search_weights: bool = True
    skip: frozenset[str] = frozenset()

    needs: ClassVar[frozenset[str]] = frozenset({"folded"})
    refuses: ClassVar[frozenset[str]] = frozenset({"quantized"})
    leaves: ClassVar[frozenset[str]] = frozenset({"quantized"})

    def __call__(self, network: Network, batches: Batches) -> Network:
        """Return the network with quantizers.

        Raises:
            TargetError: the target has integer kernels for none of the layers.
            OptionError: `skip` names a layer that the network does not have.
            DataError: there is no calibration data, or it makes a value NaN.
        """
        unknown = self.skip - {layer.name for layer in network.layers}
        if unknown:
            raise OptionError(
                f"the network has no layer {sorted(unknown)[0]!r}.", "`microtome inspect MODEL` lists the layers."
            )
        network = network.copy()
        values = candidates(network, self.capabilities, self.skip)
        if not values:
            kinds = sorted({layer.op for layer in network.layers})
            raise TargetError(
                f"{self.capabilities.target} has integer kernels for none of the {len(network.layers)} layers "
                f"({', '.join(kinds) or 'none found'}).",
                "Choose another target, or another recipe.",
            )
        observers = self._calibrate(network, values, batches)
        spans = {value: max(o.high, 0.0) - min(o.low, 0.0) for value, o in observers.items()}
        sites = place(network, self.capabilities, spans, self.skip)
        self._quantize_weights(network)
        for site in sites:
            low, high = _merged([observers[value] for value in site.edges]).range(site.qtype)
            qparams = qparams_from_range(torch.tensor(low), torch.tensor(high), site.qtype)
            for value, users in site.edges.items():
                edit.insert_quantizer(network.graph_module, value, list(users), qparams, value.name)
        edit.finish(network.graph_module)
        return replace(network, state=network.state | self.leaves)

    def _calibrate(self, network: Network, values: Sequence[Node], batches: Batches) -> dict[Node, Observer]:
        """Return an observer for each value, fed with all batches."""
        observers = {value: make_observer(self.observer, percentile=self.percentile) for value in values}

        def look(node: Node, value: Tensor) -> None:
            try:
                observers[node].update(value)
            except ValueError as error:
                raise DataError(
                    f"a calibration image makes {node.name} NaN or infinite.",
                    "Check the pre-processing and the weights.",
                ) from error

        watched = Observed(network, values, look)
        count = 0
        for batch in batches:
            watched(batch.to(network.device))
            count += 1
        if not count:
            raise DataError("there are no calibration images.", "Give at least one training case.")
        return observers

    def _quantize_weights(self, network: Network) -> None:
        for layer, support in supported_layers(network, self.capabilities):
            if layer.name in self.skip:
                continue
            qtype = replace(support.weight, axis=output_axis(layer.node))
            source = constant_source(layer.node.args[1])
            assert source is not None
            weight = network.tensor(str(source.target))
            qparams = weight_qparams(weight, qtype, search=self.search_weights)
            edit.insert_quantizer(network.graph_module, source, [layer.node], qparams, layer.name)


def _merged(observers: Sequence[Observer]) -> Observer:
    """Return one observer that has seen what all have."""
    result = copy.deepcopy(observers[0])
    for observer in observers[1:]:
        result.merge(observer)
    return result
