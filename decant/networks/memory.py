"""Memory: how much is free, and a limit by which what takes more fails in its own line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_memory() -> int:
    """Return how many bytes this process may still take, as far as the system says it."""
    available = _kilobytes(Path("/proc/meminfo"), "MemAvailable")
    if available is not None:
        return available << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def within_memory() -> Iterator[None]:
    """Have an allocation inside fail that takes more than is free, where the system can count it (Linux).

    Without, the system grants it, and ends the process without a word once it is written to.
    """
    taken = _kilobytes(Path("/proc/self/status"), "VmData")
    if taken is None:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = (taken << 10) + free_memory()
    limits = [each for each in (most, soft, hard) if each != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _kilobytes(path: Path, name: str) -> int | None:
    """Return an entry of a file of Linux's; None where there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
