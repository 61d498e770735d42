"""The integer affine format: `real = scale * (integer - zero_point)`.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
CVPR 2018, equations 1 and 13; Krishnamoorthi, arXiv:1806.08342, section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.types import QParams, QType

# The smallest scale that is kept: below it 1/scale overflows float32 in the runtimes' kernels.
SMALLEST_SCALE = 1e-30


def qparams_from_range(low: Tensor, high: Tensor, qtype: QType) -> QParams:
    """Place the grid of `qtype` over the real range [low, high].

    The range is first widened to hold zero, so that zero padding is exact. Symmetric: scale = max|r| / qmax, zero point
    in the middle. Asymmetric: scale = (high - low) / (qmax - qmin), zero_point = round(qmin - low / scale).

    Args:
        low: lower ends, shape () or (C,), finite.
        high: upper ends, same shape, not below `low`.
        qtype: the number format.

    Returns:
        Scale and zero point of the same shape. A range of zero width gets scale 1; none is below SMALLEST_SCALE.

    Raises:
        ValueError: a bound is not finite, or low > high.
    """
    low, high = low.detach().float(), high.detach().float()
    if not (torch.isfinite(low).all() and torch.isfinite(high).all()) or bool((low > high).any()):
        raise ValueError(f"not a range: low {low.tolist()}, high {high.tolist()}")
    low, high = low.clamp(max=0), high.clamp(min=0)
    if qtype.symmetric:
        middle = 0 if qtype.signed else (qtype.qmax + 1) // 2
        steps = max(qtype.qmax - middle, 1)
        scale = torch.maximum(-low, high) / steps
        zero_point = torch.full_like(scale, float(middle))
    else:
        scale = (high - low) / max(qtype.qmax - qtype.qmin, 1)
        zero_point = torch.zeros_like(scale)
    scale = usable_scale(scale)
    if not qtype.symmetric:
        zero_point = (qtype.qmin - low / scale).round().clamp(qtype.qmin, qtype.qmax)
    return QParams(scale, zero_point.to(torch.int32), qtype)


def usable_scale(scale: Tensor) -> Tensor:
    """Return scales that kernels can divide by: 1 where there is nothing but zeros, else at least SMALLEST_SCALE."""
    return torch.where(scale > 0, scale.clamp(min=SMALLEST_SCALE), torch.ones_like(scale))


def real_range(qparams: QParams) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest real value that the grid can hold, shapes as the scale's."""
    zero_point = qparams.zero_point.float()
    return (qparams.qtype.qmin - zero_point) * qparams.scale, (qparams.qtype.qmax - zero_point) * qparams.scale


def quantize(real: Tensor, qparams: QParams) -> Tensor:
    """Round `real` to the nearest integer of the grid (ties to even), saturating; int32, same shape."""
    scale, zero_point = _along_axis(real, qparams)
    integer = (real / scale).round() + zero_point
    return integer.clamp(qparams.qtype.qmin, qparams.qtype.qmax).to(torch.int32)


def dequantize(integer: Tensor, qparams: QParams) -> Tensor:
    """Return the real values of integers on the grid; float32, same shape."""
    scale, zero_point = _along_axis(integer, qparams)
    return (integer - zero_point).float() * scale


def fake_quantize(real: Tensor, qparams: QParams) -> Tensor:
    """Round `real` to the grid and back: what a tensor looks like after the integer road; same shape."""
    return dequantize(quantize(real, qparams), qparams)


def _along_axis(tensor: Tensor, qparams: QParams) -> tuple[Tensor, Tensor]:
    """Shape scale and zero point so that they broadcast along the channel axis."""
    axis = qparams.qtype.axis
    if axis is None or qparams.scale.ndim == 0:
        return qparams.scale, qparams.zero_point
    shape = [1] * tensor.ndim
    shape[axis] = -1
    return qparams.scale.reshape(shape), qparams.zero_point.reshape(shape)
