"""Every way of pruning side by side: what it costs in accuracy, in time, and what it gains.

    python -m benchmarks.pruning [--write] [--only default …] [--seeds 1 2 3]

Parts: `lenet-300-100` and `default` (every criterion at 2 to 32 times fewer weights, one-shot and fine-
tuned, on MNIST and on the default teacher), `one-shot` (95 % zeros without training), `pattern` (2:4),
`channels` (fewer MACs against Torch-Pruning's own pruner, timed in ONNX Runtime) and `cost` (seconds and
memory). Stages run as they do in the pipeline, in a throw-away folder, with one thread each, so that two
parts can run beside each other, but for the last two, which measure time. The default teacher is the one in
models/: run `dvc repro` first. Results are kept in benchmarks/pruning.json, and --write makes the page of
all that is there.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks import pruning_page
from benchmarks.workshop import LENET, Workshop
from decant import examples as data_examples
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.files import save as save_model
from decant.costs import counts as metrics_counts
from decant.errors import DecantError
from decant.export.deploy import to_onnx
from decant.export.runtime import open_session
from decant.export.timing import compare, interleave, no_garbage_collection
from decant.export.trace import INPUT
from decant.networks.execution import predict
from decant.outputs import replacing, write_json, write_text
from decant.prune.budgets import bracket
from tasks.benchmark.measure import describe_machine
from tasks.evaluate import accuracy as metrics_accuracy
from tasks.pipeline import splits as data_splits
from tasks.pipeline.lineages import MODELS
from tasks.pipeline.models import load_model
from tasks.pipeline.stage import report_errors
from tasks.report.pictures import save
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

FEW = {"source": "fashion-mnist", "validation": 32500}
"""Half of the training images, so that 120 trainings of the default network end."""

SOFT = {"kind": "temperature", "temperature": 2.0, "hard": 0.1}
DISTILLING = TUNING["default"] | {"average": 0.99}
"""With the soft targets of the teacher: what the default recipes do after pruning."""


def workshop(name: str, folder: Path, images: dict[str, Any] | None = None) -> Workshop:
    """Return a folder with the network's teacher: the default one's from models/, the other one trained."""
    sections = ({} if name == "default" else LENET) | ({"data": images} if images else {})
    return Workshop(name, folder, sections, ROOT / MODELS / "teacher" if name == "default" else None)


def renormalized(shop: Workshop, name: str) -> float:
    """Return the accuracy in percent with batch norms whose statistics are of 2,000 training images."""
    with shop.inside({}, 1):
        module, test = load_model(name).module, data_splits.read(data_splits.TEST)
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()
                layer.momentum = None
        predict(module.train(), data_splits.read(data_splits.TRAIN).first(2000).images)
        return 100 * metrics_accuracy.accuracy(predict(module.eval(), test.images), test.labels)


def sparsity(name: str, folder: Path, seeds: list[int], keep: Keep) -> None:
    """Keep, by criterion, ratio and seed, the accuracy one-shot and after fine-tuning."""
    shop = workshop(name, folder, FEW if name == "default" else None)
    baseline, rows = shop.measured("teacher"), list[dict[str, Any]]()
    cases = [(c, r, s) for c in [*CRITERIA, "movement"] for r in RATIOS for s in seeds]
    for criterion, ratio, seed in tqdm(cases, desc=name):
        row = {"criterion": criterion, "ratio": ratio, "seed": seed}
        rows.append(row | compressed(shop, criterion, ratio, seed, seeds[0]))
        keep({"baseline": baseline, "tuning": TUNING[name], "rows": rows})


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


def one_shot(folder: Path, seeds: list[int], keep: Keep) -> None:
    """Keep the accuracy at 95 % of zeros without any training, by allocation."""
    kinds, rows = ("global", "layer", "erk", "lamp"), []
    for network in TUNING:
        shop = workshop(network, folder / network)
        whole = shop.measured("teacher")["accuracy"]
        for criterion in ("magnitude", "obs"):
            cells, again = [], []
            for allocation in tqdm(kinds, desc=f"{network}, {criterion}"):
                block = {"op": "prune", "from": "teacher", "criterion": {"kind": criterion}}
                block |= {"allocation": {"kind": allocation}, "budget": {"sparsity": 0.95}}
                try:
                    shop.make("pruned", block, seeds[0])
                    cells.append(f"{shop.measured('pruned')['accuracy'] - whole:+.2f}")
                    again.append(f"{renormalized(shop, 'pruned') - whole:+.2f}")
                except DecantError:
                    cells.append("refused")
                    again.append("refused")
            rows.append([f"{network}, {criterion}", *cells])
            if network == "default":
                rows.append([f"{network}, {criterion}, batch norms measured again", *again])
    words = (
        "Change of the accuracy on the test split in points, without any training; no chance is involved. "
        "Much of what magnitude loses behind batch norms is their statistics, so it is shown with these "
        "taken anew on the 2,000 images that OBS saw, too."
    )
    keep({"words": words, "columns": ["at 95 % zeros, by allocation", *kinds], "rows": rows})


TARGETS = (2.1, 4.0)
"""Times fewer MACs."""

OURS: dict[str, dict[str, Any]] = {
    "reconstruction, 16": {"criterion": {"kind": "reconstruction"}, "structure": {"round_to": 16}},
    "taylor, 16": {
        "criterion": {"kind": "taylor"},
        "allocation": {"kind": "layer"},
        "structure": {"round_to": 16},
    },
    "magnitude, 16": {
        "criterion": {"kind": "magnitude", "norm": 2},
        "allocation": {"kind": "layer"},
        "structure": {"round_to": 16},
    },
}
PEERS = {
    "Torch-Pruning magnitude": ("magnitude", None),
    "Torch-Pruning magnitude, 16": ("magnitude", 16),
    "Torch-Pruning taylor": ("taylor", None),
    "Torch-Pruning taylor, 16": ("taylor", 16),
}


def channels(folder: Path, seeds: list[int], keep: Keep) -> None:
    """Keep accuracy and speed of networks with fewer channels: ours, and those of Torch-Pruning's pruner."""
    shop = workshop("default", folder)
    whole = shop.measured("teacher")
    cases: dict[str, Any] = {}
    for target, name in tqdm([(t, n) for t in TARGETS for n in [*OURS, *PEERS]], desc="channels"):
        key = f"{name} at {target}x"
        if name in OURS:
            block = {"op": "prune", "from": "teacher", "budget": {"macs": 1 / target}} | OURS[name]
            block["structure"] = {"kind": "channels"} | OURS[name]["structure"]
            model = shop.make(slug(key), block, seeds[0])
        else:
            model = peer(shop, slug(key), *PEERS[name], 1 / target)
        cases[key] = case = shop.measured(slug(key)) | {"tuned": [], "model": model}
        for seed in seeds:
            tuning = {"op": "finetune", "from": slug(key), "loss": SOFT, "training": DISTILLING}
            shop.make("tuned", tuning, seed)
            case["tuned"].append(shop.measured("tuned")["accuracy"])
    with shop.inside({}, 1):
        models = {"teacher": load_model("teacher")} | {k: case["model"] for k, case in cases.items()}
    speed = speedups(models)
    rows = [
        [
            key,
            f"{whole['macs'] / case['macs']:.2f}",
            f"{case['accuracy']:.2f}",
            pruning_page.spread(case["tuned"]),
            *speed[key],
        ]
        for key, case in cases.items()
    ]
    words = (
        f"Accuracy on the test split, the teacher has {whole['accuracy']:.2f} %; fine-tuned over seeds "
        f"{', '.join(map(str, seeds))} by the same recipe, the teacher's soft targets "
        f"`{pruning_page.inline(SOFT)}` and `{pruning_page.inline(DISTILLING)}`. "
        f"Torch-Pruning {version('torch-pruning')} by its own pruner with uniform ratios, its channel counts "
        "as they come and rounded to 16; ours rounded as said. Speed-ups over the teacher in ONNX Runtime, "
        "median over rounds with the 10th and 90th percentile, interleaved in one run on "
        f"{describe_machine(1)['processor']}."
    )
    columns = ["channels", "times fewer MACs", "one-shot %", "fine-tuned %"]
    columns += [f"{t} thread{'s' * (t > 1)}, batch {b}" for t in (1, 2) for b in (1, 128)]
    keep({"words": words, "columns": columns, "rows": rows})


