"""Latency of many models, measured in turns, so that whatever else the machine does falls on all of them."""

from __future__ import annotations

import gc
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Call = Callable[[], object]
Rounds = list[list[float]]  # seconds of each call, by round


@dataclass(frozen=True)
class Latency:
    """How long one call takes.

    Attributes:
        median: Seconds, over all calls of all rounds.
        p95: Seconds that 95 % of the calls stay under.
        speedup: Median over rounds of the reference's time over this model's time in the same round.
        speedup_low: 10th percentile of that; `speedup_low` > 1 is faster by more than the spread.
        speedup_high: 90th percentile.
    """

    median: float
    p95: float
    speedup: float
    speedup_low: float
    speedup_high: float


def interleave(
    calls: Mapping[str, Call],
    repeats: int,
    order: random.Random,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds of `repeats` calls of each; the models come one after another in a drawn order.

    Where several calls are timed, an untimed one comes first: the model before has filled the caches.
    """
    seconds: dict[str, list[float]] = {}
    for name in order.sample(sorted(calls), len(calls)):
        if repeats > 1:
            calls[name]()
        seconds[name] = []
        for _ in range(repeats):
            begin = clock()
            calls[name]()
            seconds[name].append(clock() - begin)
    return seconds


def compare(rounds: Mapping[str, Rounds], reference: str) -> dict[str, Latency]:
    """Return each model's latency, and its ratio to the reference paired by round.

    Args:
        rounds: Seconds of each call by model and round; as many rounds for each model.
        reference: The model that the others are compared with.
    """
    base = [statistics.median(calls) for calls in rounds[reference]]
    return {name: _latency(measured, base) for name, measured in rounds.items()}


def _latency(measured: Rounds, base: Sequence[float]) -> Latency:
    ratios = [theirs / statistics.median(calls) for theirs, calls in zip(base, measured, strict=True)]
    every = [seconds for calls in measured for seconds in calls]
    low, middle, high = (float(value) for value in np.percentile(ratios, (10, 50, 90)))
    return Latency(
        median=statistics.median(every),
        p95=float(np.percentile(every, 95)),
        speedup=middle,
        speedup_low=low,
        speedup_high=high,
    )


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python's garbage collector from running in the middle of a call."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def processor() -> str:
    """Return the processor's name; platform.processor() is empty on many Linux machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
