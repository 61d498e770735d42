"""Fake-quantizers that training changes. Each is a module that stands where a quantizer node stood.

All pass gradients straight through the rounding (straight-through estimator, Bengio et al., arXiv:1308.3432) and stop
them where a value is clipped.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from microtome.core.affine import fake_quantize, qparams_from_range, real_range
from microtome.core.formats import Binary, Encoding, MidRise
from microtome.core.range_search import weight_qparams
from microtome.types import QParams, QType


class Grid(nn.Module):
    """A quantizer in training. `forward` rounds; `grid` tells where the grid lies now, in the node's own format."""

    qtype: QType

    def grid(self) -> QParams:
        """Return the grid as it is now, detached."""
        raise NotImplementedError

    def settled(self, weight: Tensor) -> Tensor:
        """Return what a trained weight becomes: values on the grid."""
        return fake_quantize(weight.detach(), self.grid())

    def encoding(self) -> Encoding | None:
        """Return the format of a weight that needs fewer bits than its grid; None where the grid says it all."""
        return None


class LearnedGrid(Grid):
    """A grid whose scale is learned by gradient; its zero point stays.

    Source: Esser et al., "Learned Step Size Quantization", ICLR 2020, equations 1 to 3; the gradient is divided by
    sqrt(values * qmax). The logarithm of the scale is what is learned, so that steps are relative and the scale stays
    positive.
    """

    zero_point: Tensor

    def __init__(self, qparams: QParams) -> None:
        """Start from a grid, per tensor or per channel."""
        super().__init__()
        self.qtype = qparams.qtype
        self.log_scale = nn.Parameter(qparams.scale.detach().clone().float().reshape(-1).log())
        self.register_buffer("zero_point", qparams.zero_point.detach().clone().float().reshape(-1))

    def forward(self, x: Tensor) -> Tensor:
        """Round; same shape."""
        qtype = self.qtype
        values = x.numel() / (self.log_scale.numel() if qtype.axis is not None else max(len(x), 1))
        factor = 1 / math.sqrt(values * max(qtype.qmax, 1))
        limits = (qtype.qmin, qtype.qmax, factor)
        scale = self.log_scale.exp()
        if qtype.axis is None:
            return torch._fake_quantize_learnable_per_tensor_affine(x.float(), scale, self.zero_point, *limits)
        return torch._fake_quantize_learnable_per_channel_affine(x.float(), scale, self.zero_point, qtype.axis, *limits)

    def grid(self) -> QParams:
        """Return the grid as it is now."""
        shape = () if self.qtype.axis is None else (-1,)
        scale = self.log_scale.detach().exp().reshape(shape)
        return QParams(scale, self.zero_point.round().to(torch.int32).reshape(shape), self.qtype)

    def set_bits(self, bits: int, weight: Tensor | None = None) -> None:
        """Change the width: a weight's grid is placed anew, an activation's keeps its range."""
        old, self.qtype = self.grid(), _at(self.qtype, bits)
        if weight is not None:
            new = weight_qparams(weight, self.qtype, search=True)
        else:
            new = qparams_from_range(*real_range(old), self.qtype)
        self.log_scale.data.copy_(new.scale.reshape(-1).log())
        self.zero_point.copy_(new.zero_point.reshape(-1))


