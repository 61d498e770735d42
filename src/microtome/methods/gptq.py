"""Second-order rounding of weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.fx import Node

from microtome.core.affine import dequantize
from microtome.core.columns import from_rows, rows
from microtome.core.gptq_rounding import round_columns
from microtome.errors import DataError, OptionError
from microtome.graph import edit
from microtome.graph.network import Layer, Network
from microtome.graph.quantizers import weight_quantizer
from microtome.graph.watching.moments import Moments, collect
from microtome.methods.base import EMPTY, FLOAT_BIASES, QUANTIZED, Context, Method, Phase, State, weights_are_free
from microtome.types import QParams

MOST_BYTES = 2 << 30  # of covariances at a time; later layers wait for another pass, which runs with rounded weights


@dataclass(frozen=True)
class Gptq(Method):
    """Round each weight matrix so that its layer's output changes least, instead of to the nearest.

    One column is rounded after the other, and those not yet rounded make up for its error.
    Source: Frantar et al., "GPTQ", ICLR 2023, algorithm 1. Convolutions are unfolded; output positions are drawn at
    random. Grids stay as they are. Layers that hold the same weight are rounded together.

    Attributes:
        damping: added to the diagonal of the inputs' covariance, as a share of its mean.
        block: columns between two updates of all the columns that follow.
        order: `activation` rounds columns with large inputs first; `natural` keeps the weight's own order.
        positions: output positions drawn per batch and layer, at most.
        widest: columns whose covariance is kept whole; a wider layer falls apart into blocks of input channels.
        sequential: one pass over the batches per layer, each with the layers before it rounded; else one for all, with
            weights in float, as far as memory allows.
        move_bias: the bias takes up the change of the mean, and rounding only looks at what is left: the covariance.
        seed: of the positions.
    """

    damping: float = 0.01
    block: int = 128
    order: Literal["activation", "natural"] = "activation"
    positions: int = 1024
    widest: int = 4096
    sequential: bool = False
    move_bias: bool = True
    seed: int = 0

    phase: ClassVar[Phase] = Phase.NUMBERS
    needs: ClassVar[State] = frozenset({QUANTIZED, FLOAT_BIASES})
    leaves: ClassVar[State] = frozenset({"rounded"})
    takes: ClassVar[State] = frozenset({FLOAT_BIASES, "sparse"})  # zeros are rounded like all others

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if self.order not in ("activation", "natural"):
            raise OptionError(f"there is no order {self.order!r}.", "Choose activation or natural.")
        if self.damping < 0 or min(self.block, self.positions, self.widest) < 1:
            raise OptionError("second-order rounding needs a damping of at least 0, and at least one column.")

    def run(self, network: Network, context: Context = EMPTY) -> Network:
        """Return the network with weights that lie on their grids.

        Raises:
            OptionError: weights are in a format that is no affine grid.
            DataError: there is no calibration data, or it makes a value NaN.
        """
        weights_are_free(network)
        network = network.copy()
        generator = torch.Generator().manual_seed(self.seed)
        for weights in self._passes(network):
            moments = {layer.node: Moments(layer, self.widest) for layers in weights for layer in layers}
            collect(network, moments, context.calibration, most=self.positions, generator=generator)
            if any(not m.count for m in moments.values()):
                raise DataError("there are no calibration images.", "Give at least one training case.")
            for layers in weights:
                self._round(network, layers, moments)
        edit.finish(network.graph_module)
        return self.done(network)

    def _passes(self, network: Network) -> Iterator[list[list[Layer]]]:
        """Yield the weights, each as the layers that read it, in portions for one pass over the batches."""
        portion: list[list[Layer]] = []
        used = 0
        for layers in _weights(network):
            needed = sum(Moments(layer, self.widest).bytes for layer in layers)
            if portion and (self.sequential or used + needed > MOST_BYTES):
                yield portion
                portion, used = [], 0
            portion.append(layers)
            used += needed
        if portion:
            yield portion

    def _round(self, network: Network, layers: list[Layer], moments: dict[Node, Moments]) -> None:
        """Write a weight's rounded values, and the biases of the layers that read it."""
        grid = weight_quantizer(network, layers[0])
        assert grid is not None
        weight = network.tensor(str(layers[0].weight.target))
        first = moments[layers[0].node]
        given = rows(weight, first.geometry)
        scale, zero_point = _of_rows(grid.scale, given), _of_rows(grid.zero_point, given)
        integers = []
        for position, part in enumerate(first.parts):
            try:
                integer = round_columns(
                    given[..., part],
                    sum(moments[m.node].covariance(position, centred=self.move_bias) for m in layers),  # type: ignore[arg-type]
                    scale=scale,
                    zero_point=zero_point,
                    limits=(grid.qtype.qmin, grid.qtype.qmax),
                    damping=self.damping,
                    block=self.block,
                    by_size=self.order == "activation",
                )
            except ValueError as error:
                raise DataError(
                    f"a calibration image makes the input of {layers[0].name} NaN or infinite.",
                    "Check the pre-processing and the weights.",
                ) from error
            integers.append(integer)
        rounded = dequantize(from_rows(torch.cat(integers, 2), first.geometry, weight.shape), grid)
        if self.move_bias:
            change = given - rows(rounded, first.geometry)
            for layer in layers:
                shift = torch.einsum("grc,gc->gr", change, moments[layer.node].mean()).flatten()
                edit.shift_bias(network, layer, shift)
        edit.set_weight(network.graph_module, layers, rounded)


def _weights(network: Network) -> list[list[Layer]]:
    """Return the quantized weights: for each the layers that read it on one and the same grid."""
    found: dict[object, list[Layer]] = {}
    for layer in network.layers:
        grid = weight_quantizer(network, layer)
        if grid is not None:
            found.setdefault((str(layer.weight.target), _key(grid)), []).append(layer)
    return list(found.values())


def _key(grid: QParams) -> object:
    return grid.qtype, tuple(grid.scale.flatten().tolist()), tuple(grid.zero_point.flatten().tolist())


def _of_rows(values: Tensor, matrices: Tensor) -> Tensor:
    """Return a grid's scales (or zero points) as (groups, rows): groups of a transposed convolution share theirs."""
    groups, count, _ = matrices.shape
    return values.reshape(groups, count) if values.numel() == groups * count else values.expand(groups, count)
