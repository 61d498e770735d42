"""Static post-training quantization of weights and activations."""

from __future__ import annotations

from collections.abc import Mapping
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
from microtome.graph.placement import Site, place, supported_layers
from microtome.methods.base import Batches
from microtome.types import Capabilities


@dataclass(frozen=True)
class Quantize:
    """Put quantizers where the target has integer kernels, with ranges from calibration data.

    Weights: per output channel, on the extremes or (`search_weights`) where the squared error is least. Activations:
    per tensor, range by `observer`. Calibration runs the float graph once and streams: memory does not grow with the number
    of batches.

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
        sites = place(network, self.capabilities, self.skip)
        if not sites:
            kinds = sorted({layer.op for layer in network.layers})
            raise TargetError(
                f"{self.capabilities.target} has integer kernels for none of the {len(network.layers)} layers "
                f"({', '.join(kinds) or 'none found'}).",
                "Choose another target, or another recipe.",
            )
        ranges = self._calibrate(network, sites, batches)
        self._quantize_weights(network)
        for site in sites:
            low, high = ranges[site.name]
            qparams = qparams_from_range(torch.tensor(low), torch.tensor(high), site.qtype)
            for value, users in site.edges.items():
                edit.insert_quantizer(network.graph_module, value, list(users), qparams, value.name)
        edit.finish(network.graph_module)
        return replace(network, state=network.state | self.leaves)

    def _calibrate(
        self, network: Network, sites: tuple[Site, ...], batches: Batches
    ) -> Mapping[str, tuple[float, float]]:
        """Return each site's range."""
        observers: dict[str, Observer] = {
            site.name: make_observer(self.observer, percentile=self.percentile) for site in sites
        }
        owner = {value: site.name for site in sites for value in site.edges}

        def look(node: Node, value: Tensor) -> None:
            try:
                observers[owner[node]].update(value)
            except ValueError as error:
                raise DataError(
                    f"a calibration image makes {node.name} (before layer {owner[node]}) NaN or infinite.",
                    "Check the pre-processing and the weights.",
                ) from error

        watched = Observed(network, owner, look)
        count = 0
        for batch in batches:
            watched(batch.to(network.device))
            count += 1
        if not count:
            raise DataError(
                "there are no calibration images.", "Give at least one labelled or unlabelled training case."
            )
        return {site.name: observers[site.name].range(site.qtype) for site in sites}

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
