"""Stage `benchmark`: python -m tasks.benchmark"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from decant import examples
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.files import size_bytes
from decant.errors import DecantError
from decant.export.deploy import Deployed, check_same, deploy
from decant.export.runtime import open_session
from decant.outputs import replacing, write_json, write_text
from tasks.benchmark.measure import REPEATS, as_json, describe_machine, measure
from tasks.benchmark.memory import peak_bytes
from tasks.benchmark.params import BenchmarkParams
from tasks.benchmark.verdicts import readme, verdict
from tasks.pipeline import splits
from tasks.pipeline.models import MODELS, load_model
from tasks.pipeline.params import read_section
from tasks.pipeline.stage import run

ONNX, LATENCY, TEACHER = Path("onnx"), Path("benchmark"), "teacher"
FLOATS = 1000
"""Test images that a model in float32 is checked on; all where anything is rounded or packed."""


def main() -> None:
    """Read every model; write each as ONNX, checked against PyTorch; write how long both runtimes take.

    A model that cannot be deployed keeps none of the others from it; all such are named at the end.
    """
    params = read_section("benchmark", BenchmarkParams)
    torch.set_num_threads(params.threads)
    test = splits.read(splits.TEST)
    models = {name: load_model(name) for name in (TEACHER, *sorted(read_section("models", dict[str, Any])))}
    deployed: dict[str, Deployed] = {}
    sessions: dict[str, Any] = {}
    failed: list[str] = []
    with replacing(ONNX) as folder:
        folder.mkdir()
        for name, model in tqdm(models.items(), desc="export"):
            try:
                made = deploy(model)
                session = open_session(made.content, params.threads)
                check_same(name, model, session, test.images if made.rounds else test.first(FLOATS).images)
            except DecantError as error:
                failed.append(f"{name}: {error}")
                continue
            deployed[name], sessions[name] = made, session
            (folder / f"{name}.onnx").write_bytes(made.content)
    if TEACHER in deployed:
        _measure({name: models[name] for name in deployed}, deployed, sessions, test.first(256), params)
    if failed:
        reasons = "\n  ".join(failed)
        raise DecantError(f"{len(failed)} of {len(models)} models are not in {ONNX}:\n  {reasons}")


def _measure(
    models: dict[str, Checkpoint],
    deployed: dict[str, Deployed],
    sessions: dict[str, Any],
    examples: examples.Examples,
    params: BenchmarkParams,
) -> None:
    """Write latency.json and README.md of all these models."""
    memory = {name: peak_bytes(ONNX / f"{name}.onnx", max(REPEATS), params.threads) for name in models}
    modules = {name: model.module for name, model in models.items()}
    results, rounds = measure(
        modules, sessions, examples.images, reference=TEACHER, rounds=params.rounds, seconds=params.seconds
    )
    sizes = {name: size_bytes(MODELS / name) for name in models}
    entries = {
        name: {
            "size_bytes": sizes[name],
            "size_ratio": float(f"{sizes[TEACHER] / sizes[name]:.4g}"),
            "onnx_bytes": (ONNX / f"{name}.onnx").stat().st_size,
            "peak_memory_bytes": memory[name],
            **as_json(results, name),
        }
        for name in models
    }
    page = {"machine": describe_machine(params.threads), "settings": {"rounds": rounds}, "models": entries}
    verdicts = {
        name: verdict(entries[name], model, deployed[name].forms)
        for name, model in models.items()
        if name != TEACHER
    }
    write_json(LATENCY / "latency.json", page)
    write_text(LATENCY / "README.md", readme(page, verdicts))


if __name__ == "__main__":
    run(main)
