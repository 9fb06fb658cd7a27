"""Both runtimes on every model: what is called, how often, and what is said of the machine."""

from __future__ import annotations

import platform
import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import onnxruntime
import torch
from torch import Tensor
from tqdm import tqdm

from decant.examples import Batch, arguments
from decant.export.runtime import feed
from decant.export.timing import Call, Latency, Rounds, compare, interleave, no_garbage_collection, processor

REPEATS = {1: 10, 128: 1}
"""Timed calls in one turn, by batch size: about as many images' worth of time for each."""

RUNTIMES = ("onnxruntime", "pytorch")
Group = tuple[str, int]  # runtime and batch size
Results = dict[Group, dict[str, Latency]]


def measure(
    modules: Mapping[str, Callable[[Tensor], Tensor]],
    sessions: Mapping[str, Any],
    images: Batch,
    *,
    reference: str,
    rounds: int,
    seconds: float,
) -> tuple[Results, int]:
    """Return each model's latency by runtime and batch size, and how many rounds there was time for.

    Args:
        modules: The networks by name, in eval mode.
        sessions: The same functions in ONNX Runtime.
        images: uint8 [N, C, H, W]; repeated where a batch needs more.
        reference: The model that the others are compared with.
        rounds: At most so many, and at least three.
        seconds: No round begins after these, once there are three.
    """
    groups = {
        (runtime, size): calls
        for size in REPEATS
        for runtime, calls in zip(RUNTIMES, _calls(modules, sessions, _batch(images, size)), strict=True)
    }
    measured: dict[Group, dict[str, Rounds]] = {group: {name: [] for name in modules} for group in groups}
    order, done = random.Random(0), 0
    with no_garbage_collection(), torch.inference_mode(), tqdm(total=rounds, desc="rounds") as progress:
        for calls in groups.values():
            interleave(calls, 2, order)  # the first calls allocate
        begin = time.perf_counter()
        while done < rounds and (done < 3 or time.perf_counter() - begin < seconds):
            for group, calls in groups.items():
                for name, spent in interleave(calls, REPEATS[group[1]], order).items():
                    measured[group][name].append(spent)
            done += 1
            progress.update()
    return {group: compare(by_name, reference) for group, by_name in measured.items()}, done


def describe_machine(threads: int) -> dict[str, Any]:
    """Return what the seconds depend on beside the models."""
    return {
        # The bits of a training depend on the instructions that the kernels may use, more than on the name.
        "processor": f"{processor()} with {torch.backends.cpu.get_cpu_capability()}",
        "system": platform.system(),
        "threads": threads,
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def as_json(results: Results, name: str) -> dict[str, dict[str, dict[str, float]]]:
    """Return one model's latencies as runtime, batch size, number; seconds to four digits."""
    nested: dict[str, dict[str, dict[str, float]]] = {runtime: {} for runtime in RUNTIMES}
    for (runtime, size), latencies in results.items():
        latency = latencies[name]
        numbers = {
            "p50_seconds": latency.median,
            "p95_seconds": latency.p95,
            "images_per_second": size / latency.median,
            "speedup": latency.speedup,
            "speedup_low": latency.speedup_low,
            "speedup_high": latency.speedup_high,
        }
        nested[runtime][f"batch_{size}"] = {key: float(f"{value:.4g}") for key, value in numbers.items()}
    return nested


def _batch(images: Batch, size: int) -> tuple[Tensor, ...]:
    return tuple(each.contiguous() for each in arguments(images[torch.arange(size) % len(images)]))


def _calls(
    modules: Mapping[str, Callable[[Tensor], Tensor]], sessions: Mapping[str, Any], batch: tuple[Tensor, ...]
) -> tuple[dict[str, Call], dict[str, Call]]:
    return (
        {name: partial(session.run, None, feed(session, batch)) for name, session in sessions.items()},
        {name: partial(module, *batch) for name, module in modules.items()},
    )
