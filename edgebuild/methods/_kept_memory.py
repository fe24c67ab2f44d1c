"""Keeps the memory of tensors that are gone, for the next ones, while a network is trained."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# Of malloc.h: what is given back at the end of the heap, and how many blocks are mapped apart.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
USUAL_TRIM_THRESHOLD, USUAL_MMAP_MAX = 128 * 1024, 65536
NEVER = 2**31 - 1


@contextmanager
def kept_memory() -> Iterator[None]:
    """Lets glibc keep what tensors give back, until the end; nothing happens elsewhere.

    It maps every block of more than 32 MB apart and unmaps it at once, so that the kernel clears
    each page of each feature map anew: two thirds of a step of a network with large images.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_MAX, USUAL_MMAP_MAX)
        library.mallopt(M_TRIM_THRESHOLD, USUAL_TRIM_THRESHOLD)
        library.malloc_trim(0)
