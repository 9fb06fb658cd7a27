"""The settings under which a process gives the same bits every time."""

from __future__ import annotations

import torch

from tasks.pipeline.params import read_section


def make_deterministic(operation: str) -> int:
    """Set the process up so that it gives the same bits every time; return its thread count.

    The count is a parameter because the order in which a sum is split over threads decides its last bits. It
    is one of each operation, because some gain from a second thread and others from a second process.
    """
    threads = read_section(f"threads.{operation}", int)
    torch.set_num_threads(threads)
    # The same as use_deterministic_algorithms(True), which also imports torch's compiler: a second per stage.
    torch.set_deterministic_debug_mode("error")
    # It also fills fresh memory with NaN, to show who reads it too early; a training slows down by a tenth.
    # (The attribute is a property that torch hangs onto the module at run time, which mypy cannot see.)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return threads
