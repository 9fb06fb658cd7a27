"""The page `benchmark/README.md`: a table for each kind of processor, ratios first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from decant.lowering.integers import EXACT_SUMS
from tasks.benchmark.tables import TEACHER, Table, other_models

COLUMNS = (
    ("onnxruntime", "batch_1"),
    ("onnxruntime", "batch_128"),
    ("pytorch", "batch_1"),
    ("pytorch", "batch_128"),
)


def readme(tables: Iterable[Table], sums: Mapping[str, str]) -> str:
    """Return the page: the same for the same tables, in their order; models in the order of each table.

    Args:
        tables: The contents of the files.
        sums: Of each model's ONNX file now, by the model's name: a table may be of former models.
    """
    return "\n".join(
        [
            "# Latency",
            "",
            "In each round of a measurement every model has its turn, in a drawn order. Another machine "
            "gives other numbers: compare ratios, and only within one table.",
            "",
            "Speed-ups are the teacher's time over the model's in the same round, median over rounds, with "
            "the 10th and 90th percentile of rounds in brackets: 1 is as fast as the teacher, 2 twice as "
            "fast. ORT is ONNX Runtime.",
            "",
            "The milliseconds are of one image, images/s of batches of 128. *Packed* is what the model takes "
            "in models/, *ONNX file* what is deployed, and *times smaller* the teacher's packed bytes over "
            "the model's. *Peak memory* is what a fresh process that holds nothing but ONNX Runtime grows by "
            "when it opens the model and runs a batch of 128; Linux alone reports it.",
            "",
            f"On x86-64 processors without VNNI, ONNX Runtime had its option {EXACT_SUMS} = 1, without which "
            "models of 8-bit integers answer wrongly there (docs/quantization.md).",
            "",
            *[line for table in tables for line in _section(table, sums)],
        ]
    )


def _section(table: Table, sums: Mapping[str, str]) -> list[str]:
    machine, models = table["machine"], table["models"]
    return [
        f"## {machine['processor']}",
        "",
        f"Measured on {machine['system']} with {_threads(machine['threads'])}, "
        f"ONNX Runtime {machine['onnxruntime']} and PyTorch {machine['torch']}, in {table['rounds']} rounds."
        f"{_outdated(other_models(table, sums))}",
        "",
        "| model | ORT, batch 1 | ORT, batch 128 | PyTorch, batch 1 | PyTorch, batch 128 "
        "| ORT p50, ms | ORT p95, ms | ORT images/s | packed, KB | ONNX file, KB | times smaller "
        "| peak memory, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *[_row(name, row) for name, row in models.items()],
        "",
        "What the models gained in ONNX Runtime. Faster or slower is what differs by more than 5 % and by "
        "more than the spread of the rounds.",
        "",
        *[f"- **{name}**: {row['verdict']}." for name, row in models.items() if name != TEACHER],
        "",
        *_packed({name: row["semi_structured"] for name, row in models.items() if "semi_structured" in row}),
    ]


def _packed(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the table of what was packed for the pattern 2:4; nothing where nothing was."""
    if not rows:
        return []
    return [
        "Linear layers with the pattern 2:4 packed for the instructions of the GPU, in PyTorch in float16: "
        "speed-ups are over the same model dense in float16.",
        "",
        "| model | packed layers | batch 1 | batch 128 | images/s |",
        "| --- | ---: | ---: | ---: | ---: |",
        *[
            f"| {name} | {row['layers']} | {_speedup(row['batch_1'])} | {_speedup(row['batch_128'])} "
            f"| {row['batch_128']['images_per_second']:,.0f} |"
            for name, row in rows.items()
        ],
        "",
    ]


def _speedup(cell: Mapping[str, Any]) -> str:
    return f"{cell['speedup']:.2f} ({cell['speedup_low']:.2f} to {cell['speedup_high']:.2f})"


def _outdated(names: list[str]) -> str:
    return f" Since then these models have changed, come or gone: {', '.join(names)}." if names else ""


def _row(name: str, entry: Mapping[str, Any]) -> str:
    speedups = [_speedup(cell) for cell in (entry[runtime][batch] for runtime, batch in COLUMNS)]
    one, many = entry["onnxruntime"]["batch_1"], entry["onnxruntime"]["batch_128"]
    memory = entry["peak_memory_bytes"]
    cells = [
        name,
        *speedups,
        f"{one['p50_seconds'] * 1e3:.3f}",
        f"{one['p95_seconds'] * 1e3:.3f}",
        f"{many['images_per_second']:,.0f}",
        f"{entry['size_bytes'] / 1e3:,.1f}",
        f"{entry['onnx_bytes'] / 1e3:,.1f}",
        f"{entry['size_ratio']:.1f}",
        "not told" if memory is None else f"{memory / 1e6:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"
