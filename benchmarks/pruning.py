"""Every way of pruning side by side: what it costs in accuracy, in time, and what it gains.

    python -m benchmarks.pruning [--write] [--only sparsity …] [--seeds 1 2 3]

Parts: `sparsity` (every criterion at 2 to 32 times fewer weights, one-shot and fine-tuned, on LeNet-300-100
with MNIST and on the default teacher), `channels` (fewer MACs against Torch-Pruning's own pruner, timed in
ONNX Runtime), `pattern` (2:4) and `cost` (seconds and memory). Stages run as they do in the pipeline, in a throw-away
folder, with one thread each; the default teacher is the one in models/, so run `dvc repro` first. Results are
kept in benchmarks/pruning.json, so that parts can be run one at a time; all of them take hours.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from benchmarks import pruning_page
from tasks import data, metrics
from tasks.checkpoints import MODELS, Checkpoint, load_model, size_bytes
from tasks.errors import DecantError
from tasks.models import predict
from tasks.params import read_yaml
from tasks.report.pictures import save
from tasks.stages import write_json, write_text
from tests.imports import ROOT

Keep = Callable[[dict[str, Any]], None]
"""Takes the results of a part, as far as they are known."""

RESULTS = ROOT / "benchmarks" / "pruning.json"

RATIOS = (2, 4, 8, 16, 32)
CRITERIA: dict[str, dict[str, Any]] = {
    "random": {"kind": "random"},
    "magnitude": {"kind": "magnitude"},
    "taylor": {"kind": "taylor"},
    "fisher": {"kind": "fisher"},
    "wanda": {"kind": "wanda"},
    "snip": {"kind": "snip"},
    "obs": {"kind": "obs"},
}
LENET = {
    "data": {"source": "mnist", "validation": 5000},
    "teacher": {
        "architecture": {"kind": "lenet-300-100"},
        "training": {
            "epochs": 20,
            "optimizer": {"kind": "sgd", "learning_rate": 0.1},
            "average": 0.99,
        },
    },
}
TUNING: dict[str, dict[str, Any]] = {
    "lenet-300-100": {
        "epochs": 2,
        "optimizer": {"kind": "sgd", "learning_rate": 0.05},
        "schedule": {"kind": "cosine"},
    },
    "default": {
        "epochs": 1,
        "optimizer": {"kind": "sgd", "learning_rate": 0.02},
        "schedule": {"kind": "cosine"},
        "augmentation": {"flip": True, "shift": 1},
    },
}
"""The fine-tuning, the same for all criteria."""


class Workshop:
    """A throw-away folder with images and a teacher, in which stages run as in the pipeline."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        folder.mkdir()
        self.sections = dict(LENET) if name != "default" else {}
        self.sections["threads"] = dict.fromkeys(read_yaml(ROOT / "params.yaml")["threads"], 1)
        with self.inside({}, seed=1):
            if name == "default":
                (folder / "data").symlink_to(ROOT / "data")
                shutil.copytree(ROOT / "models" / "teacher", folder / "models" / "teacher")
            else:
                importlib.import_module("tasks.prepare.__main__").main()
                importlib.import_module("tasks.teacher.__main__").main()

    @contextlib.contextmanager
    def inside(self, models: dict[str, Any], seed: int) -> Iterator[None]:
        """Work in the folder, quietly, with these blocks in params.yaml."""
        before = Path.cwd()
        os.chdir(self.folder)
        content = self.sections | {"seed": seed, "models": models}
        Path("params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                yield
        finally:
            os.chdir(before)

    def make(self, name: str, block: dict[str, Any], seed: int) -> Checkpoint:
        """Run one operation and return the model."""
        with self.inside({name: block}, seed):
            importlib.import_module(f"tasks.{block['op']}.__main__").main(name)
            return load_model(name)

    def measured(self, name: str) -> dict[str, float]:
        """Return accuracy on the test split in percent, and what the model has left."""
        with self.inside({}, 1):
            model, test = load_model(name), data.read(data.TEST)
            return {
                "accuracy": 100 * metrics.accuracy(predict(model.module, test.images), test.labels),
                "nonzeros": metrics.nonzeros(model.module),
                "macs": metrics.macs(model.module, model.shape),
                "bytes": size_bytes(MODELS / name),
            }


def sparsity(workshops: dict[str, Workshop], seeds: list[int], keep: Keep) -> None:
    """Keep, by network, criterion, ratio and seed, the accuracy one-shot and after fine-tuning."""
    baselines = {name: shop.measured("teacher") for name, shop in workshops.items()}
    rows: list[dict[str, Any]] = []
    for network, shop in workshops.items():
        cases = [(c, r, s) for c in [*CRITERIA, "movement"] for r in RATIOS for s in seeds]
        for criterion, ratio, seed in tqdm(cases, desc=network):
            row = {"network": network, "criterion": criterion, "ratio": ratio, "seed": seed}
            rows.append(row | compressed(shop, criterion, ratio, seed, seeds[0]))
            keep({"baselines": baselines, "tuning": TUNING, "rows": rows})


def compressed(shop: Workshop, criterion: str, ratio: int, seed: int, first: int) -> dict[str, Any]:
    """Return the accuracies of one case, or that it was refused and why."""
    block: dict[str, Any] = {
        "op": "prune",
        "from": "teacher",
        "criterion": {"kind": criterion},
        "allocation": {"kind": "erk"},
        "budget": {"sparsity": 1 - 1 / ratio},
    }
    training = TUNING[shop.name]
    try:
        if criterion == "movement":  # has no scores before it trains: the same epochs, pruned on the way
            schedule = {"kind": "gradual", "training": training}
            shop.make("tuned", block | {"schedule": schedule}, seed)
            return {"one-shot": None, "tuned": shop.measured("tuned")}
        if criterion == "random" or seed == first:  # the others give the same model for every seed
            shop.make("pruned", block, seed)
        one_shot = shop.measured("pruned")
        shop.make("tuned", {"op": "finetune", "from": "pruned", "training": training}, seed)
    except DecantError as error:
        return {"one-shot": None, "tuned": None, "refused": str(error)}
    return {"one-shot": one_shot, "tuned": shop.measured("tuned")}


def main() -> None:
    """Run the parts that are asked for, keep their results, and write the page anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write benchmarks/pruning.{md,svg,json} too")
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if arguments.write and RESULTS.exists() else {}
    with tempfile.TemporaryDirectory(prefix="decant-pruning-") as temporary:
        for part in arguments.only:
            names = ("lenet-300-100", "default") if part == "sparsity" else ("default",)
            folder = Path(temporary) / part
            folder.mkdir()
            shops = {name: Workshop(name, folder / name) for name in names}

            def keep(found: dict[str, Any], part: str = part) -> None:
                results[part] = found
                if arguments.write:  # after each case: all of them take an hour
                    write_json(RESULTS, results)

            PARTS[part](shops, arguments.seeds, keep)
    if arguments.write:
        write(results)
    print(pruning_page.page(results))


def write(results: dict[str, Any]) -> None:
    """Write the page, and the picture where there is something to draw."""
    write_text(RESULTS.with_suffix(".md"), pruning_page.page(results))
    if "sparsity" in results:
        save(pruning_page.picture(results["sparsity"]), RESULTS.with_suffix(".svg"))


PARTS = {"sparsity": sparsity}


if __name__ == "__main__":
    main()
