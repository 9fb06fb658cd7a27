"""What the teacher's training decides: temperatures and standardized logits after label smoothing, or none.

    python -m benchmarks.distillation_teachers [--seeds 1 2 3] [--minutes 9] [--write]
    python -m benchmarks.distillation_teachers --quick

Two teachers of one architecture are trained on the same images with the same seed, one with the default
label smoothing of 0.1, one with none. A student learns from each by soft targets at T = 1, 2 and 4, and by
KD, DKD and MLKD with plain and with standardized logits, which Sun et al. 2024 (https://arxiv.org/abs/2403.01427)
report to gain on CIFAR-100 in each of the three. Standardized losses have their numbers: temperature 2, and
nine times the weight. A student has the same first weights and batches of each seed in every row. Settings
are compared on validation images; the test split is shown beside. Rows are kept in
benchmarks/distillation_teachers.json one by one: an interrupted run goes on with those that are missing, and
none is begun once --minutes have passed. --write makes the page of all that is there; --quick goes through
it on few images, with numbers that mean nothing.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import decant
from benchmarks.combined import packed, unpacked
from benchmarks.distillation import hits, paired
from benchmarks.kept import parsed, place_of
from decant.checkpoints.checkpoint import Checkpoint
from decant.costs.counts import parameters
from decant.distill import distill
from decant.outputs import write_json, write_text
from tasks.benchmark.measure import describe_machine
from tasks.pipeline import splits
from tasks.pipeline.stage import report_errors
from tests.imports import ROOT

Block = dict[str, Any]
Row = dict[str, Any]

RESULTS = ROOT / "benchmarks" / "distillation_teachers.json"
KEPT = ROOT / ".scratch" / "distillation_teachers"
"""Where trained teachers lie between two runs."""

IMAGES = 10_000
LABELS = "labels alone"
TEACHERS = {"smoothed": 0.1, "not smoothed": 0.0}
STUDENT: Block = {"kind": "resnet", "widths": [8, 16, 32], "blocks": [0, 1, 1], "pool": 2}
NINE = 9.0
"""What Sun et al. multiply a loss of standardized logits by; 10 where the share of the labels is 0.1."""


def soft(temperature: float) -> Block:
    """Return soft targets at a temperature, a tenth labels."""
    return {"kind": "temperature", "temperature": temperature, "hard": 0.1}


LOSSES: Mapping[str, Block] = {
    LABELS: soft(1.0) | {"hard": 1.0},
    "KD, T = 1": soft(1.0),
    "KD, T = 2": soft(2.0),
    "KD, T = 4": soft(4.0),
    "KD, standardized": {"kind": "standardized"},
    "DKD": {"kind": "decoupled"},
    "DKD, standardized": {
        "kind": "decoupled",
        "standardize": True,
        "temperature": 2.0,
        "alpha": NINE,
        "beta": NINE * 8,
    },
    "MLKD": {"kind": "multi-level"},
    "MLKD, standardized": {"kind": "multi-level", "standardize": True, "factor": NINE / 0.9},
}
TEMPERATURES = ("KD, T = 1", "KD, T = 2", "KD, T = 4")
STANDARDIZED = (
    ("KD, standardized", "KD, T = 4"),
    ("DKD, standardized", "DKD"),
    ("MLKD, standardized", "MLKD"),
)
"""What the paper compares: its baseline of KD has temperature 4."""


def training(epochs: int) -> Block:
    """Return the recipe of all trainings, but for their label smoothing."""
    return {
        "epochs": epochs,
        "batch_size": 64,
        "optimizer": {"kind": "sgd", "learning_rate": 0.1},
        "augmentation": {"flip": True, "shift": 1},
    }


# --- measuring


@functools.cache
def examples(quick: bool) -> tuple[decant.Splits, decant.Examples]:
    """Return what is learned from and chosen by, and the test split."""
    whole, test = splits.read_splits(), splits.read(splits.TEST)
    if quick:
        return decant.Splits(whole.train.first(128), whole.validation.first(100)), test.first(100)
    return decant.Splits(whole.train.first(IMAGES), whole.validation), test


@functools.cache
def teacher(name: str, folder: Path, quick: bool) -> Checkpoint:
    """Return a trained teacher, the one in the folder where it is there."""
    if (folder / name).exists():
        return decant.load(folder / name)
    recipe = decant.Training(**training(1 if quick else 6), label_smoothing=TEACHERS[name])
    architecture = decant.Resnet(widths=(24, 48, 96), blocks=(0, 1, 1), pool=2)
    made = decant.train(architecture, recipe, examples(quick)[0], decant.Run("teacher", 1)).model
    folder.mkdir(parents=True, exist_ok=True)
    decant.save(made, folder / name)
    return made


def measured(name: str, loss: str, seed: int, folder: Path, quick: bool) -> Row:
    """Return which images a student is right about, as hexadecimal digits of bits."""
    of, (both, test), begun = teacher(name, folder, quick), examples(quick), time.process_time()
    block = {"student": STUDENT, "training": training(1 if quick else 3), "loss": dict(LOSSES[loss])}
    made = distill(of, block, both, run=decant.Run("student", seed)).model
    seconds = time.process_time() - begun
    right = {"validation": packed(hits(made, both.validation)), "test": packed(hits(made, test))}
    return {"teacher": name, "loss": loss, "seed": seed, "seconds": seconds, **right}


def described(name: str, folder: Path, quick: bool) -> Row:
    """Return a teacher's accuracy in percent, and how certain it is of training images that it knows."""
    of, (both, test) = teacher(name, folder, quick), examples(quick)
    shares = decant.predict(of.module, both.train.at_most(2000).images).softmax(1)
    certain = shares.max(1).values.mean().item()
    others = -(shares * shares.clamp(min=1e-12).log()).sum(1).mean().item()
    accuracy = 100 * hits(of, test).double().mean().item()
    return {"accuracy": accuracy, "certain": certain, "entropy": others, "parameters": parameters(of.module)}


