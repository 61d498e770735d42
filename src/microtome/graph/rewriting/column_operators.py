"""Operators that torch has not: columns of an image laid out as channels, and back; blocks of it as channels.

They are operators of their own, and not a permute, reshape and permute each, since torch.export cannot prove that the
sizes fit where these are free; and so that a writer of model files sees what is meant (`runtimes.onnx_file`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.library.custom_op("microtome::columns_to_channels", mutates_args=())
def columns_to_channels(image: Tensor, columns: int, width: int) -> Tensor:
    """Return (N, C, *S, columns · width) as (N, columns · C, *S, width): the channels of each column in turn.

    Raises:
        RuntimeError: the image has another width.
    """
    last = image.movedim(1, -1)
    joined = last.reshape(*last.shape[:-2], width, columns * last.shape[-1])
    return joined.movedim(-1, 1).clone(memory_format=torch.contiguous_format)


@torch.library.custom_op("microtome::channels_to_columns", mutates_args=())
def channels_to_columns(image: Tensor, columns: int, width: int) -> Tensor:
    """Return (N, columns · C, *S, W) as (N, C, *S, width), where width is columns · W.

    Raises:
        RuntimeError: the image has another width.
    """
    last = image.movedim(1, -1)
    split = last.reshape(*last.shape[:-2], width, last.shape[-1] // columns)
    return split.movedim(-1, 1).clone(memory_format=torch.contiguous_format)


@columns_to_channels.register_fake
def _(image: Tensor, columns: int, width: int) -> Tensor:
    return image.new_empty(image.shape[0], image.shape[1] * columns, *image.shape[2:-1], width)


@channels_to_columns.register_fake
def _(image: Tensor, columns: int, width: int) -> Tensor:
    return image.new_empty(image.shape[0], image.shape[1] // columns, *image.shape[2:-1], width)


@torch.library.custom_op("microtome::blocks_to_channels", mutates_args=())
def blocks_to_channels(image: Tensor, stride: int, sizes: Sequence[int]) -> Tensor:
    """Return (N, C, *S) as (N, C · stride^d, *sizes), where each size is that of S over the stride, rounded up.

    The pixels of a block are channels side by side, those of each channel in turn; zeros fill the last block.
    """
    dims, missing = len(sizes), list[int]()
    for size, blocks in zip(image.shape[2:], sizes, strict=True):
        missing = [0, blocks * stride - size, *missing]
    whole = torch.nn.functional.pad(image, missing)
    split = whole.reshape(*image.shape[:2], *(part for blocks in sizes for part in (blocks, stride)))
    turned = split.permute(0, 1, *range(3, 2 * dims + 2, 2), *range(2, 2 * dims + 2, 2))
    return turned.reshape(image.shape[0], -1, *sizes).clone(memory_format=torch.contiguous_format)


@blocks_to_channels.register_fake
def _(image: Tensor, stride: int, sizes: Sequence[int]) -> Tensor:
    return image.new_empty(image.shape[0], image.shape[1] * stride ** len(sizes), *sizes)


TO_CHANNELS = torch.ops.microtome.columns_to_channels.default
TO_COLUMNS = torch.ops.microtome.channels_to_columns.default
BLOCKS = torch.ops.microtome.blocks_to_channels.default
