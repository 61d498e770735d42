"""What each layer loses at each width, while all others stay in float."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.fx import Node

from microtome.core.affine import fake_quantize, qparams_from_range
from microtome.core.distillation import divergence
from microtome.core.observers import Observer, make_observer
from microtome.core.range_search import weight_qparams
from microtome.errors import DataError, OptionError
from microtome.graph.choosing.placement import supported_layers
from microtome.graph.network import Batch, Layer, Network, first
from microtome.graph.operators import output_axis
from microtome.graph.watching.fisher import Gradients, fisher_gradients
from microtome.graph.watching.macs import layer_sizes
from microtome.graph.watching.observe import Observed
from microtome.graph.watching.replay import Replay, without_mutation
from microtome.types import Bits, Capabilities, OperatorSupport, QParams

Batches = Iterable[Batch]
Objective = Literal["kl", "sqnr", "fisher"]
WIDTHS: tuple[Bits, ...] = ((8, 8), (6, 8), (5, 8), (4, 8), (3, 8), (2, 8))
PROBES = 4  # random vectors per batch; batches add up, so that few do


@dataclass(frozen=True)
class Sensitivity:
    """What one layer loses at one pair of widths.

    Attributes:
        layer: its name.
        bits: of its weight and of its input.
        loss: of the network's output, by the objective; 0 is no loss.
        sqnr_db: signal to quantization noise of the network's output, decibels; None where it was not run.
        macs: multiply-accumulates of the layer, for one input.
        weights: number of its weights.
    """

    layer: str
    bits: Bits
    loss: float
    sqnr_db: float | None
    macs: int
    weights: int


@dataclass(frozen=True)
class _Option:
    """One layer at one pair of widths, with its grids; None is float."""

    layer: Layer
    bits: Bits
    weight: QParams | None
    activation: QParams | None

    def rounded_weight(self, weight: Tensor) -> Tensor:
        return weight if self.weight is None else fake_quantize(weight, self.weight)

    def rounded_input(self, x: Tensor) -> Tensor:
        if self.activation is None:
            return x
        qtype = self.activation.qtype
        scale, zero_point = float(self.activation.scale), int(self.activation.zero_point)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, qtype.qmin, qtype.qmax)


def measure(
    network: Network,
    capabilities: Capabilities,
    batches: Batches,
    *,
    widths: Sequence[Bits] = WIDTHS,
    objective: Objective = "kl",
    sigmoid: bool = False,
    observer: str = "mse",
    skip: frozenset[str] = frozenset(),
) -> tuple[Sensitivity, ...]:
    """Quantize one layer at a time, at each pair of widths, and look at the network's output.

    Each batch runs in float, and from each layer on once for each pair of widths. `fisher` runs one backward pass per
    probe instead, for all layers and widths together. Losses add up over layers as far as errors are small and
    independent.

    Args:
        network: without quantizers; batch norms folded, as quantization will find it.
        capabilities: of the target: layers that it has no integer kernels for are left out.
        batches: (N, C, *S); iterated twice.
        widths: pairs of (weight, input) bits; None is float.
        objective: what `loss` is. `kl`: mean divergence of the output's probabilities from the float network's.
            `sqnr`: noise power over signal power of the output. `fisher`: the divergence estimated to second order,
            half the mean trace of its Hessian times the squared rounding error (Dong et al., "HAWQ-V2", NeurIPS 2020,
            equation 1), see `graph.watching.fisher`.
        sigmoid: the network's channels are probabilities of their own.
        observer: how the ranges of inputs are found.
        skip: layers to leave out.

    Returns:
        One row per layer and pair, layers in order, pairs as given. Layers of which the first output knows nothing are
        left out: they keep their width.

    Raises:
        OptionError: the network has quantizers, or an unknown objective, or a width that no grid has.
        DataError: there are no batches, or they make values NaN.
    """
    _check(network, widths, objective)
    sizes = {size.name: size for size in layer_sizes(network)}
    network = without_mutation(network)
    options = _options(network, _layers(network, capabilities, widths, skip), batches, observer)
    if objective == "fisher":
        found = _estimated(network, options, batches, sigmoid=sigmoid)
    else:
        found = _run(network, options, batches, sigmoid=sigmoid, divergent=objective == "kl")
    rows = []
    for option, (loss, sqnr) in zip(options, found, strict=True):
        if not math.isfinite(loss):
            raise DataError(f"the output is NaN or infinite when {option.layer.name} is quantized.")
        size = sizes[option.layer.name]
        rows.append(Sensitivity(size.name, option.bits, max(loss, 0.0), sqnr, size.macs, size.weights))
    return tuple(rows)


def _check(network: Network, widths: Sequence[Bits], objective: str) -> None:
    if "quantized" in network.state:
        raise OptionError("the network is already quantized.", "Measure the network in float.")
    if objective not in ("kl", "sqnr", "fisher"):
        raise OptionError(f"there is no objective {objective!r}.", "Choose one of kl, sqnr, fisher.")
    if not widths:
        raise OptionError("there are no widths to choose from.")
    for weight, activation in widths:
        if (weight is not None and not 2 <= weight <= 16) or (activation is not None and not 1 <= activation <= 16):
            raise OptionError(f"({weight}, {activation}) is no pair of widths: weights have 2 to 16, inputs 1 to 16.")


def _layers(
    network: Network, capabilities: Capabilities, widths: Sequence[Bits], skip: frozenset[str]
) -> list[tuple[Layer, Bits, OperatorSupport]]:
    seen = before_scores(network)
    return [
        (layer, bits, support.at(bits))
        for layer, support in supported_layers(network, capabilities)
        if layer.name not in skip and layer.node in seen
        for bits in widths
    ]


def before_scores(network: Network) -> set[Node]:
    """Return the nodes that the first output depends on: of others, a loss there says nothing."""
    (end,) = network.graph_module.graph.find_nodes(op="output")
    found, left = set[Node](), [first(end.args[0])]
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += node.all_input_nodes
    return found


def _options(
    network: Network, wanted: list[tuple[Layer, Bits, OperatorSupport]], batches: Batches, name: str
) -> list[_Option]:
    """Place the grids: weights by search, inputs from one pass over the batches."""
    values = {layer.node.args[0] for layer, _, support in wanted if support.activation is not None}
    nodes = [value for value in values if isinstance(value, Node)]
    observers: dict[Node, Observer] = {node: make_observer(name) for node in nodes}

    def look(node: Node, value: Tensor) -> None:
        try:
            observers[node].update(value)
        except ValueError as error:
            raise DataError(f"a calibration image makes {node.name} NaN or infinite.") from error

    watch, count = Observed(network, nodes, look), 0
    for batch in batches if nodes else ():
        watch(batch)
        count += 1
    if nodes and not count:
        raise DataError("there are no calibration images.", "Give at least one training case.")
    options = []
    for layer, bits, support in wanted:
        weight, activation = None, None
        if support.weight is not None:
            qtype = replace(support.weight, axis=output_axis(layer.node))
            weight = weight_qparams(network.tensor(str(layer.weight.target)), qtype, search=True)
        if support.activation is not None:
            low, high = observers[layer.node.args[0]].range(support.activation)  # type: ignore[index]
            activation = qparams_from_range(torch.tensor(low), torch.tensor(high), support.activation)
        options.append(_Option(layer, bits, weight, activation))
    return options


@torch.no_grad()
def _run(
    network: Network, options: list[_Option], batches: Batches, *, sigmoid: bool, divergent: bool
) -> list[tuple[float, float | None]]:
    """Return loss and SQNR of each option by running it."""
    of_node: dict[Node, list[int]] = {}
    for position, option in enumerate(options):
        of_node.setdefault(option.layer.node, []).append(position)
    noise, losses = [0.0] * len(options), [0.0] * len(options)
    signal, count = 0.0, 0
    replay = Replay(network, of_node)
    for batch in batches:
        expected = network(batch)
        signal += float(expected.double().square().sum())
        count += len(expected)
        for node, arguments, resume in replay(batch):
            for position in of_node[node]:
                option = options[position]
                given, weight = option.rounded_input(arguments[0]), option.rounded_weight(arguments[1])
                actual = resume(node.target(given, weight, *arguments[2:], **node.kwargs))  # type: ignore[operator]
                noise[position] += float((actual - expected).double().square().sum())
                if divergent:
                    losses[position] += len(expected) * float(divergence(actual, expected, sigmoid=sigmoid))
    if not count:
        raise DataError("there are no calibration images.", "Give at least one training case.")
    ratios = [n / signal if signal else n for n in noise]
    found = [total / count for total in losses] if divergent else ratios
    return [(loss, _decibels(ratio)) for loss, ratio in zip(found, ratios, strict=True)]


def _estimated(
    network: Network, options: list[_Option], batches: Batches, *, sigmoid: bool
) -> list[tuple[float, float | None]]:
    """Return half the Hessian's quadratic form of each option's rounding errors."""
    of_node: dict[Node, list[int]] = {}
    for position, option in enumerate(options):
        of_node.setdefault(option.layer.node, []).append(position)
    losses = [0.0] * len(options)
    traces = dict.fromkeys(of_node, 0.0)
    count = 0

    def look(gradients: Gradients, images: int) -> None:
        nonlocal count
        count += images
        for node, (x, of_input, of_weight) in gradients.items():
            traces[node] += images * float(of_weight.double().mean())
            for position in of_node[node]:
                error = (options[position].rounded_input(x) - x).square()
                losses[position] += images * float((of_input * error).sum(dtype=torch.float64))

    for batch in batches:
        images = len(network.arguments(batch)[0])
        look(fisher_gradients(network, of_node, batch, sigmoid=sigmoid, probes=PROBES, seed=count), images)
    if not count:
        raise DataError("there are no calibration images.", "Give at least one training case.")
    found: list[tuple[float, float | None]] = []
    for option, loss in zip(options, losses, strict=True):
        weight = network.tensor(str(option.layer.weight.target))
        error = float((option.rounded_weight(weight) - weight).double().square().sum())
        found.append((0.5 * (loss + traces[option.layer.node] * error) / count, None))
    return found


def _decibels(noise_over_signal: float) -> float:
    return math.inf if noise_over_signal == 0 else -10 * math.log10(noise_over_signal)
