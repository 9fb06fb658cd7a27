"""Stage `benchmark`: python -m tasks.benchmark"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from decant.errors import DecantError
from decant.outputs import replacing
from tasks.benchmark.exports import export
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

    A model that cannot be deployed keeps none of the others from it; all such are named at the end.
    """
    params = read_section("benchmark", BenchmarkParams)
    torch.set_num_threads(params.threads)
    test = splits.read(splits.TEST)
    models = load_models(TEACHER, *sorted(read_section("models", dict[str, Any])))
    exports, failed = export(models, test, params.threads)
    with replacing(ONNX) as folder:
        folder.mkdir()
        for name, made in exports.items():
            (folder / f"{name}.onnx").write_bytes(made.content)
    if TEACHER in exports:
        write_times(exports, ONNX, test.at_most(256).images, params)
    if failed:
        reasons = "\n  ".join(failed)
        raise DecantError(f"{len(failed)} of {len(models)} models are not in {ONNX}:\n  {reasons}")


if __name__ == "__main__":
    run(main)
