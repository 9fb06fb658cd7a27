"""Stage `benchmark`: python -m tasks.benchmark"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from decant.checkpoints.checkpoint import Checkpoint
from decant.errors import DecantError
from decant.outputs import replacing
from tasks.benchmark.exports import Failure, export
from tasks.benchmark.hardware import hardware_of
from tasks.benchmark.params import BenchmarkParams
from tasks.benchmark.tables import TEACHER
from tasks.benchmark.times import write_times
from tasks.pipeline import splits
from tasks.pipeline.models import load_models
from tasks.pipeline.params import read_section
from tasks.pipeline.stage import run

ONNX = Path("onnx")


def main() -> None:
    """Read every model; write each as ONNX, checked against PyTorch; time both runtimes where nobody has yet.

    A model that cannot be loaded, deployed or measured keeps none of the others from it, whatever went wrong;
    all such are named at the end.
    """
    params = read_section("benchmark", BenchmarkParams)
    hardware_of(params)  # what is not there is told before minutes of exports
    torch.set_num_threads(params.threads)
    test = splits.read(splits.TEST)
    names = (TEACHER, *sorted(read_section("models", dict[str, Any])))
    exports, failed = export(names, _load, test, params.threads)
    with replacing(ONNX) as folder:
        folder.mkdir()
        for name, made in exports.items():
            (folder / f"{name}.onnx").write_bytes(made.content)
    images = test.at_most(256).images
    unmeasured = write_times(exports, ONNX, images, params) if TEACHER in exports else {}
    told = [
        _told(failed, len(names), f"are not in {ONNX}"),
        _told(unmeasured, len(names), "are not measured"),
    ]
    if any(told):
        raise DecantError("\n".join(filter(None, told)))


def _load(name: str) -> Checkpoint:
    return load_models(name, with_parents=True)[name]


def _told(failed: Mapping[str, Failure], count: int, what: str) -> str:
    """Return which models failed and why; empty where none did."""
    lines = [
        f"{len(failed)} of {count} models {what}:",
        *(f"{n}: {each.reason}" for n, each in failed.items()),
    ]
    return "\n  ".join(lines) if failed else ""


if __name__ == "__main__":
    run(main)
