"""Distil, prune, fine-tune and quantize with one teacher, beside each of these alone at as many bytes.

    python -m benchmarks.combined [--chains combined "prune alone" …] [--write]
    python -m benchmarks.combined --quick

The default teacher of models/ (run `dvc repro` first) is made small in several ways, each a chain of blocks
of params.yaml: the default chain `student-60-ft-int8`; another combination; and distillation, pruning and
quantization by itself, where everything that is trained has the teacher's soft targets. Quantization alone
comes to one bit for a weight, and to no fewer bytes than that. All of it takes minutes, as only the first
--images of the training images are looked at. Models are compared on the test split in pairs by McNemar's
test. Rows are kept in benchmarks/combined.json one by one: an interrupted run goes on with the chains that
are missing. --write makes the page of all that is there; --quick takes few images, and numbers that mean
nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import decant
from benchmarks.distillation import hits, paired
from benchmarks.pruning_page import inline
from decant.checkpoints.checkpoint import Checkpoint
from decant.distill import distill
from decant.finetune import finetune
from decant.outputs import write_json, write_text
from decant.prune import prune
from decant.quantize import quantize
from tasks.pipeline import splits
from tasks.pipeline.lineages import MODELS
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


OPERATIONS: dict[str, Callable[..., Any]] = {
    "distill": distill,
    "prune": prune,
    "finetune": finetune,
    "quantize": quantize,
}


@dataclass(frozen=True)
class Bench:
    """A teacher, and what is looked at.

    Attributes:
        splits: What chains learn from, and the validation images.
        test: The test split.
    """

    teacher: Checkpoint
    splits: decant.Splits
    test: decant.Examples

    def made(self, name: str, blocks: Sequence[Block]) -> Row:
        """Return what a chain comes to after each step, and which images it is right about in the end."""
        begin, model, steps = time.process_time(), self.teacher, list[Row]()
        for number, block in enumerate(blocks):
            recipe = {key: value for key, value in block.items() if key not in ("op", "from")}
            run, more = decant.Run(f"{name}-{number}", 1), {"teacher": self.teacher}
            model = OPERATIONS[block["op"]](model, recipe, self.splits, run=run, **more).model
            share = 100 * hits(model, self.splits.validation).double().mean().item()
            steps.append({"op": block["op"], "validation": share, "bytes": self.size(model)})
        seconds = time.process_time() - begin
        return {"chain": name, "seconds": seconds, "steps": steps, **self.found(model)}

    def found(self, model: Checkpoint) -> Row:
        """Return the bytes of a model, and which images it is right about, as hexadecimal digits of bits."""
        both = {"validation": self.splits.validation, "test": self.test}
        right = {name: hits(model, examples).numpy() for name, examples in both.items()}
        digits = {name: np.packbits(each).tobytes().hex() for name, each in right.items()}
        return {"bytes": self.size(model), **digits}

    def size(self, model: Checkpoint) -> int:
        """Return the bytes of a model on disk."""
        with tempfile.TemporaryDirectory() as folder:
            decant.save(model, Path(folder) / "model")
            return decant.size_bytes(Path(folder) / "model")


def opened(images: int, quick: bool) -> Bench:
    """Return the default teacher, and so many training images."""
    whole, test = splits.read_splits(), splits.read(splits.TEST)
    validation = whole.validation.first(100) if quick else whole.validation
    taken = decant.Splits(whole.train.first(images), validation)
    return Bench(decant.load(ROOT / MODELS / "teacher"), taken, test.first(200) if quick else test)


def unpacked(digits: str, count: int) -> torch.Tensor:
    """Return which images they are, bool [count]."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8), count=count)
    return torch.from_numpy(bits.astype(bool))


def run(bench: Bench, wanted: Sequence[str], keep: Path, quick: bool) -> dict[str, Any]:
    """Return all rows; those that are there already stay, and each is kept as soon as it is known."""
    found: dict[str, Any] = json.loads(keep.read_text(encoding="utf-8")) if keep.exists() else {"rows": []}
    found["images"] = {"validation": len(bench.splits.validation), "test": len(bench.test)}
    found["train"], found["teacher"] = len(bench.splits.train), bench.found(bench.teacher)
    blocks = chains(quick)
    for name in wanted:
        if name not in {row["chain"] for row in found["rows"]}:
            found["rows"].append(bench.made(name, blocks[name]))
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
        f"with the teacher's soft targets on {found['train']:,} images, by seed 1. Accuracy in percent; what",
        "each has over the default chain on the test split in points, and McNemar's p of it; seconds of the",
        "processor, one thread. Below, what each step leaves on validation images.",
        "",
        "| chain | bytes | validation | test | over the default | p | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|",
        f"| teacher | {found['teacher']['bytes']:,} | {_percent(found, found['teacher'], 'validation')} | "
        f"{_percent(found, found['teacher'], 'test')} | | | |",
    ]
    lines += [f"| {name} | {_cells(found, row, rows.get(COMBINED))} |" for name, row in rows.items()]
    return "\n".join([*lines, "", "## Blocks", "", *_blocks(rows), ""])


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


def _blocks(rows: Mapping[str, Row]) -> list[str]:
    """Return the blocks of each chain, with the accuracy on validation images and the bytes after each."""
    known, lines = chains(quick=False), list[str]()
    for name in known:
        if name in rows:
            lines += [f"- {name}:"]
            lines += [
                f"  - `{inline({key: value for key, value in block.items() if key != 'from'})}`: "
                f"{step['validation']:.2f} %, {step['bytes']:,} bytes"
                for block, step in zip(known[name], rows[name]["steps"], strict=True)
            ]
    return lines


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Make the chains that are missing, and print the page or write it; return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--chains", nargs="*", default=list(chains(False)), choices=list(chains(False)))
    parser.add_argument("--images", type=int, default=10_000, help="for training")
    parser.add_argument("--quick", action="store_true", help="few images, to see that it runs")
    parser.add_argument(
        "--write", action="store_true", help="write benchmarks/combined.md, of all that is kept"
    )
    chosen = parser.parse_args(words)
    if chosen.quick and chosen.write:
        parser.error("--quick measures nothing worth writing; leave out one of the two")
    decant.make_deterministic(1)
    bench = opened(2048 if chosen.quick else chosen.images, chosen.quick)
    with tempfile.TemporaryDirectory() as temporary:
        keep = Path(temporary) / RESULTS.name if chosen.quick else RESULTS
        found = run(bench, chosen.chains, keep, chosen.quick)
    if chosen.write:
        write_text(RESULTS.with_suffix(".md"), page(found))
    print(page(found))
    return found


if __name__ == "__main__":
    with report_errors():
        main()