class ClippedGrid(Grid):
    """A grid whose ends are learned through the values that they clip.

    Source: Choi et al., "PACT: Parameterized Clipping Activation", arXiv:1805.06085, equations 1 to 3, with a lower end
    too where values are negative. Only for activations.
    """

    def __init__(self, qparams: QParams) -> None:
        """Start from a grid per tensor."""
        super().__init__()
        self.qtype = qparams.qtype
        low, high = real_range(qparams)
        self.low, self.high = nn.Parameter(low.clone()), nn.Parameter(high.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Clip and round; same shape."""
        low, high = self.low.clamp(max=0), self.high.clamp(min=0)
        clipped = torch.minimum(torch.maximum(x.float(), low), high)
        return clipped + (_rounded(x.detach().float(), self.grid()) - clipped).detach()

    def grid(self) -> QParams:
        """Return the grid as it is now."""
        low, high = self.low.detach().clamp(max=0), self.high.detach().clamp(min=0)
        return qparams_from_range(low, high, self.qtype)


class ObservedGrid(Grid):
    """A grid over the moving average of each batch's extremes, until it is frozen.

    Source: Jacob et al. 2018, section 3.1. Only for activations.
    """

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self, qparams: QParams, *, momentum: float = 0.01, until: int = 200) -> None:
        """Start from a grid per tensor; `until` is the number of training batches after which it stays."""
        super().__init__()
        self.qtype, self.momentum, self.until = qparams.qtype, momentum, until
        low, high = real_range(qparams)
        self.register_buffer("low", low.clone())
        self.register_buffer("high", high.clone())
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Look at the batch in training mode, then round; same shape."""
        x = x.float()
        if self.training and int(self.seen) < self.until:
            low, high = torch.aminmax(x.detach())
            self.low.lerp_(low, self.momentum)
            self.high.lerp_(high, self.momentum)
            self.seen += 1
        grid = self.grid()
        low, high = real_range(grid)
        clipped = x.clamp(float(low), float(high))
        return clipped + (_rounded(clipped.detach(), grid) - clipped).detach()

    def grid(self) -> QParams:
        """Return the grid as it is now."""
        return qparams_from_range(self.low.clamp(max=0), self.high.clamp(min=0), self.qtype)


class BinaryWeight(Grid):
    """Weights of one bit: each channel's mean magnitude, with the weight's sign.

    Source: Rastegari et al., "XNOR-Net", ECCV 2016, equations 4 and 6; gradients pass where |w| is at most
    `REACH` times the channel's magnitude, and through the magnitude.
    """

    REACH = 3.0
    scale: Tensor

    def __init__(self, qparams: QParams) -> None:
        """Stand where a per-channel quantizer stood; its scale is not used."""
        super().__init__()
        # -1 and 1 lie on the ternary grid, which integer kernels take.
        self.qtype = QType(2, narrow=True, axis=qparams.qtype.axis)
        self.register_buffer("scale", qparams.scale.detach().clone())

    def forward(self, weight: Tensor) -> Tensor:
        """Return the binary weight; same shape."""
        scale = self._magnitude(weight)
        if self.training:
            self.scale.copy_(scale.detach().reshape(-1))
        relative = (weight / scale.detach()).clamp(-self.REACH, self.REACH)
        return scale * (relative + (_sign(weight) - relative).detach())

    def grid(self) -> QParams:
        """Return the ternary grid that holds both values."""
        scale = self.scale.detach().clone()
        return QParams(scale, torch.zeros(len(scale), dtype=torch.int32, device=scale.device), self.qtype)

    def settled(self, weight: Tensor) -> Tensor:
        """Return the binary weight."""
        scale = self._magnitude(weight.detach())
        self.scale.copy_(scale.reshape(-1))
        return _sign(weight.detach()) * scale

    def encoding(self) -> Encoding:
        """Return the format of one bit."""
        return Encoding(Binary(), {"scale": self.scale.detach().clone()}, self.qtype.axis)

    def _magnitude(self, weight: Tensor) -> Tensor:
        axis = self.qtype.axis or 0
        return weight.abs().mean([d for d in range(weight.ndim) if d != axis], keepdim=True).clamp(min=1e-12)


class MidRiseWeight(Grid):
    """Weights of two bits: -1.5, -0.5, 0.5 or 1.5 steps, with a step per channel that is learned.

    Source: Esser et al., ICLR 2020, equations 1 to 3, on the levels of Liu et al., "ParetoQ", arXiv:2502.02631,
    equation 5. As in `LearnedGrid`, the logarithm of the step is learned, and its gradient divided by
    sqrt(values * largest).
    """

    LARGEST = 1.5

    def __init__(self, qparams: QParams, weight: Tensor) -> None:
        """Stand where a per-channel quantizer stood, with the step of the least squared error for a float weight."""
        super().__init__()
        # Half steps, -3 to 3, are integers, which kernels take: the narrow grid of 3 bits holds them.
        self.qtype = QType(3, narrow=True, axis=qparams.qtype.axis)
        half = MidRise().encode(weight.detach(), self.qtype.axis).parameters["scale"]
        self.log_step = nn.Parameter((2 * half).log())

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight; same shape."""
        factor = 1 / math.sqrt(weight.numel() / self.log_step.numel() * self.LARGEST)
        step = self._along(self.log_step, weight).exp()
        step = step * factor + (step - step * factor).detach()
        relative = (weight / step).clamp(-self.LARGEST, self.LARGEST)
        rounded = relative.floor() + 0.5
        return (relative + (rounded - relative).detach()) * step

    def grid(self) -> QParams:
        """Return the grid of half steps as it is now."""
        half = self.log_step.detach().exp() / 2
        return QParams(half, torch.zeros(len(half), dtype=torch.int32, device=half.device), self.qtype)

    def settled(self, weight: Tensor) -> Tensor:
        """Return the rounded weight, as its format decodes it."""
        return self.encoding().encode(weight).decode()

    def encoding(self) -> Encoding:
        """Return the format of two bits."""
        return Encoding(MidRise(), {"scale": self.grid().scale}, self.qtype.axis)

    def _along(self, parameter: Tensor, weight: Tensor) -> Tensor:
        return parameter.reshape([-1 if axis == self.qtype.axis else 1 for axis in range(weight.ndim)])


def _rounded(x: Tensor, grid: QParams) -> Tensor:
    """Fake-quantize a tensor that needs no gradient on a per-tensor grid."""
    limits = (grid.qtype.qmin, grid.qtype.qmax)
    return torch.fake_quantize_per_tensor_affine(x, float(grid.scale), int(grid.zero_point), *limits)


def _sign(x: Tensor) -> Tensor:
    """Return -1 or 1; zero counts as positive."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def _at(qtype: QType, bits: int) -> QType:
    return replace(qtype, bits=bits, narrow=qtype.narrow and bits > 2)
