"""Memory that a training frees stays with its process until it ends.

What a step computes is freed within the step and asked for again in the next one. glibc hands large blocks,
and what is free at the end of its heap, back to the system at once, which then zeroes and maps each page
anew: of the default teacher 1,200 pages a step, beside a teacher that answers 4,300, a tenth of the time.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

TRIM, MAP = -1, -3
"""What `mallopt` sets, see malloc.h: how many bytes are free at the heap's end before they go back, and how
many a block has that gets pages of its own."""

KEPT = 1 << 30
"""Bytes that are not given back while a training runs."""

TRIMMED, MAPPED = 64 << 20, 32 << 20
"""Bytes of both otherwise: the largest to which glibc raises them by itself as it meets large blocks. Larger
ones have pages of their own in a training too: among smaller ones they would leave holes that take memory."""


@contextmanager
def kept_heap() -> Iterator[None]:
    """Keep memory that is freed for what is asked for next; afterwards give it back. Bits do not change.

    The most memory that the default trainings take is the same. Does nothing without glibc.
    """
    if (glibc := _glibc()) is None:
        yield
        return
    _limit(glibc, KEPT)
    try:
        yield
    finally:
        _limit(glibc, TRIMMED)
        glibc.malloc_trim(ctypes.c_size_t(0))


def _limit(glibc: ctypes.CDLL, trim: int) -> None:
    glibc.mallopt(TRIM, trim)
    glibc.mallopt(MAP, MAPPED)


@cache
def _glibc() -> ctypes.CDLL | None:
    """Return the C library where it is glibc; None on other systems."""
    known = getattr(os, "confstr_names", {})
    if "CS_GNU_LIBC_VERSION" not in known:
        return None
    try:
        return ctypes.CDLL(None) if os.confstr("CS_GNU_LIBC_VERSION") else None
    except (OSError, ValueError):  # another C library
        return None
