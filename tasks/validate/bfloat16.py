"""Trainings that this machine's processor would make sooner in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from decant.networks.devices import CPU
from tasks.pipeline.lineages import TEACHER
from tasks.validate.hardware import blocks_of

FLAGS = ("avx512_bf16", "amx_bf16")
"""Instructions for products of bfloat16, as Linux calls them; without one of them it is many times slower."""

CPUINFO = Path("/proc/cpuinfo")
PRECISION, FLOAT32 = "precision", "float32"


def gains(params: Mapping[str, Any], cpuinfo: Path = CPUINFO) -> Iterator[str]:
    """Yield where bfloat16 would be faster on this machine; nothing where nobody knows, or it would not.

    That is no mistake: other bits come out, so the recipe has to say it.

    Args:
        params: The whole of params.yaml, which is valid.
        cpuinfo: What Linux tells of the processor.
    """
    found = [flag for flag in FLAGS if flag in _flags(cpuinfo)]
    slower = [
        place
        for name, block in blocks_of(params, TEACHER).items()
        if block.get("device", CPU) == CPU
        for place in _in_float32(block, name)
    ]
    if found and slower:
        yield (
            f"this processor has instructions for bfloat16 ({', '.join(found)}), and {', '.join(slower)} "
            f"{'is' if len(slower) == 1 else 'are'} in float32; `precision: bfloat16` there gives other bits "
            "in less time: benchmarks/training.md says how much"
        )


def _in_float32(block: Any, place: str) -> Iterator[str]:
    """Yield the place of each training in a block that names no other precision, with dots."""
    for name, value in block.items() if isinstance(block, Mapping) else ():
        below = f"{place}.{name}"
        if name == "training" and isinstance(value, Mapping) and value.get(PRECISION, FLOAT32) == FLOAT32:
            yield below
        yield from _in_float32(value, below)


def _flags(cpuinfo: Path) -> set[str]:
    """Return what the first core can do; nothing where there is no such file."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line.split()[2:] for line in lines if line.startswith("flags")), []))
