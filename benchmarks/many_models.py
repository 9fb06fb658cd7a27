"""What hundreds of models cost the flow: seconds of CPU to plan, and to write one stage's entry of dvc.lock.

    python -m benchmarks.many_models 100 300 1000 [--dvc]

In a workspace with a stage `compress` and a stage `evaluate` for each model, where all is up to date. With
--dvc, `dvc status` is measured too, which takes minutes from three hundred models on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from tests.clones import isolated
from tests.imports import ROOT
from tests.toys import workspace

BLOCK = {"op": "clip", "from": "teacher", "cut": {"kind": "percentile"}}


def main() -> None:
    """Measure each size, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("counts", type=int, nargs="+", help="numbers of models")
    parser.add_argument("--dvc", action="store_true", help="measure `dvc status` too")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.inside:
        print(json.dumps(measured()))
        return
    print("| models | stages | dvc.lock, kB | plan, CPU s | one entry, CPU s | `dvc status`, CPU s |")
    print("|---:|---:|---:|---:|---:|---:|")
    for count in chosen.counts:
        with tempfile.TemporaryDirectory(prefix="decant-many-") as temporary:
            print(row(count, Path(temporary) / "w", chosen.dvc), flush=True)


def row(count: int, folder: Path, dvc: bool) -> str:
    """Return the line of the table for a number of models."""
    make(folder, count)
    inside = [sys.executable, "-m", "benchmarks.many_models", "0", "--inside"]
    environment = isolated() | {"PYTHONPATH": str(ROOT)}
    subprocess.run(inside, cwd=folder, env=environment | {"FILL": "1"}, check=True, capture_output=True)
    done = subprocess.run(inside, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    size = (folder / "dvc.lock").stat().st_size / 1e3
    status = f"{cpu_of([sys.executable, '-m', 'dvc', 'status', '-q'], folder):.1f}" if dvc else ""
    cells = [count, found["stages"], f"{size:.0f}", f"{found['plan']:.1f}", f"{found['entry']:.3f}", status]
    return f"| {' | '.join(map(str, cells))} |"


def make(folder: Path, count: int) -> None:
    """Make the workspace; its stages have not run."""
    shared = {"deps": ["data"], "params": ["models.${key}"]}
    compress = {"cmd": "make ${key}", "outs": ["models/${key}"], **shared}
    evaluate = {"cmd": "measure ${key}", "deps": ["data", "models/${key}"], "outs": ["metrics/${key}.json"]}
    stages: dict[str, Any] = {
        "compress": {"foreach": "${models}", "do": compress},
        "evaluate": {"foreach": "${models}", "do": evaluate},
    }
    workspace(folder, stages)
    models = {f"clip-{index}": BLOCK | {"share": index} for index in range(count)}
    (folder / "params.yaml").write_text(yaml.safe_dump({"models": models}), encoding="utf-8")
    (folder / "data").write_text("data", encoding="utf-8")


def measured() -> dict[str, float]:
    """Return what planning in the current folder takes; with FILL set, make all outputs first."""
    from flows import entries
    from flows.worker import Workspace

    entries.remember_params()
    began, place = time.process_time(), Workspace()
    if os.environ.get("FILL"):
        return fill(place)
    described = place.plan([])
    plan = time.process_time() - began
    assert not any(entry["stale"] for entry in described), described[0]
    repo, stage = place._open(), place._stage("compress@clip-7")
    with repo.lock:
        stage.outs[0].hash_info.value = "0" * 32 + ".dir"
        began = time.process_time()
        entries.record(stage)
    return {"stages": len(described), "plan": plan, "entry": time.process_time() - began}


def fill(place: Any) -> dict[str, float]:
    """Write what the stages of a workspace would write, and dvc.lock."""
    from dvc.stage.serialize import to_lockfile
    from dvc.utils.serialize import dumps_yaml

    from flows.entries import unshared
    from tasks.pipeline.lockfile import HEAD

    repo = place._open()
    texts = [HEAD]
    with repo.lock:
        for stage in sorted(repo.index.stages, key=lambda stage: str(stage.addressing)):
            for out in map(Path, (out.fs_path for out in stage.outs)):
                file = out / "model.json" if "models" in out.parts else out
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(str(out), encoding="utf-8")
            stage.save(run_cache=False)
            stage.commit()
            texts.append(dumps_yaml({"stages": unshared(to_lockfile(stage))}).partition("\n")[2])
        Path("dvc.lock").write_text("".join(texts), encoding="utf-8")
    return {}


def cpu_of(words: list[str], folder: Path) -> float:
    """Return the seconds of CPU that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, cwd=folder, env=isolated(), check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