def peer(shop: Workshop, name: str, kind: str, round_to: int | None, share: float) -> Checkpoint:
    """Write the teacher as Torch-Pruning's pruner leaves it, the largest within a share of the MACs."""
    import torch_pruning

    with shop.inside({}, 1):
        teacher, train = load_model("teacher"), data_splits.read(data_splits.TRAIN).first(2000)
        limit = share * metrics_counts.macs(teacher.module)

        def pruned(ratio: float) -> Checkpoint:
            module = copy.deepcopy(teacher.module).requires_grad_(True)
            importance = (
                torch_pruning.importance.TaylorImportance()
                if kind == "taylor"
                else torch_pruning.importance.MagnitudeImportance(p=2)
            )
            pruner = torch_pruning.pruner.BasePruner(
                module,
                torch.zeros(1, *teacher.shape),
                importance=importance,
                pruning_ratio=ratio,
                ignored_layers=[module.get_submodule("head")],
                round_to=round_to,
            )
            if kind == "taylor":
                F.cross_entropy(module(data_examples.pixels(train.images)), train.labels).backward()
            pruner.step()
            for parameter in module.parameters():
                parameter.grad = None
            return replace(teacher, module=module.eval())

        def spends(ratio: float) -> int:
            model = pruned(ratio)
            return metrics_counts.macs(model.module)

        low, high = bracket(lambda step: spends(step / 200) <= limit, 0, 198)
        assert low < high
        model = pruned(high / 200)
        with replacing(MODELS / name) as folder:
            folder.mkdir()
            save_model(model, folder)
        shop.blocks[name] = {"from": "teacher"}
    with shop.inside({}, 1):
        return load_model(name)


