"""Beside ONNX Runtime's own quantization, on the same sentences and in one run: python compare.py

Reads onnx/*.onnx and data/arrays/test.npz, writes results.md. One thread; each model is timed in turn, again
and again, so that what else the machine does meets all of them.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from onnxruntime.quantization import QuantType, quantize_dynamic

from decant.export.runtime import open_session

TEACHER = "teacher"
ROUNDS = 15
BATCHES = (1, 32)
LENGTH = 32
"""Tokens of each sentence while times are taken; longer ones are cut."""


def main() -> None:
    """Measure every model and the two that ONNX Runtime makes of the teacher; write the table."""
    with np.load("data/arrays/test.npz") as arrays:
        sentences = {name: arrays[name] for name in ("input_ids", "attention_mask")}
    with TemporaryDirectory() as folder:
        files = {TEACHER: Path("onnx", f"{TEACHER}.onnx")}
        for name, per_channel in (("ONNX Runtime, int8", False), ("ONNX Runtime, int8 per channel", True)):
            files[name] = Path(folder, f"{per_channel}.onnx")
            quantize_dynamic(
                files[TEACHER], files[name], weight_type=QuantType.QInt8, per_channel=per_channel
            )
        files |= {path.stem: path for path in sorted(Path("onnx").glob("*.onnx")) if path.stem != TEACHER}
        sizes = {name: path.stat().st_size for name, path in files.items()}
        sessions = {name: session(path) for name, path in files.items()}
    cosines = {name: similar(run, sessions[TEACHER], sentences) for name, run in sessions.items()}
    times = {count: timed(sessions, sentences, count) for count in BATCHES}
    lines = [
        "| model | MB | ms, batch 1 | times faster | ms, batch 32 | times faster | cosine: mean | 1 %"
        " | least |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, size in sizes.items():
        cells = [f"{size / 1e6:.2f}"]
        for count in BATCHES:
            cells += [f"{1000 * times[count][name]:.1f}", f"{times[count][TEACHER] / times[count][name]:.2f}"]
        found = cosines[name]
        cells += [f"{value:.4f}" for value in (found.mean(), np.percentile(found, 1), found.min())]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    table = "\n".join(lines)
    Path("results.md").write_text(table + "\n", encoding="utf-8")
    print(table)


def session(path: Path) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """Return what answers token ids and masks [N, L] with vectors [N, 384]."""
    opened = open_session(path.read_bytes(), threads=1)
    return lambda inputs: opened.run(None, inputs)[0]


def similar(run: Callable, teacher: Callable, sentences: dict[str, np.ndarray]) -> np.ndarray:
    """Return the cosine of each sentence's vector to the teacher's [N], one sentence at a time, unpadded."""
    found = []
    for row, length in enumerate(sentences["attention_mask"].sum(1)):
        one = {name: values[row : row + 1, :length] for name, values in sentences.items()}
        given, wanted = run(one)[0].astype(np.float64), teacher(one)[0].astype(np.float64)
        found.append(given @ wanted / np.linalg.norm(given) / np.linalg.norm(wanted))
    return np.array(found)


def timed(sessions: dict[str, Callable], sentences: dict[str, np.ndarray], count: int) -> dict[str, float]:
    """Return the median time of a call in seconds, by model."""
    batch = {name: np.ascontiguousarray(values[:count, :LENGTH]) for name, values in sentences.items()}
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(ROUNDS + 2):
        for name, run in sessions.items():
            start = time.perf_counter()
            run(batch)
            if turn > 1:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


if __name__ == "__main__":
    main()
