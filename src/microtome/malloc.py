"""What the C library does with freed memory while large tensors come and go."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# glibc's own names and numbers (malloc.h), and the state that its thresholds reach by themselves at most.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST_BLOCK = 32 << 20  # glibc takes larger ones from the system each time, whatever it is told
USUAL_TRIM = 2 * LARGEST_BLOCK
NEVER = (1 << 31) - 1


@contextmanager
def memory_at_hand() -> Iterator[None]:
    """Keep freed memory for the next tensor while it is open; give it back to the system in the end.

    A network that runs layer by layer frees a tensor of many megabytes after each and asks for the next. By default
    glibc hands such blocks back to the system, and every page of the next one is a page fault: a fifth of the time of a
    3-D U-Net. Elsewhere than on glibc nothing is changed.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(MMAP_THRESHOLD, LARGEST_BLOCK)
    library.mallopt(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        library.mallopt(TRIM_THRESHOLD, USUAL_TRIM)
        library.malloc_trim(0)


@functools.cache
def _glibc() -> Any:
    """Return the C library if it is glibc."""
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
