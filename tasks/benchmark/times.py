"""The times of all models: left as they are where they were measured before, else measured in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from decant.checkpoints.files import size_bytes
from decant.errors import DecantError
from decant.examples import Batch
from decant.export.semi_structured import unpackable
from decant.outputs import write_json, write_text
from tasks.benchmark.exports import Export, Failure, at_once, attempt, divided
from tasks.benchmark.hardware import Hardware, hardware_of
from tasks.benchmark.measure import as_json, measure
from tasks.benchmark.page import readme
from tasks.benchmark.params import BenchmarkParams
from tasks.benchmark.tables import BENCHMARK, MEASURED, TEACHER, Table, kept, read, settings
from tasks.benchmark.verdicts import verdict
from tasks.pipeline.lineages import MODELS


def write_times(
    exports: Mapping[str, Export], folder: Path, images: Batch, params: BenchmarkParams
) -> dict[str, Failure]:
    """Write this processor's table and the page of all tables; print what was done and why.

    Args:
        exports: All models by name, the teacher's among them.
        folder: Where their ONNX files are.
        images: uint8 [N, C, H, W], to time the models on.
        params: How to measure.

    Returns:
        The failure of each model that could not be measured; the others are. Without the teacher nothing is
        written, as all ratios are to it.
    """
    hardware = hardware_of(params)
    path, machine, how = hardware.path, hardware.machine, settings(params)
    sums = {name: made.md5 for name, made in exports.items()}
    table, reason = kept(path, machine, how, sums)
    print(reason)
    failed: dict[str, Failure] = {}
    if table is None:
        rows, rounds, failed = _measured(exports, folder, images, params, hardware)
        table = {"machine": machine, "settings": how, "rounds": rounds, "models": rows}
    wrong, models = divided({n: attempt(_row, exports[n], table["models"][n], n) for n in table["models"]})
    failed |= wrong
    if TEACHER in models:
        write_json(path, {**table, "models": models})
        write_text(BENCHMARK / "README.md", readme(_tables(), {name: sums[name] for name in models}))
    return failed


def _measured(
    exports: Mapping[str, Export],
    folder: Path,
    images: Batch,
    params: BenchmarkParams,
    hardware: Hardware,
) -> tuple[dict[str, Any], int, dict[str, Failure]]:
    """Return what was measured of each model, by its name, in how many rounds, and what failed."""

    def memory(name: str) -> int | None:
        return hardware.memory(folder / f"{name}.onnx")

    found = at_once(partial(attempt, memory), list(exports), params.threads)
    failed, peaks = divided(dict(zip(exports, found, strict=True)))
    for name in exports if params.semi_structured else ():
        if reason := unpackable(exports[name].model.module):
            print(f"{name} is not packed: {reason}")
    packed, wrong = hardware.packed({n: exports[n] for n in peaks}, images, params)
    failed |= wrong
    peaks = {name: peak for name, peak in peaks.items() if name not in wrong}
    while TEACHER in peaks:
        try:
            with hardware.ready():
                results, rounds = measure(
                    {n: _Watched(n, hardware.network(exports[n].model.module)) for n in peaks},
                    {n: _watched(n, hardware.session(exports[n])) for n in peaks},
                    images,
                    reference=TEACHER,
                    rounds=params.rounds,
                    seconds=params.seconds,
                )
        except _CallError as error:
            failed[error.name] = error.failure
            del peaks[error.name]
        else:
            rows = {
                n: {"peak_memory_bytes": peaks[n], **as_json(results, n), **packed.get(n, {})} for n in peaks
            }
            return rows, rounds, failed
    return {}, 0, failed


class _CallError(Exception):
    """A model failed in the midst of the others."""

    def __init__(self, name: str, failure: Failure) -> None:
        super().__init__(name)
        self.name, self.failure = name, failure


@dataclass(frozen=True)
class _Watched:
    """A model in one of the runtimes, which says that it was this one where it fails."""

    name: str
    call: Callable[..., Any]
    inputs: Sequence[Any] = ()

    def get_inputs(self) -> Sequence[Any]:
        """Return what a session takes."""
        return self.inputs

    def __call__(self, *arguments: Any) -> Any:
        result = attempt(self.call, *arguments)
        if isinstance(result, Failure):
            raise _CallError(self.name, result)
        return result

    run = __call__


def _watched(name: str, session: Any) -> _Watched:
    return _Watched(name, session.run, session.get_inputs())


def _row(made: Export, measured: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a model's entry: what follows from its files, and what was measured."""
    size = size_bytes(MODELS / name)
    row = {
        "onnx_md5": made.md5,
        "size_bytes": size,
        "size_ratio": float(f"{size_bytes(MODELS / TEACHER) / size:.4g}"),
        "onnx_bytes": len(made.content),
        **{key: measured[key] for key in MEASURED if key in measured},
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
