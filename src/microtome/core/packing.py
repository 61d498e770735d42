"""Codes of 1 to 16 bits as dense bytes.

Code i takes the bits from i * bits on, least significant first, in bytes counted the same way; no code is padded, only
the last byte may be.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 8  # codes that together fill whole bytes at every width


def packed_size(count: int, bits: int) -> int:
    """Return how many bytes `count` codes take."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return codes (any shape, integers from 0 to 2^bits - 1) as bytes: uint8, (ceil(count * bits / 8),).

    Raises:
        ValueError: `bits` is not 1 to 16, or a code does not fit.
    """
    _check(bits)
    flat = codes.detach().reshape(-1)
    count = flat.numel()
    if count and (int(flat.min()) < 0 or int(flat.max()) >> bits):
        raise ValueError(f"a code does not fit into {bits} bits: {int(flat.min())} to {int(flat.max())}")
    groups = -(-count // GROUP)
    padded = torch.zeros(groups * GROUP, dtype=torch.int32, device=flat.device)
    padded[:count] = flat
    columns = padded.reshape(groups, GROUP).T.contiguous()
    content = torch.zeros((bits, groups), dtype=torch.int32, device=flat.device)
    for position in range(GROUP):
        byte, shift = divmod(position * bits, 8)
        spread = columns[position] << shift
        for place in range(byte, -(-(position + 1) * bits // 8)):
            content[place] |= (spread >> (8 * (place - byte))) & 0xFF
    return content.to(torch.uint8).T.reshape(-1)[: packed_size(count, bits)].clone()


def unpack(content: Tensor, bits: int, count: int) -> Tensor:
    """Return the first `count` codes of bytes that `pack` made: int32, (count,).

    Raises:
        ValueError: `bits` is not 1 to 16, or there are fewer or more bytes than so many codes take.
    """
    _check(bits)
    if count < 0 or content.numel() != packed_size(count, bits):
        raise ValueError(f"{count} codes of {bits} bits take {packed_size(count, bits)} bytes, not {content.numel()}")
    groups = -(-count // GROUP)
    padded = torch.zeros(groups * bits, dtype=torch.uint8, device=content.device)
    padded[: content.numel()] = content.reshape(-1)
    columns = padded.reshape(groups, bits).T.to(torch.int32).contiguous()
    codes = torch.zeros((GROUP, groups), dtype=torch.int32, device=content.device)
    for position in range(GROUP):
        byte, shift = divmod(position * bits, 8)
        for place in range(byte, -(-(position + 1) * bits // 8)):
            codes[position] |= columns[place] << (8 * (place - byte))
        codes[position] >>= shift
    return (codes & ((1 << bits) - 1)).T.reshape(-1)[:count].clone()


def _check(bits: int) -> None:
    if not 1 <= bits <= 16:
        raise ValueError(f"bits must be 1 to 16, not {bits}")
