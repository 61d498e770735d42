"""The forms of operators that eager PyTorch runs fastest on a CPU; results are the same but for rounding in float32."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Interpreter, Node
from torch.fx.node import Argument, Target

from microtome.graph.network import Batch, Network
from microtome.graph.operators import aten


class Eager(Interpreter):
    """Runs a network node by node; on a CPU, images flow through it with their channels last."""

    def __init__(self, network: Network, wanted: Collection[Node] = ()) -> None:
        """Prepare to run up to the last of the nodes `wanted`, or to the end; the network is not changed."""
        super().__init__(network.graph_module)
        self._network = network
        self.extra_traceback = False  # or torch writes source lines of the model into our one-sentence errors
        on_cpu = network.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        self._forms = FASTER if on_cpu and not depends_on_layout(network.graph_module.graph) else {}
        nodes = list(network.graph_module.graph.nodes)
        ends = [position for position, node in enumerate(nodes) if node in wanted] if wanted else [len(nodes)]
        self._needless = frozenset(nodes[max(ends) + 1 :])

    def run_node(self, n: Node) -> Any:
        """Run one node, unless it comes after all that is wanted."""
        return None if n in self._needless else super().run_node(n)

    def call_function(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator, in its fastest form."""
        return super().call_function(self._forms.get(target, target), args, kwargs)

    def __call__(self, x: Batch) -> None:
        """Run one batch (N, C, *S), or the batches of several inputs by name; from any device."""
        with torch.no_grad():
            self.run(*self._network.arguments(x), enable_io_processing=False)


def depends_on_layout(graph: Graph) -> bool:
    """Whether results depend on where values lie in memory: strides are named, or a view is written to."""
    return any(
        node.target is aten.as_strided.default or (_writes(node) and _is_view(node.args[0]))
        for node in graph.nodes
        if node.op == "call_function"
    )


def _writes(node: Node) -> bool:
    """Whether an operator changes its first argument in place."""
    schema = getattr(node.target, "_schema", None)
    alias = schema.arguments[0].alias_info if schema is not None and schema.arguments else None
    return alias is not None and alias.is_write


def _is_view(value: object) -> bool:
    """Whether a value may share memory with the value that it is made from."""
    schema = getattr(value.target, "_schema", None) if isinstance(value, Node) else None
    return schema is not None and any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)


def _channels_last(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a convolution that reads its input channels last, as oneDNN's faster kernels do."""

    def run(x: Tensor, *rest: Any, **named: Any) -> Tensor:
        return operator(_with_channels_last(x), *rest, **named)

    return run


def _with_channels_last(x: Tensor) -> Tensor:
    """Return images and volumes with their channels last in memory; anything else as it is."""
    layout = LAYOUTS.get(x.ndim)
    return x if layout is None else x.contiguous(memory_format=layout)


def _has_channels_last(x: Tensor) -> bool:
    layout = LAYOUTS.get(x.ndim)
    return layout is not None and not x.is_contiguous() and x.is_contiguous(memory_format=layout)


def _conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Tensor:
    """Run a convolution of volumes in oneDNN also where they are small: PyTorch's own choice there is a slow loop."""
    if x.ndim != 5 or x.dtype != torch.float32:
        return aten.conv3d.default(x, weight, bias, stride, padding, dilation, groups)  # type: ignore[no-any-return]
    settings = [_spread(v) for v in (padding, stride, dilation)]
    x, weight = _with_channels_last(x), _with_channels_last(weight)
    return aten.mkldnn_convolution(x, weight, bias, *settings, groups)  # type: ignore[no-any-return]


def _spread(values: Sequence[int]) -> list[int]:
    return [*values] * (3 // len(values))


def _instance_norm(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, own: bool, *rest: Any) -> Tensor:
    """Run an instance norm on the image's own statistics as a group norm with one channel per group."""
    if not own or mean is not None:
        return aten.instance_norm.default(x, weight, bias, mean, var, own, *rest)  # type: ignore[no-any-return]
    return _group_norm(x, x.shape[1], weight, bias, rest[1])


def _group_norm(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *rest: Any) -> Tensor:
    """Run a group norm of one image, channels last, as a batch norm whose statistics are the groups'.

    PyTorch's own kernel for this layout subtracts squares to get the variance. Few channels are faster channels first.
    """
    if len(x) > 1 or x.shape[1] < LANES or not _has_channels_last(x):
        return aten.group_norm.default(x.contiguous(), groups, weight, bias, eps, *rest)  # type: ignore[no-any-return]
    means, variances = aten.batch_norm_update_stats(x, None, None, 0.0)
    if groups < x.shape[1]:  # the variance of a group: that inside its channels and that of their means
        apart = means.reshape(groups, -1)
        mean = apart.mean(1, keepdim=True)
        inside = variances.reshape(groups, -1) + (apart - mean).square()
        means, variances = mean.expand_as(apart).flatten(), inside.mean(1, keepdim=True).expand_as(apart).flatten()
    return torch.batch_norm(x, weight, bias, means, variances, False, 0.0, eps, False)


LANES = 16  # values in a register of 512 bits
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
FASTER: dict[object, Callable[..., Any]] = {
    aten.conv2d.default: _channels_last(aten.conv2d.default),
    aten.conv2d.padding: _channels_last(aten.conv2d.padding),
    aten.conv_transpose2d.input: _channels_last(aten.conv_transpose2d.input),
    aten.conv_transpose3d.input: _channels_last(aten.conv_transpose3d.input),
    aten.convolution.default: _channels_last(aten.convolution.default),
    aten.conv3d.default: _conv3d,
    aten.instance_norm.default: _instance_norm,
    aten.group_norm.default: _group_norm,
    aten.view.default: aten.reshape.default,  # a view of channels-last values may need a copy
}