def speedups(models: dict[str, Checkpoint], rounds: int = 40) -> dict[str, list[str]]:
    """Return each model's speed-ups over the teacher in ONNX Runtime: by threads, then by batch size."""
    cells: dict[str, list[str]] = {name: [] for name in models}
    files = {name: to_onnx(model).SerializeToString() for name, model in models.items()}
    order = random.Random(0)
    for threads in (1, 2):
        sessions = {name: open_session(content, threads) for name, content in files.items()}
        for batch in (1, 128):
            feed = {INPUT: np.zeros((batch, *models["teacher"].shape), np.float32)}
            calls = {name: functools.partial(s.run, None, feed) for name, s in sessions.items()}
            measured: dict[str, list[list[float]]] = {name: [] for name in models}
            with no_garbage_collection():
                for _ in range(rounds):
                    for name, spent in interleave(calls, 20 if batch == 1 else 2, order).items():
                        measured[name].append(spent)
            for name, latency in compare(measured, "teacher").items():
                low, high = latency.speedup_low, latency.speedup_high
                cells[name].append(f"{latency.speedup:.2f} ({low:.2f} to {high:.2f})")
    return cells


def pattern(folder: Path, seeds: list[int], keep: Keep) -> None:
    """Keep what two of four cost after one epoch."""
    shop = workshop("default", folder)
    whole = shop.measured("teacher")["accuracy"]
    pruned = {"op": "prune", "from": "teacher", "structure": {"kind": "n-of-m", "n": 2, "m": 4}}
    gradual = {"kind": "gradual", "training": DISTILLING, "loss": SOFT}
    rows = []
    for name, criterion, schedule in (
        ("magnitude, then an epoch", "magnitude", None),
        ("obs, then an epoch", "obs", None),
        ("magnitude, gradual in an epoch", "magnitude", gradual),
    ):
        block, found, before = pruned | {"criterion": {"kind": criterion}}, [], "-"
        for seed in tqdm(seeds, desc=name):
            if schedule:
                shop.make("tuned", block | {"schedule": schedule}, seed)
            else:
                shop.make("pruned", block, seed)
                before = f"{shop.measured('pruned')['accuracy']:.2f}"
                tuning = {"op": "finetune", "from": "pruned", "training": DISTILLING, "loss": SOFT}
                shop.make("tuned", tuning, seed)
            found.append(shop.measured("tuned")["accuracy"])
        rows.append([name, before, pruning_page.spread(found), f"{statistics.mean(found) - whole:+.2f}"])
    words = (
        f"On the default teacher, {whole:.2f} % on the test split, over seeds {', '.join(map(str, seeds))}. "
        f"The epoch is `{pruning_page.inline(DISTILLING)}` with soft targets, `{pruning_page.inline(SOFT)}`."
    )
    columns = ["2:4 in all layers but the first", "one-shot %", "after the epoch %", "change"]
    keep({"words": words, "columns": columns, "rows": rows})