def run(
    wanted: Sequence[tuple[str, str, int]], keep: Path, folder: Path, minutes: float, quick: bool
) -> dict[str, Any]:
    """Return all rows; those that are there already stay, and each is kept as soon as it is known.

    Args:
        wanted: Teacher, loss and seed of each.
        keep: The file of the rows.
        folder: Where teachers lie.
        minutes: After which no further training is begun.
        quick: Whether few images are trained on, for an epoch.
    """
    found: dict[str, Any] = (
        json.loads(keep.read_text(encoding="utf-8")) if keep.exists() else {"rows": [], "teachers": {}}
    )
    end, known = time.monotonic() + 60 * minutes, {key(row) for row in found["rows"]}
    for name, loss, seed in wanted:
        if (name, loss, seed) in known:
            continue
        if time.monotonic() > end:
            break
        if name not in found["teachers"]:
            found["teachers"][name] = described(name, folder, quick)
        row = _labelled(found["rows"], name, loss, seed) or measured(name, loss, seed, folder, quick)
        found["rows"].append(row)
        both, test = examples(quick)
        found["machine"] = describe_machine(1) | {"cores": os.cpu_count()}
        found["images"] = {"train": len(both.train), "validation": len(both.validation), "test": len(test)}
        write_json(keep, found)
    return found


def _labelled(rows: Sequence[Row], name: str, loss: str, seed: int) -> Row | None:
    """Return the row of labels alone of the other teacher, which they do not hear; None of another loss."""
    same = (row for row in rows if loss == LABELS and (row["loss"], row["seed"]) == (loss, seed))
    return next(({**row, "teacher": name, "seconds": 0.0} for row in same), None)


def key(row: Row) -> tuple[str, str, int]:
    """Return what tells one row from another."""
    return row["teacher"], row["loss"], row["seed"]


# --- the page


def right(found: Mapping[str, Any], teacher_name: str, loss: str, split: str) -> dict[int, torch.Tensor]:
    """Return which images of a split the students of a row are right about, bool [N], by their seeds."""
    return {
        row["seed"]: unpacked(row[split], found["images"][split])
        for row in sorted(found["rows"], key=key)
        if (row["teacher"], row["loss"]) == (teacher_name, loss)
    }


def shares(found: Mapping[str, Any], teacher_name: str, loss: str, split: str) -> list[float]:
    """Return the accuracies of a row in percent."""
    return [100 * each.double().mean().item() for each in right(found, teacher_name, loss, split).values()]


