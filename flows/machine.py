"""What this machine has, and how the threads of a stage share it with whatever else runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from itertools import takewhile

import psutil

from flows.watchdog import descendants

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""The variables by which a user says how the threads of a stage wait for each other."""


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """Return the GPUs of this machine, as CUDA_VISIBLE_DEVICES names them.

    CUDA sees those before the first name that is none, such as -1, by which GPUs are hidden.
    """
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return list(takewhile(_is_gpu, (name.strip() for name in visible.split(","))))
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    found = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]  # below each, its parts
    return [str(index) for index in range(len(found))]


def _is_gpu(name: str) -> bool:
    """Say whether CUDA takes this for a GPU: its number, or its UUID, or that of a part of it."""
    return name.isdecimal() or name.startswith(("GPU-", "MIG-"))


def wait_policy(threads: int, running: int) -> dict[str, str]:
    """Return the variables that say how the OpenMP threads of a stage wait for each other.

    They wait at the end of every layer, and by default they spin briefly (tasks/pipeline/openmp.py). Where
    more threads want to run than there are cores, one that spins keeps those that it waits for from running;
    to sleep at once (PASSIVE) is about twice as fast there, and costs a quarter of the speed elsewhere. The
    results are the same either way.

    Args:
        threads: Those of the stage.
        running: Those of all stages that run, this one included.
    """
    if threads < 2 or any(name in os.environ for name in WAITING):
        return {}
    return {"OMP_WAIT_POLICY": "PASSIVE"} if running + others() > cores() else {}


def others() -> int:
    """Return how many processes that are not this one or its descendants want a processor.

    Those that do in two looks a moment apart; 0 where the system does not say so, as macOS does not.
    """
    if sys.platform != "linux":
        return 0
    ours = {os.getpid(), *(process.pid for process in descendants(os.getpid()))}
    before = _running()
    time.sleep(0.05)
    return len((before & _running()) - ours)


def _running() -> set[int]:
    processes = psutil.process_iter(["status"])
    return {process.pid for process in processes if process.info["status"] == psutil.STATUS_RUNNING}