def cost(folder: Path, seeds: list[int], keep: Keep) -> None:
    """Keep seconds and memory of each criterion on the default teacher, and of OBS on large layers."""
    shop = workshop("default", folder)
    kinds = [kind for kind in [*CRITERIA, "reconstruction", "drift"] if kind != "random"]
    rows = [[kind, *spent("criterion", kind, folder=shop.folder)] for kind in tqdm(kinds, desc="criteria")]
    large = [(1024, 0.5), (1024, 0.9), (2048, 0.9), (4096, 0.9)]
    layers = [
        [f"{size} x {size}, {share:.0%} zeros", *spent("layer", str(size), str(share), folder=shop.folder)]
        for size, share in tqdm(large, desc="layers")
    ]
    words = (
        "Each in a process of its own with two threads: seconds to score the default teacher with the "
        "criterion's default number of images (OBS: to prune it to 80 %), and by how much the peak of the "
        f"process's memory grew. Then OBS on one layer. On {describe_machine(2)['processor']}, "
        f"{os.cpu_count()} cores."
    )
    keep(
        {
            "words": words,
            "columns": ["criterion", "seconds", "memory, MB"],
            "rows": rows,
            "layer columns": ["OBS on a layer", "seconds", "memory, MB"],
            "layer rows": layers,
        }
    )


def spent(*words: str, folder: Path) -> list[str]:
    """Return seconds and megabytes of one case of pruning_cost.py."""
    command = [sys.executable, "-m", "benchmarks.pruning_cost", str(folder), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, growth = done.stdout.split()[-2:]
    return [f"{float(seconds):.1f}", f"{int(growth) / 1e6:,.0f}"]


def slug(words: str) -> str:
    """Return the words as a model's name."""
    return re.sub("[^a-z0-9]+", "-", words.lower()).strip("-")


def main() -> None:
    """Run the parts that are asked for, keep their results, and write the page anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write benchmarks/pruning.{md,svg,json} too")
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="decant-pruning-") as temporary:
        for part in arguments.only:

            def keep(found: dict[str, Any], part: str = part) -> None:
                results[part] = found
                if (
                    arguments.write
                ):  # after each case: all of them take hours. Other parts may run beside this
                    write_json(RESULTS, stored() | results)

            PARTS[part](Path(temporary) / part, arguments.seeds, keep)
    if arguments.write:
        results = stored()
        write(results)
    print(pruning_page.page(results))


def stored() -> dict[str, Any]:
    """Return the results that were kept."""
    kept: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    return kept


def write(results: dict[str, Any]) -> None:
    """Write the page, and the picture where there is something to draw."""
    write_text(RESULTS.with_suffix(".md"), pruning_page.page(results))
    if networks := {name: results[name] for name in TUNING if name in results}:
        save(pruning_page.picture(networks), RESULTS.with_suffix(".svg"))


PARTS: dict[str, Callable[[Path, list[int], Keep], None]] = {
    "lenet-300-100": functools.partial(sparsity, "lenet-300-100"),
    "default": functools.partial(sparsity, "default"),
    "one-shot": one_shot,
    "pattern": pattern,
    "channels": channels,
    "cost": cost,
}


if __name__ == "__main__":
    with report_errors():
        main()
