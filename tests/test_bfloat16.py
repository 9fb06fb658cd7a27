"""`validate` tells which trainings the processor would make sooner in bfloat16, and nothing elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.validate.bfloat16 import gains

FLOAT32, BFLOAT16 = {"epochs": 2}, {"epochs": 2, "precision": "bfloat16"}
PARAMS: dict[str, Any] = {
    "teacher": {"training": FLOAT32},
    "models": {
        "int8": {"op": "quantize"},
        "lsq": {"op": "quantize", "train": {"kind": "lsq", "training": FLOAT32}},
        "fast": {"op": "finetune", "training": BFLOAT16},
        "gpu": {"op": "finetune", "training": FLOAT32, "device": "cuda"},
    },
}


@pytest.mark.parametrize("flags", ["fpu avx512_bf16 amx_bf16 sse", "avx512_bf16", "fpu amx_bf16"])
def test_trainings_in_float32_on_the_processor_are_named(flags: str, tmp_path: Path) -> None:
    (told,) = gains(PARAMS, cpuinfo(tmp_path, flags))
    assert "teacher.training, models.lsq.train.training are in float32" in told
    assert "fast" not in told and "gpu" not in told
    assert all(flag in told for flag in flags.split() if "bf16" in flag)


@pytest.mark.parametrize("flags", ["fpu avx512f amx_tile", "avx512_bf16x", ""])
def test_nothing_is_told_of_a_processor_without_the_instructions(flags: str, tmp_path: Path) -> None:
    assert [*gains(PARAMS, cpuinfo(tmp_path, flags))] == []


def test_nothing_is_told_where_nobody_knows_or_all_is_in_bfloat16(tmp_path: Path) -> None:
    assert [*gains(PARAMS, tmp_path / "missing")] == []
    fast = {"teacher": {"training": BFLOAT16}, "models": {}}
    assert [*gains(fast, cpuinfo(tmp_path, "avx512_bf16"))] == []


def cpuinfo(folder: Path, flags: str) -> Path:
    """Return a file as Linux has it, of a processor with these flags."""
    (file := folder / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: One\nflags\t\t: {flags}\n")
    return file
