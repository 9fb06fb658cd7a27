"""Projects for the page of all models: small networks of drawn weights, and metrics made up."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

import decant
from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.ledger import as_json
from decant.outputs import json_text
from decant.prune import prune
from decant.quantize import quantize
from tasks.pipeline.metrics import OF_CLASSES, MetricSet

SHAPE, NAMES = (1, 12, 12), tuple("0123456789")
NETWORK = {"kind": "resnet", "widths": [8, 16], "blocks": [0, 1]}

RECIPES: dict[str, dict[str, Any]] = {
    "prune-80": {
        "op": "prune",
        "from": "teacher",
        "criterion": {"kind": "magnitude"},
        "budget": {"sparsity": 0.8},
    },
    "prune-80-int8": {
        "op": "quantize",
        "from": "prune-80",
        "scheme": {"kind": "integer", "bits": 8},
        "activations": {"bits": 8},
    },
    "binary": {"op": "quantize", "from": "teacher", "scheme": {"kind": "binary"}},
}

CURVE = (
    "epoch,loss,accuracy,learning_rate,validation_loss,validation_accuracy\n"
    "1,0.9,0.7,0.1,0.8,0.75\n2,0.5,0.8,0.05,0.6,0.79\n"
)


def numbers(
    quality: float, size: float, measured: MetricSet = OF_CLASSES, **others: float
) -> dict[str, float]:
    """Return metrics of a model."""
    values = dict.fromkeys(measured.keys, 0.5) | {"parameters": 5000, "nonzeros": 4000, "macs": 5e6}
    values |= {f"{measured.quality}_low": quality - 0.01, f"{measured.quality}_high": quality + 0.01}
    return values | {measured.quality: quality, "size_bytes": size, "ratio": 20000 / size} | others


def splits() -> decant.Splits:
    """Return pictures of noise and labels that are drawn."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (96, *SHAPE), generator=draw, dtype=torch.uint8)
    labels = torch.randint(0, len(NAMES), (96,), generator=draw)
    return decant.Splits(
        decant.Examples(images[:64], labels[:64], NAMES), decant.Examples(images[64:], labels[64:], NAMES)
    )


def teacher() -> Checkpoint:
    """Return a network with the weights that it begins with."""
    architecture = decant.Resnet(widths=(8, 16), blocks=(0, 1))
    step = {"name": "teacher", "op": "teacher"}
    return Checkpoint(
        architecture, SHAPE, NAMES, decant.build(architecture, SHAPE, len(NAMES), 1).eval(), lineage=(step,)
    )


def put_project(folder: Path, exported: Collection[str] = ()) -> None:
    """Write a project of a teacher and three models, as the stages leave it behind.

    Args:
        folder: An empty folder.
        exported: The models that onnx/ has.
    """
    operations = {"prune": prune, "quantize": quantize}
    models = {"teacher": teacher()}
    keep(models["teacher"], folder / "models" / "teacher", {"curve.csv": CURVE})
    for name, recipe in RECIPES.items():
        words = {key: value for key, value in recipe.items() if key not in ("op", "from")}
        made = operations[recipe["op"]](models[recipe["from"]], words, splits(), teacher=models["teacher"])
        step = {"name": name, "op": recipe["op"]}
        models[name] = Checkpoint(**{**vars(made.model), "lineage": (*models[recipe["from"]].lineage, step)})
        keep(models[name], folder / "models" / name, {"ledger.json": json_text(as_json(made.ledger))})
    put_params(folder, RECIPES)
    put_metrics(folder, {name: numbers(0.9 - 0.01 * i, 9000 / (1 + i)) for i, name in enumerate(models)})
    (folder / "onnx").mkdir()
    for name in exported:
        (folder / "onnx" / f"{name}.onnx").write_bytes(decant.deploy(models[name]).content)


def put_copies(folder: Path, copies: int) -> dict[str, Any]:
    """Add copies of the last model to those in a folder, params and metrics of all; return the blocks."""
    blocks = dict(RECIPES)
    for index in range(copies):
        shutil.copytree(folder / "models" / "binary", folder / "models" / f"copy-{index}")
        blocks[f"copy-{index}"] = copy.deepcopy(RECIPES["binary"])
    put_params(folder, blocks)
    rows = {name: numbers(0.9 - 0.002 * i, 9000 / (1 + i)) for i, name in enumerate(["teacher", *blocks])}
    put_metrics(folder, rows)
    return blocks


def keep(model: Checkpoint, folder: Path, beside: Mapping[str, str]) -> None:
    """Write a model into its folder."""
    decant.save(model, folder, beside)


def put_params(folder: Path, blocks: Mapping[str, Any]) -> None:
    """Write params.yaml."""
    content = {"seed": 1, "teacher": {"architecture": NETWORK}, "models": dict(blocks)}
    (folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def put_metrics(folder: Path, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Write the metrics of models."""
    (folder / "metrics").mkdir(exist_ok=True)
    for name, row in rows.items():
        (folder / "metrics" / f"{name}.json").write_text(json.dumps(row), encoding="utf-8")


def put_times(folder: Path, seconds: Mapping[str, float], sums: Mapping[str, str] | None = None) -> None:
    """Write the times of one processor: what the page reads of them."""
    (folder / "benchmark").mkdir(exist_ok=True)
    models = {
        name: {
            "onnx_md5": (sums or {}).get(name, ""),
            "onnxruntime": {"batch_1": {"p50_seconds": second}},
            "verdict": "smaller, and faster",
        }
        for name, second in seconds.items()
    }
    table = {"machine": {"processor": "Some Processor"}, "models": models}
    (folder / "benchmark" / "some.json").write_text(json.dumps(table), encoding="utf-8")


def put_stability(folder: Path, name: str) -> None:
    """Write figures and curves of a model's stability, and of its explanations."""
    points = [{"strength": s, "accuracy": 0.9 - 0.1 * s, "agreement": 0.95} for s in range(1, 6)]
    bins = [{"confidence": (i + 0.5) / 5, "accuracy": i / 5, "count": 10 * i} for i in range(5)]
    details: dict[str, Any] = {"corruptions": {"noise": points, "blur": points}, "reliability": bins}
    details["difference"] = {"verdict": "no difference from the teacher beyond chance"}
    details["flips"] = [{"from": "1", "to": "7", "count": 12}]
    details["classes"] = [
        {"class": "7", "accuracy": 0.5, "low": 0.4, "high": 0.6, "teacher": 0.75, "p": 0.0125}
    ]
    method = {"kept": 0.875, "floor": 0.75, "top_k": 0.5, "top_k_floor": 0.25}
    curves = {"deletion": [0.9, 0.2, 0.1], "random_deletion": [0.9, 0.5, 0.1]}
    reasons = {"methods": {"lime": {**method, **curves}}}
    for kind, figures, more in (
        ("stability", {"corruption_error": 1.25, "drift": 0.0125, "mcnemar_p": 0.0625}, details),
        ("explain", {"explanations_kept": 0.875, "explanations_floor": 0.75}, reasons),
    ):
        (folder / kind).mkdir(exist_ok=True)
        (folder / kind / f"{name}.json").write_text(json.dumps(figures), encoding="utf-8")
        (folder / kind / f"{name}.details.json").write_text(json.dumps(more), encoding="utf-8")
