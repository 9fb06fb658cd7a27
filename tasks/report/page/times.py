"""What was timed: the tables in benchmark/, as far as they are of the models that lie here."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decant.errors import DecantError
from decant.sealed import parsed, read_bytes, reading

BENCHMARK, ONNX = Path("benchmark"), Path("onnx")


@dataclass(frozen=True)
class Times:
    """One processor's table.

    Attributes:
        key: The file's name without its ending, which a column is named by.
        processor: In words.
        seconds: Of one example in ONNX Runtime, the median over rounds, by the model's name.
        verdicts: A sentence on what each model gained there.
        left_out: Models that were timed as another file than lies in onnx/ now, or not at all.
    """

    key: str
    processor: str
    seconds: dict[str, float]
    verdicts: dict[str, str]
    left_out: tuple[str, ...]


def read_times(names: Collection[str]) -> tuple[list[Times], list[str]]:
    """Return the table of each processor by the files' names, and a sentence for each that cannot be read."""
    tables, problems = [], []
    for path in sorted(BENCHMARK.glob("*.json")):
        try:
            with reading(path, "delete it or run `python -m tasks.benchmark`"):
                tables.append(_table(path, parsed(read_bytes(path)), names))
        except DecantError as error:
            problems.append(str(error))
    return [table for table in tables if table.seconds], problems


def _table(path: Path, content: Any, names: Collection[str]) -> Times:
    rows: Mapping[str, Any] = content["models"]
    current = {name: rows[name] for name in names if name in rows and _is_current(name, rows[name])}
    return Times(
        key=path.stem,
        processor=str(content["machine"]["processor"]),
        seconds={
            name: _positive(row["onnxruntime"]["batch_1"]["p50_seconds"]) for name, row in current.items()
        },
        verdicts={name: str(row.get("verdict", "")) for name, row in current.items()},
        left_out=tuple(name for name in names if name not in current),
    )


def _is_current(name: str, row: Mapping[str, Any]) -> bool:
    """Say whether a row is of the ONNX file that lies here; where none does, it is taken to be."""
    path = ONNX / f"{name}.onnx"
    if not path.is_file():
        return True
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            == row["onnx_md5"]
        )


def _positive(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e9:
        raise ValueError(f"expected a time in seconds, found {value!r}")
    return float(value)
