"""Stage `benchmark`: python -m tasks.benchmark"""

from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tasks import data
from tasks.benchmark.measure import REPEATS, as_json, describe_machine, measure
from tasks.benchmark.memory import peak_bytes
from tasks.benchmark.params import BenchmarkParams
from tasks.benchmark.words import readme, verdict
from tasks.checkpoints import MODELS, load_model, size_bytes
from tasks.export import check_same, open_session, to_onnx
from tasks.params import read_section
from tasks.stages import replacing, run, write_json, write_text

ONNX, LATENCY, TEACHER = Path("onnx"), Path("benchmark"), "teacher"


def main() -> None:
    """Read every model; write each as ONNX, checked against PyTorch; write how long both runtimes take."""
    params = read_section("benchmark", BenchmarkParams)
    torch.set_num_threads(params.threads)
    images = data.read(data.TEST).first(256).images
    names = [TEACHER, *sorted(read_section("models", dict[str, Any]))]
    models = {name: load_model(name) for name in names}
    sessions = {}
    with replacing(ONNX) as folder:
        folder.mkdir()
        for name, model in tqdm(models.items(), desc="export"):
            content = to_onnx(model).SerializeToString(deterministic=True)
            sessions[name] = open_session(content, params.threads)
            check_same(name, model, sessions[name], images)
            (folder / f"{name}.onnx").write_bytes(content)
    memory = {name: peak_bytes(ONNX / f"{name}.onnx", max(REPEATS), params.threads) for name in names}
    modules = {name: model.module for name, model in models.items()}
    results, rounds = measure(
        modules, sessions, images, reference=TEACHER, rounds=params.rounds, seconds=params.seconds
    )
    sizes = {name: size_bytes(MODELS / name) for name in names}
    entries = {
        name: {
            "size_bytes": sizes[name],
            "size_ratio": float(f"{sizes[TEACHER] / sizes[name]:.4g}"),
            "onnx_bytes": (ONNX / f"{name}.onnx").stat().st_size,
            "peak_memory_bytes": memory[name],
            **as_json(results, name),
        }
        for name in names
    }
    page = {"machine": describe_machine(params.threads), "settings": {"rounds": rounds}, "models": entries}
    verdicts = {name: verdict(entries[name], models[name]) for name in names if name != TEACHER}
    write_json(LATENCY / "latency.json", page)
    write_text(LATENCY / "README.md", readme(page, verdicts))


if __name__ == "__main__":
    run(main)
