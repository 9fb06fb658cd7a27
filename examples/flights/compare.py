"""Write results.md and tradeoff.svg, after `dvc repro`: python compare.py, where params.yaml lies."""

import csv
import json
import shutil
import statistics
from pathlib import Path

HEAD = """| model | MAE, minutes | 95 % interval | RMSE | R² | from teacher | KB | ONNX file, KB |
|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Read metrics and table; write a row for each model, and one for the training rows' median."""
    rows = {path.stem: json.loads(path.read_text()) for path in Path("metrics").glob("*.json")}
    lines = [line(name, row) for name, row in sorted(rows.items(), key=lambda pair: -pair[1]["size_bytes"])]
    guess = f"| the median of the training rows | {median_error():.2f} | | | | | | |"
    page = "\n".join(["Written by compare.py; measured on the test days.", "", HEAD, *lines, guess, ""])
    Path("results.md").write_text(page)
    shutil.copyfile("report/tradeoff.svg", "tradeoff.svg")
    print(page)


def line(name: str, row: dict[str, float]) -> str:
    """Return the row of one model."""
    onnx = Path("onnx", f"{name}.onnx").stat().st_size / 1000
    ends = f"{row['mae_low']:.2f} to {row['mae_high']:.2f}"
    numbers = f"{row['mae']:.2f} | {ends} | {row['rmse']:.2f} | {row['r2']:.4f} | {row['from_teacher']:.2f}"
    return f"| {name} | {numbers} | {row['size_bytes'] / 1000:.1f} | {onnx:.1f} |"


def median_error() -> float:
    """Return the mean absolute error of the one number that is right for half of the training rows."""
    delays = {"train": [], "test": [], "validation": []}
    with Path("data/own/flights.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            delays[row["split"]].append(float(row["arr_delay"]))
    middle = statistics.median(delays["train"])
    return statistics.fmean(abs(delay - middle) for delay in delays["test"])


if __name__ == "__main__":
    main()