def gain(
    found: Mapping[str, Any], teacher_name: str, one: str, other: str, split: str
) -> tuple[float, float]:
    """Return the points that one row has over another, and McNemar's p over all seeds they both have."""
    both = [right(found, teacher_name, loss, split) for loss in (one, other)]
    seeds = sorted({*both[0]} & {*both[1]})
    a, b = ([each[seed] for seed in seeds] for each in both)
    gains = [100 * (x.double().mean() - y.double().mean()).item() for x, y in zip(a, b, strict=True)]
    return statistics.fmean(gains), paired(a, b)


def page(found: Mapping[str, Any]) -> str:
    """Return what was measured, as a page."""
    seeds = ", ".join(str(each) for each in sorted({row["seed"] for row in found["rows"]}))
    minutes = sum(row["seconds"] for row in found["rows"]) / 60
    lines = [
        "# What the teacher's own training decides",
        "",
        "Written by `python -m benchmarks.distillation_teachers --write`; what follows from it is in",
        "[docs/distillation.md](../docs/distillation.md#temperature-and-width).",
        "",
        "Two teachers of one architecture and seed, trained on",
        f"{found['images']['train']:,} images of garments: one with label",
        "smoothing of 0.1, one without. A student of each by every loss, on the same images. Accuracy in",
        "percent, mean over seeds, ± the deviation; gains over labels alone in points, with McNemar's p over",
        "all seeds' images together. Validation may choose, the test split is shown beside.",
        "",
    ]
    for name, about in found["teachers"].items():
        lines += [*_about(name, about), "", *_table(found, name), "", *_verdicts(found, name), ""]
    return "\n".join(
        [
            *lines,
            f"Measured with seeds {seeds} on {found['machine']['processor']}, one thread;",
            f"{minutes:.0f} minutes of processor time for the students.",
            "",
        ]
    )


def _about(name: str, about: Row) -> list[str]:
    return [
        f"## Teacher, {name}",
        "",
        f"{about['parameters']:,} parameters, {about['accuracy']:.2f} % of the test split. Its answers to",
        f"training images have a likeliest class of {about['certain']:.3f} on average, and an entropy of",
        f"{about['entropy']:.3f} nats.",
    ]


def _table(found: Mapping[str, Any], name: str) -> list[str]:
    lines = ["| loss | validation | gain | p | test | gain |", "|---|---:|---:|---:|---:|---:|"]
    for loss in LOSSES:
        both = [shares(found, name, loss, split) for split in ("validation", "test")]
        if not both[0]:
            continue
        cells = [_mean(each) for each in both]
        (first, p), (second, _) = (gain(found, name, loss, LABELS, split) for split in ("validation", "test"))
        over = ("", "", "") if loss == LABELS else (f"{first:+.2f}", f"{p:.2g}", f"{second:+.2f}")
        lines.append(f"| {loss} | {cells[0]} | {over[0]} | {over[1]} | {cells[1]} | {over[2]} |")
    return lines


def _mean(accuracies: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    return f"{statistics.fmean(accuracies):.2f}{spread}"


def _verdicts(found: Mapping[str, Any], name: str) -> list[str]:
    """Return which temperature validation chooses, and whether standardized logits gain."""
    known = {row["loss"] for row in found["rows"] if row["teacher"] == name}
    if not known >= {*LOSSES}:
        return []
    best = max(TEMPERATURES, key=lambda loss: statistics.fmean(shares(found, name, loss, "validation")))
    lines = [f"- Of the temperatures validation chooses {best}."]
    for one, other in (*STANDARDIZED, ("KD, standardized", best)):
        words = [
            f"{points:+.2f} points in {split} (p = {p:.2g})"
            for split in ("validation", "test")
            for points, p in [gain(found, name, one, other, split)]
        ]
        lines.append(f"- {one} against {other}: {', '.join(words)}.")
    return list(dict.fromkeys(lines))


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Measure what is missing, and print the page or write it; return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--minutes", type=float, default=600.0, help="after which no training is begun")
    chosen = parsed(parser, words)
    decant.make_deterministic(1)
    wanted = [(name, loss, seed) for seed in chosen.seeds for name in TEACHERS for loss in LOSSES]
    with place_of(RESULTS, chosen.quick) as keep:
        folder = keep.parent if chosen.quick else KEPT
        found = run(wanted, keep, folder, chosen.minutes, chosen.quick)
    if chosen.write:
        write_text(RESULTS.with_suffix(".md"), page(found))
    print(page(found))
    return found


if __name__ == "__main__":
    with report_errors():
        main()
