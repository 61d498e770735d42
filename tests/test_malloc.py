import sys
from pathlib import Path

import pytest
import torch

from microtome.malloc import memory_at_hand

MIB = 1 << 20
BLOCK, BLOCKS = 16 * MIB, 16  # together more than what glibc keeps by itself


def resident() -> int:
    """Return the resident size of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def use() -> None:
    """Fill all blocks, and free them."""
    blocks = [torch.empty(BLOCK, dtype=torch.uint8).fill_(1) for _ in range(BLOCKS)]
    del blocks


@pytest.mark.skipif(sys.platform != "linux", reason="a property of glibc")
def test_freed_memory_stays_at_hand_and_is_given_back_in_the_end():
    before = resident()
    with memory_at_hand():
        use()
        kept = resident()
    assert kept - before > BLOCK * BLOCKS // 2
    assert kept - resident() > BLOCK * BLOCKS // 2


def test_an_error_passes_through():
    with pytest.raises(ZeroDivisionError), memory_at_hand():
        _ = 1 / 0
