"""Distil, prune, fine-tune and quantize with one teacher, beside each of these alone at as many bytes.

    python -m benchmarks.combined [--chains combined "prune alone" …] [--write]
    python -m benchmarks.combined --quick

The default teacher of models/ (run `dvc repro` first) is made small in several ways, each a chain of blocks
of params.yaml: the default chain `student-60-ft-int8`; combinations of other steps; and distillation, pruning
and quantization by itself, where everything that is trained has the teacher's soft targets. Quantization
alone comes to one bit for a weight, and to no fewer bytes than that. Models are measured on validation images
and on the test split, and compared there in pairs by McNemar's test. Rows are kept in
benchmarks/combined.json one by one: an interrupted run goes on with the chains that are missing. --write
makes the page of all that is there; --quick goes through it on small images, with numbers that mean nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.distillation import hits, paired
from benchmarks.logits import QUICK
from benchmarks.pruning_page import inline
from benchmarks.workshop import Workshop
from decant.checkpoints.files import size_bytes
from decant.outputs import write_json, write_text
from tasks.pipeline import splits
from tasks.pipeline.lineages import MODELS
from tasks.pipeline.models import load_model
from tasks.pipeline.params import read_yaml
from tasks.pipeline.stage import report_errors
from tests.imports import ROOT

Block = dict[str, Any]
Row = dict[str, Any]

RESULTS = ROOT / "benchmarks" / "combined.json"
COMBINED = "combined"
KIB = 41
"""What the default chain takes, for a student of as many float32 numbers."""


def soft(temperature: float = 1.0) -> Block:
    """Return the teacher's soft targets."""
    return {"kind": "temperature", "temperature": temperature, "hard": 0.1}


def training(epochs: int, optimizer: Block, **changes: Any) -> Block:
    """Return the recipe of a training, as params.yaml has it for its students."""
    augmentation = {"flip": True, "shift": 1}
    return {"epochs": epochs, "optimizer": optimizer, "augmentation": augmentation, **changes}


def tuning(epochs: int, learning_rate: float = 0.02) -> Block:
    """Return the recipe of a training from good weights."""
    sgd = {"kind": "sgd", "learning_rate": learning_rate}
    return training(epochs, sgd, schedule={"kind": "cosine"}, average=0.99)


def levels(bits: int, epochs: int) -> Block:
    """Return a quantization that is trained with the teacher."""
    train = {"kind": "lsq", "loss": soft(), "training": tuning(epochs)}
    scheme = {"kind": "integer", "bits": bits, "range": {"kind": "mse"}}
    return {"op": "quantize", "scheme": scheme, "train": train}


def chains(quick: bool) -> dict[str, list[Block]]:
    """Return the blocks of each chain: each begins at the one before, the first at the teacher."""
    models, few = read_yaml(ROOT / "params.yaml")["models"], 1 if quick else 0
    default = ("student", "student-60", "student-60-ft", "student-60-ft-int8")
    small: Block = {
        "op": "distill",
        "student": {"kind": "resnet", "widths": [16, 32, 64], "blocks": [0, 1, 1], "pool": 2},
        "loss": soft(),
        "training": training(few or 4, {"kind": "sgd", "learning_rate": 0.1}, average=0.99),
        "start": "teacher",
    }
    pruned: Block = {"op": "prune", "criterion": {"kind": "obs"}, "statistics": True}
    tuned: Block = {"op": "finetune", "loss": soft(), "training": tuning(few or 1)}
    signs: Block = {
        "kind": "error-decay",
        "loss": soft(),
        "training": training(
            few or 2,
            {"kind": "adamw", "learning_rate": 0.003},
            schedule={"kind": "cosine"},
            weight_decay=0.0,
            average=0.99,
        ),
    }
    return {
        COMBINED: [dict(models[name]) for name in default],
        "combined, T = 4, from fresh weights, 8 bits not trained": [
            {k: v for k, v in small.items() if k != "start"} | {"loss": soft(4.0)},
            {"op": "prune", "criterion": {"kind": "magnitude"}, "budget": {"sparsity": 0.6}},
            tuned | {"loss": soft(4.0)},
            {"op": "quantize", "scheme": {"kind": "integer", "bits": 8}},
        ],
        "distil alone": [
            small
            | {"student": {"budget": {"kib": KIB}}, "training": small["training"] | {"epochs": few or 6}}
        ],
        "prune alone": [pruned | {"budget": {"sparsity": 0.97}}, tuned | {"training": tuning(few or 3)}],
        "quantize alone": [
            {"op": "quantize", "scheme": {"kind": "binary", "balanced": True}, "train": signs}
        ],
        "prune, then quantize": [pruned | {"budget": {"sparsity": 0.85}}, tuned, levels(4, few or 1)],
    }


