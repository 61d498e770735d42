"""What every number format is: a map from real values to short codes and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]
"""What decoding needs beside the codes: scales, zero points, codebooks."""

# The largest magnitude of an integer that a symmetric 8-bit kernel takes.
LARGEST_INT8 = 127


class Format(ABC):
    """A number format with its settings. Subclasses are frozen dataclasses; `bits` is the width of a code."""

    @property
    @abstractmethod
    def bits(self) -> int:
        """Bits per value."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Short and speaking, such as `int4` or `apot4`."""

    def encode(self, tensor: Tensor, axis: int | None = None, parameters: Parameters | None = None) -> Encoded:
        """Turn a tensor into codes.

        Args:
            tensor: any shape, finite.
            axis: the dimension whose entries get parameters of their own (channels); None is one set for all.
            parameters: from an earlier encoding; None finds them. A tensor that was decoded comes back to the same
                values with them.

        Raises:
            ValueError: the tensor is empty, or holds NaN or infinity.
        """
        real = tensor.detach().float()
        if not real.numel() or not bool(torch.isfinite(real).all()):
            raise ValueError(f"{self.name} encodes finite values, and at least one")
        values = rows(real, axis)
        if parameters is None:
            parameters = self.fit(values)
            if axis is None:
                parameters = {name: _squeezed(value) for name, value in parameters.items()}
        else:
            parameters = {name: value.to(real.device) for name, value in parameters.items()}
        codes = self.codes(values, parameters).to(torch.int32)
        return Encoded(self, from_rows(codes, real.shape, axis), MappingProxyType(dict(parameters)), axis)

    @abstractmethod
    def fit(self, values: Tensor) -> Parameters:
        """Return the parameters for values (C, N), one row per channel; each with C as first axis, or without it."""

    @abstractmethod
    def codes(self, values: Tensor, parameters: Parameters) -> Tensor:
        """Return the codes of values (C, N), same shape."""

    @abstractmethod
    def decode(self, codes: Tensor, parameters: Parameters) -> Tensor:
        """Return the real values of codes (C, N), float32, same shape."""

    def keeping_zeros(self) -> Format:
        """Return the format for weights whose zeros must stay zero; itself where they do anyway."""
        return self

    def misfit(self, tensor: Tensor, decoded: Tensor) -> str | None:
        """Say what of a tensor lies outside of the format's range; None if nothing does."""
        largest = float(tensor.abs().max())
        if largest and not bool(decoded.any()):
            return f"it becomes 0, since its largest value is {largest:.3g}"
        return None

    def integers(self, codes: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor] | None:
        """Return codes (C, N) as (integers of the same shape, scale (C,) or ()), if these give the values exactly."""
        return None


@dataclass(frozen=True, eq=False)
class Encoding:
    """How a tensor was encoded: all that is needed to encode its decoded values again, without loss.

    Attributes:
        format: the number format.
        parameters: found by it.
        axis: the channels' dimension.
    """

    format: Format
    parameters: Parameters
    axis: int | None = None

    def encode(self, tensor: Tensor) -> Encoded:
        """Encode a tensor with these parameters."""
        return self.format.encode(tensor, self.axis, self.parameters)


@dataclass(frozen=True, eq=False)
class Encoded:
    """A tensor as codes.

    Attributes:
        format: the number format.
        codes: int32, from 0 to 2^bits - 1, in the tensor's shape.
        parameters: what decoding needs.
        axis: the channels' dimension.
    """

    format: Format
    codes: Tensor
    parameters: Parameters
    axis: int | None = None

    @property
    def encoding(self) -> Encoding:
        """All but the codes."""
        return Encoding(self.format, self.parameters, self.axis)

    def decode(self) -> Tensor:
        """Return the real values, float32."""
        values = self.format.decode(rows(self.codes, self.axis), self.parameters)
        return from_rows(values, self.codes.shape, self.axis)

    def integers(self) -> tuple[Tensor, Tensor] | None:
        """Return (int8 tensor, float32 scale (C,), or () where there is no axis) if these are exactly the values.

        `integer * scale` computed in float32 is then the decoded value to the bit, and no integer is beyond ±127. None
        if the values are no such integers.
        """
        found = self.format.integers(rows(self.codes, self.axis), self.parameters)
        if found is None:
            return None
        integers, scale = found
        if int(integers.abs().max()) > LARGEST_INT8:
            return None
        scale = scale.float().reshape(-1)
        scale = scale.reshape(()) if self.axis is None else scale.expand(self.codes.shape[self.axis]).clone()
        return from_rows(integers.to(torch.int8), self.codes.shape, self.axis), scale


def rows(tensor: Tensor, axis: int | None) -> Tensor:
    """Return a tensor as (channels, values); (1, values) without an axis."""
    matrix = tensor.reshape(1, -1) if axis is None else tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)
    return matrix.contiguous()


def from_rows(values: Tensor, shape: tuple[int, ...], axis: int | None) -> Tensor:
    """Return (channels, values) in the shape that `rows` had made them from."""
    if axis is None:
        return values.reshape(shape)
    others = [size for position, size in enumerate(shape) if position != axis % len(shape)]
    return values.reshape(shape[axis], *others).movedim(0, axis).contiguous()


def per_row(parameter: Tensor) -> Tensor:
    """Return a parameter of shape (C,) or () as (C, 1) or (1, 1), to go with rows."""
    return parameter.reshape(-1, 1)


def check_bits(bits: int, most: int, *, least: int = 1) -> None:
    """Raise ValueError unless the width lies between `least` and `most`."""
    if not least <= bits <= most:
        raise ValueError(f"bits must be {least} to {most}, not {bits}")


def _squeezed(parameter: Tensor) -> Tensor:
    """Take off the channel axis that stands for the whole tensor."""
    return parameter.squeeze(0) if parameter.ndim and parameter.shape[0] == 1 else parameter
