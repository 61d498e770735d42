import sys

import pytest
import torch

from microtome.core.memory import memory_at_hand

MIB = 1 << 20
PAGES = 16 * MIB // 4096  # of one block


def faults(times: int) -> int:
    """Return the page faults of filling a block of 16 MiB so many times, freed in between."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.empty(16 * MIB, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="a property of glibc")
def test_a_freed_block_is_used_again_and_given_back_in_the_end():
    with memory_at_hand():
        faults(1)
        assert faults(10) < 3 * PAGES  # of ten: the first may come from elsewhere
    assert faults(1) >= PAGES // 512  # in huge pages at best


def test_an_error_passes_through():
    with pytest.raises(ZeroDivisionError), memory_at_hand():
        _ = 1 / 0