def made(shop: Workshop, name: str, blocks: Sequence[Block]) -> Row:
    """Return what a chain comes to, which images it is right about, and what it took."""
    begin, before = time.perf_counter(), "teacher"
    for number, block in enumerate(blocks):
        step = f"{name.partition(',')[0].replace(' ', '-')}-{len(name)}-{number}"
        shop.make(step, block | {"from": before}, 1)
        before = step
    seconds = time.perf_counter() - begin
    with shop.inside({}, 1):
        return {"chain": name, "seconds": seconds, "bytes": size_bytes(MODELS / before), **rights(before)}


def rights(name: str) -> dict[str, str]:
    """Return which images of either split a model is right about, a bit for each, as hexadecimal digits."""
    model = load_model(name)
    return {
        path.stem: np.packbits(hits(model, splits.read(path)).numpy()).tobytes().hex()
        for path in (splits.VALIDATION, splits.TEST)
    }


def unpacked(digits: str, count: int) -> torch.Tensor:
    """Return which images they are, bool [count]."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8), count=count)
    return torch.from_numpy(bits.astype(bool))


def run(folder: Path, wanted: Sequence[str], keep: Path, quick: bool) -> dict[str, Any]:
    """Return all rows; those that are there already stay, and each is kept as soon as it is known."""
    shop = (
        Workshop("default", folder, QUICK)
        if quick
        else Workshop("default", folder, {}, ROOT / MODELS / "teacher", threads=2)
    )
    found: dict[str, Any] = json.loads(keep.read_text(encoding="utf-8")) if keep.exists() else {"rows": []}
    with shop.inside({}, 1):
        found["images"] = {path.stem: len(splits.read(path)) for path in (splits.VALIDATION, splits.TEST)}
        found["teacher"] = {"bytes": size_bytes(MODELS / "teacher"), **rights("teacher")}
    blocks = chains(quick)
    for name in wanted:
        if name not in {row["chain"] for row in found["rows"]}:
            found["rows"].append(made(shop, name, blocks[name]))
            write_json(keep, found)
    return found


# --- the page


def page(found: Mapping[str, Any]) -> str:
    """Return what was measured, as a page."""
    rows = {row["chain"]: row for row in found["rows"]}
    lines = [
        "# Distil, prune, fine-tune and quantize, together and alone",
        "",
        "Written by `python -m benchmarks.combined --write`.",
        "",
        "The default teacher on Fashion-MNIST, made small by chains of blocks of params.yaml, all trained",
        "with the teacher's soft targets and seed 1. Accuracy in percent; what each has over the default",
        "chain on the test split in points, and McNemar's p of it; seconds with two threads, on a machine",
        "that did other work beside it.",
        "",
        "| chain | bytes | validation | test | over the default | p | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|",
        f"| teacher | {found['teacher']['bytes']:,} | {_percent(found, found['teacher'], 'validation')} | "
        f"{_percent(found, found['teacher'], 'test')} | | | |",
    ]
    lines += [f"| {name} | {_cells(found, row, rows.get(COMBINED))} |" for name, row in rows.items()]
    return "\n".join([*lines, "", "## Blocks", "", *_blocks(list(rows)), ""])


def _percent(found: Mapping[str, Any], row: Row, split: str) -> str:
    return f"{100 * unpacked(row[split], found['images'][split]).double().mean().item():.2f}"


def _cells(found: Mapping[str, Any], row: Row, default: Row | None) -> str:
    shares = [_percent(found, row, split) for split in ("validation", "test")]
    compared = ["", ""]
    if default is not None and row is not default:
        one, other = (unpacked(each["test"], found["images"]["test"]) for each in (row, default))
        gain = 100 * (one.double().mean() - other.double().mean()).item()
        compared = [f"{gain:+.2f}", f"{paired([one], [other]):.2g}"]
    return " | ".join([f"{row['bytes']:,}", *shares, *compared, f"{row['seconds']:.0f}"])


def _blocks(names: Sequence[str]) -> list[str]:
    known = chains(quick=False)
    return [
        f"- {name}: {', then '.join(f'`{inline(block)}`' for block in known[name])}"
        for name in names
        if name in known
    ]


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Make the chains that are missing, and print the page or write it; return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--chains", nargs="*", default=list(chains(False)), choices=list(chains(False)))
    parser.add_argument("--quick", action="store_true", help="small images, to see that it runs")
    parser.add_argument(
        "--write", action="store_true", help="write benchmarks/combined.md, of all that is kept"
    )
    chosen = parser.parse_args(words)
    if chosen.quick and chosen.write:
        parser.error("--quick measures nothing worth writing; leave out one of the two")
    with tempfile.TemporaryDirectory() as temporary:
        keep = Path(temporary) / RESULTS.name if chosen.quick else RESULTS
        found = run(Path(temporary) / "shop", chosen.chains, keep, chosen.quick)
    if chosen.write:
        write_text(RESULTS.with_suffix(".md"), page(found))
    print(page(found))
    return found


if __name__ == "__main__":
    with report_errors():
        main()
