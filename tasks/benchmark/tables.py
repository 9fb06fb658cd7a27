"""What was measured: a file in Git for each kind of processor.

Times differ from run to run, so these files are no outputs of the stage: dvc.lock does not know them. Each
is left as it is for as long as it is of the same models, measured in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from decant.errors import DecantError
from decant.export.timing import processor
from decant.outputs import file_name
from decant.schema import Section, mistakes
from decant.sealed import parsed, read_bytes, reading
from tasks.benchmark.params import BenchmarkParams
from tasks.pipeline.record import ROOT, meaning

BENCHMARK = Path("benchmark")
TEACHER = "teacher"
MEASURED = ("peak_memory_bytes", "onnxruntime", "pytorch", "semi_structured")
"""The keys of a model that another run would write other numbers for."""

PACKED = ("decant/export/semi_structured.py", "tasks/benchmark/semi_structured.py")
"""The code that times models packed for the pattern 2:4, where that is asked for."""

MEASURING = (
    "decant/export/runtime.py",
    "decant/export/timing.py",
    "tasks/benchmark/measure.py",
    "tasks/benchmark/memory.py",
)
"""The code that decides what is timed and how."""

Table = dict[str, Any]
"""The content of a file, as `_Table` describes it."""


class _Machine(Section):
    processor: str
    system: str
    threads: int
    onnxruntime: str
    python: str
    torch: str


class _Settings(Section):
    rounds: int
    seconds: float
    code: str
    semi_structured: bool = False


class _Latency(Section):
    p50_seconds: float
    p95_seconds: float
    images_per_second: float
    speedup: float
    speedup_low: float
    speedup_high: float


class _Latencies(Section):
    batch_1: _Latency
    batch_128: _Latency


class _Packed(Section):
    layers: int
    batch_1: _Latency
    batch_128: _Latency


class _Row(Section):
    onnx_md5: str
    size_bytes: int
    size_ratio: float
    onnx_bytes: int
    peak_memory_bytes: int | None
    onnxruntime: _Latencies
    pytorch: _Latencies
    semi_structured: _Packed | None = None
    verdict: str


class _Table(Section):
    machine: _Machine
    settings: _Settings
    rounds: int
    models: dict[str, _Row]


def path_here() -> Path:
    """Return where the times of this kind of processor are kept; different processors share a name."""
    return BENCHMARK / f"{file_name(f'{processor()} {torch.backends.cpu.get_cpu_capability()}')}.json"


def settings(params: BenchmarkParams) -> dict[str, Any]:
    """Return how times are measured: what params.yaml says, and a sum over the code that measures."""
    asked = {"semi_structured": True} if params.semi_structured else {}
    code = "".join(meaning(ROOT / file) for file in (*MEASURING, *(PACKED if asked else ())))
    return asked | {
        "rounds": params.rounds,
        "seconds": params.seconds,
        "code": sha256(code.encode()).hexdigest()[:12],
    }


def read(path: Path) -> Table:
    """Return the table in a file.

    Raises:
        DecantError: It cannot be read, or holds something else.
    """
    with reading(path, "delete it or measure anew"):
        content: Table = parsed(read_bytes(path))
    if wrong := mistakes(content, _Table):
        raise DecantError(f"{path} is no table of measured times: {wrong[0]}")
    return content


def kept(
    path: Path, machine: Mapping[str, Any], how: Mapping[str, Any], sums: Mapping[str, str]
) -> tuple[Table | None, str]:
    """Return the table in a file, if it is what would be measured again, and a sentence that says so.

    Else there is no table, and the sentence says why not.

    Args:
        path: The file.
        machine: What `describe_machine` says now. Another Python alone is no reason to measure anew.
        how: How it would be measured, as `settings` returns it.
        sums: Of each model's ONNX file, by the model's name.
    """
    if not path.exists():
        return None, f"There is no {path}: all models are measured"
    try:
        table = read(path)
    except DecantError as error:
        return None, f"{error}: all models are measured anew"
    if differing := _differing(table, {**machine, **how}, sums):
        return None, f"{path} is not what would be measured now ({differing}): all models are measured anew"
    return table, f"{path} has the times of these very models and is left as it is; delete it to measure anew"


def _differing(table: Table, now: Mapping[str, Any], sums: Mapping[str, str]) -> str:
    """Return in what a table differs from what would be measured now; nothing where it does not."""
    then = {**table["machine"], **table["settings"]}
    keys = [key for key in now if key != "python" and then.get(key) != now[key]]
    models = other_models(table, sums)
    return "; ".join(
        [f"{key}: {then.get(key)}, now {now[key]}" for key in keys]
        + ([f"other models: {', '.join(models)}"] if models else [])
    )


def other_models(table: Table, sums: Mapping[str, str]) -> list[str]:
    """Return the names of the models that one side alone has, or has as another file."""
    then = {name: row["onnx_md5"] for name, row in table["models"].items()}
    return sorted(name for name in {*then, *sums} if then.get(name) != sums.get(name))
