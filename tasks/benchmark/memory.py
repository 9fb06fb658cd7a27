"""Peak memory of one ONNX model, in a process of its own.

    python -m tasks.benchmark.memory <file> <batch> <threads>

Several models in one process share an arena and a heap, so there no number would be one model's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from decant.errors import DecantError

LENGTH = 32
"""How long rows are where the model takes any length."""

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(file: Path, batch: int, threads: int) -> int | None:
    """Return by how many bytes a process grows that opens the model and runs a batch.

    None where the system does not report a process's peak since a chosen moment, as Linux does.

    Raises:
        DecantError: ONNX Runtime could not run the model.
    """
    if not os.access(CLEAR, os.W_OK):
        return None
    command = [sys.executable, "-m", "tasks.benchmark.memory", str(file), str(batch), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise DecantError(f"The memory of {file} could not be measured: {last}")
    return int(done.stdout) if done.stdout else None


def _status(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def _shape(shape: Sequence[int | str | None], batch: int) -> tuple[int, ...]:
    """Return the shape of a batch; of a length that is free, `LENGTH`."""
    return (batch, *(size if isinstance(size, int) else LENGTH for size in shape[1:]))


def _type(name: str) -> str:
    """Return NumPy's name of a type of ONNX Runtime, such as `tensor(float)`."""
    bare = name.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(bare, bare)


def _main(file: str, batch: str, threads: str) -> None:
    """Print the growth in bytes; torch is not imported, it would be most of the process."""
    import numpy as np
    import onnxruntime

    try:
        CLEAR.write_text("5")
    except OSError:  # not permitted here: nothing is printed, which says not known
        return
    before = _status("VmRSS")
    # Without the option for exact sums, which takes torch to know the processor: zeros have the same sums
    # either way, and weights as many bytes.
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: the last line of what is printed is the reason of a failure
    options.intra_op_num_threads = int(threads)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    session.run(
        None,
        {
            each.name: np.zeros(_shape(each.shape, int(batch)), _type(each.type))
            for each in session.get_inputs()
        },
    )
    sys.stdout.write(f"{_status('VmHWM') - before}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
