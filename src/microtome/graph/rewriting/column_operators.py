"""Two operators that torch has not: columns of an image laid out as channels, and back.

They are operators of their own, and not a permute, reshape and permute each, since torch.export cannot prove that the
sizes fit where these are free; and so that a writer of model files sees what is meant (`runtimes.onnx_file`).
"""

from __future__ import annotations

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


TO_CHANNELS = torch.ops.microtome.columns_to_channels.default
TO_COLUMNS = torch.ops.microtome.channels_to_columns.default
