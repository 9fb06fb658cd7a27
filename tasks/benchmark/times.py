"""The times of all models: left as they are where they were measured before, else measured in one run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from decant.checkpoints.files import size_bytes
from decant.errors import DecantError
from decant.outputs import write_json, write_text
from tasks.benchmark.exports import Export, at_once
from tasks.benchmark.measure import REPEATS, as_json, describe_machine, measure
from tasks.benchmark.memory import peak_bytes
from tasks.benchmark.page import readme
from tasks.benchmark.params import BenchmarkParams
from tasks.benchmark.tables import BENCHMARK, MEASURED, TEACHER, Table, kept, path_here, read, settings
from tasks.benchmark.verdicts import verdict
from tasks.pipeline.lineages import MODELS


def write_times(exports: Mapping[str, Export], folder: Path, images: Tensor, params: BenchmarkParams) -> None:
    """Write this processor's table and the page of all tables; print what was done and why.

    Args:
        exports: All models by name, the teacher's among them.
        folder: Where their ONNX files are.
        images: uint8 [N, C, H, W], to time the models on.
        params: How to measure.
    """
    path, machine, how = path_here(), describe_machine(params.threads), settings(params)
    sums = {name: made.md5 for name, made in exports.items()}
    table, reason = kept(path, machine, how, sums)
    print(reason)
    if table is None:
        rows, rounds = _measured(exports, folder, images, params)
        table = {"machine": machine, "settings": how, "rounds": rounds, "models": rows}
    sizes = {name: size_bytes(MODELS / name) for name in exports}
    models = {
        name: _row(made, table["models"][name], sizes[name], sizes[TEACHER]) for name, made in exports.items()
    }
    write_json(path, {**table, "models": models})
    write_text(BENCHMARK / "README.md", readme(_tables(), sums))


def _measured(
    exports: Mapping[str, Export], folder: Path, images: Tensor, params: BenchmarkParams
) -> tuple[dict[str, Any], int]:
    """Return what was measured of each model, by its name, and in how many rounds."""

    def memory(name: str) -> int | None:
        return peak_bytes(folder / f"{name}.onnx", max(REPEATS), params.threads)

    peaks = dict(zip(exports, at_once(memory, list(exports), params.threads), strict=True))
    modules = {name: made.model.module for name, made in exports.items()}
    sessions = {name: made.session for name, made in exports.items()}
    results, rounds = measure(
        modules, sessions, images, reference=TEACHER, rounds=params.rounds, seconds=params.seconds
    )
    return {name: {"peak_memory_bytes": peaks[name], **as_json(results, name)} for name in exports}, rounds


def _row(made: Export, measured: Mapping[str, Any], size: int, teacher_size: int) -> dict[str, Any]:
    """Return a model's entry: what follows from its files, and what was measured."""
    row = {
        "onnx_md5": made.md5,
        "size_bytes": size,
        "size_ratio": float(f"{teacher_size / size:.4g}"),
        "onnx_bytes": len(made.content),
        **{key: measured[key] for key in MEASURED},
    }
    return {**row, "verdict": verdict(row, made.model, made.forms)}


def _tables() -> list[Table]:
    """Return the table of each processor in the order of the files' names; print which files hold none."""
    tables = []
    for path in sorted(BENCHMARK.glob("*.json")):
        try:
            tables.append(read(path))
        except DecantError as error:
            print(f"{error}: it is left out of {BENCHMARK / 'README.md'}")
    return tables
