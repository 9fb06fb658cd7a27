"""What each loss of distillation gains: one student, alone and with each of them, on pictures and on a table.

    python -m benchmarks.distillation [--seeds 1 2 3] [--rows hints "the default mix" …] [--write] [--quick]

`garments` are Fashion-MNIST with the default teacher of models/ (run `dvc repro` first) and a student of a
tenth of its parameters at most; `digits` are scikit-learn's as a table of 64 numbers, whose order is drawn,
so that nothing lies beside anything, with fully connected networks. A student has the same first weights and
the same batches of each seed in every row, so that rows are compared in pairs. --write writes
benchmarks/distillation.{json,md}; --quick goes through all of it on few images, with numbers that mean
nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import decant
from decant.checkpoints.checkpoint import Checkpoint
from decant.costs.counts import parameters
from decant.distill import distill
from decant.outputs import write_json, write_text
from tasks.benchmark.measure import describe_machine
from tasks.pipeline import splits
from tasks.pipeline.lineages import MODELS
from tasks.pipeline.stage import report_errors
from tasks.prepare.sources import SOURCES
from tasks.prepare.splits import Split, draw
from tests.imports import ROOT

Block = dict[str, Any]
Row = dict[str, Any]

RESULTS = ROOT / "benchmarks" / "distillation.json"
ALONE = "labels alone"


@dataclass(frozen=True)
class Subject:
    """A data set, its teacher, and the student that learns from it.

    Attributes:
        layers: The student's layer whose features are compared, and the teacher's.
        maps: The same of a layer in the middle, whose maps have many places; none where there are no places.
    """

    name: str
    teacher: Checkpoint
    splits: decant.Splits
    test: decant.Examples
    student: Block
    training: Block
    layers: Mapping[str, str]
    maps: Mapping[str, str]


def cases(subject: Subject) -> dict[str, Block]:
    """Return the changes of the block by what the row is called, the student alone first."""
    layers = {"layers": dict(subject.layers)}
    early = {"layers": dict(subject.maps or subject.layers)}
    hot = {"kind": "temperature", "temperature": 4.0, "hard": 0.1}
    losses: dict[str, Block] = {
        "label smoothing": {"kind": "smoothing"},
        "softmax": {"kind": "softmax", "hard": 0.1},
        "temperature": hot,
        "standardized": {"kind": "standardized"},
        "multi-level": {"kind": "multi-level"},
        "multi-level, standardized": {"kind": "multi-level", "standardize": True, "factor": 10.0},
        "decoupled": {"kind": "decoupled"},
        "decoupled, standardized": {"kind": "decoupled", "standardize": True, "temperature": 2.0},
        "decoupled, standardized, nine times": {
            "kind": "decoupled",
            "standardize": True,
            "temperature": 2.0,
            "alpha": 9.0,
            "beta": 72.0,
        },
        "dist": {"kind": "dist"},
        "outputs": {"kind": "outputs", "hard": 0.1},
        "hints": {"kind": "hints", **early},
        "hints, last layer": {"kind": "hints", **layers},
        "attention": {"kind": "attention", **early},
        "relational": {"kind": "relational", **layers},
        "similarity": {"kind": "similarity", **layers},
        "contrastive": {"kind": "contrastive", **layers, "negatives": 256},
        "contrastive, factor 0.1": {"kind": "contrastive", **layers, "negatives": 256, "factor": 0.1},
        "the default mix": {"kind": "mix"},
    }
    if not subject.maps:
        del losses["attention"], losses["hints, last layer"]
    found = {ALONE: {"loss": hot | {"hard": 1.0}}}
    found |= {name: {"loss": loss} for name, loss in losses.items()}
    return found | {"temperature, start: teacher": {"loss": hot, "start": "teacher"}}


# --- the two data sets


def garments(quick: bool) -> Subject:
    """Return Fashion-MNIST with the default teacher, and a student that sees 3,000 images."""
    whole, test = splits.read_splits(), splits.read(splits.TEST)
    sizes = (128, 100, 200) if quick else (3000, 1000, len(test))
    return Subject(
        "garments",
        decant.load(ROOT / MODELS / "teacher"),
        decant.Splits(whole.train.first(sizes[0]), whole.validation.first(sizes[1])),
        test.first(sizes[2]),
        {"kind": "resnet", "widths": [8, 16, 32], "blocks": [0, 1, 1], "pool": 2},
        {
            "epochs": 1 if quick else 5,
            "batch_size": 64,
            "optimizer": {"kind": "sgd", "learning_rate": 0.1},
            "augmentation": {"flip": True, "shift": 1},
        },
        {"stages.1": "stages.1"},
        {"stages.0": "stages.0"},
    )


def digits(quick: bool) -> Subject:
    """Return scikit-learn's digits as a table, with a teacher that is trained here."""
    found = draw(SOURCES["digits"], 137, 1)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    train, validation, test = (_table(found[name], order) for name in ("train", "validation", "test"))
    both, epochs = decant.Splits(train, validation), 1 if quick else 30
    recipe = decant.Training(
        epochs=epochs, batch_size=32, optimizer={"kind": "adamw"}, schedule={"kind": "cosine"}
    )
    teacher = decant.train(decant.Mlp(hidden=(256, 128)), recipe, both, decant.Run("teacher", 1)).model
    return Subject(
        "digits",
        teacher,
        decant.Splits(train.first(300), validation),
        test,
        {"kind": "mlp", "hidden": [24, 16]},
        {
            "epochs": 1 if quick else 60,
            "batch_size": 30,
            "optimizer": {"kind": "adamw", "learning_rate": 0.003},
            "schedule": {"kind": "cosine"},
        },
        {"layers.3": "layers.3"},
        {},
    )


def _table(split: Split, order: torch.Tensor) -> decant.Examples:
    """Return digits as 64 columns in a drawn order, as one row of a picture each."""
    columns = torch.from_numpy(split.images).flatten(1)[:, order].reshape(-1, 1, 1, 64)
    return decant.Examples(columns, torch.from_numpy(split.labels.astype("int64")), SOURCES["digits"].classes)


SUBJECTS: dict[str, Callable[[bool], Subject]] = {"garments": garments, "digits": digits}

# --- measuring


def hits(model: Checkpoint, test: decant.Examples) -> torch.Tensor:
    """Return which test examples a model is right about, [N]."""
    return decant.predict(model.module, test.images).argmax(1) == test.known_labels


def measured(
    subject: Subject, seeds: Sequence[int], only: Sequence[str] = (), known: Sequence[Row] = ()
) -> dict[str, Any]:
    """Return the accuracies of all rows in percent, and how each compares with the student alone.

    Args:
        subject: Student, teacher and data.
        seeds: A training of each row for each.
        only: The rows that are measured anew, the student alone always; all where empty.
        known: The others, as they were measured.
    """
    rows, right = list[Row](), dict[str, list[torch.Tensor]]()
    earlier = {row["name"]: row for row in known}
    for name, changes in cases(subject).items():
        if only and name not in (ALONE, *only) and name in earlier:
            rows.append(earlier[name])
            continue
        begun, models = time.process_time(), list[Checkpoint]()
        for seed in seeds:
            block = {"student": subject.student, "training": subject.training, **changes}
            models.append(distill(subject.teacher, block, subject.splits, run=decant.Run(name, seed)).model)
        seconds = (time.process_time() - begun) / len(seeds)
        right[name] = [hits(model, subject.test) for model in models]
        accuracies = [100 * each.double().mean().item() for each in right[name]]
        rows.append({"name": name, "accuracies": accuracies, "seconds": seconds, "loss": changes["loss"]})
        rows[-1]["p"] = paired(right[name], right[ALONE])
    return {
        "rows": rows,
        "teacher": 100 * hits(subject.teacher, subject.test).double().mean().item(),
        "parameters": [parameters(each.module) for each in (subject.teacher, models[0])],
        "examples": [len(subject.splits.train), len(subject.test)],
        "training": subject.training,
    }


def paired(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Return how likely it is that two rows differ so by chance: McNemar's test of all seeds' test examples.

    Of the examples of which one row alone is right, half would be each one's; the number is nearly normal.
    """
    pairs = list(zip(one, other, strict=True))
    gained = sum(int((a & ~b).sum()) for a, b in pairs)
    lost = sum(int((b & ~a).sum()) for a, b in pairs)
    return math.erfc(abs(gained - lost) / math.sqrt(2 * (gained + lost))) if gained + lost else 1.0


# --- the page


def page(results: Mapping[str, Any]) -> str:
    """Return what was measured, as a page."""
    lines = [
        "# What each loss of distillation gains",
        "",
        "Written by `python -m benchmarks.distillation --write`; the losses are those of",
        "[docs/distillation.md](../docs/distillation.md).",
        "",
        "Accuracy on the test split in percent: mean over seeds, its spread (standard deviation), the gain",
        "over the same student with labels alone, of the same first weights and batches, and McNemar's p",
        "over all seeds' test examples together: how likely such a gain is by chance. Seconds are of one",
        "training, of the processor. Nothing was tuned for a row: each loss has its default numbers; nine",
        "times is what Sun et al. multiply a standardized loss by, as `standardized` does by default and",
        "`multi-level, standardized` here by its factor. A loss that has no row was not measured since it",
        "last changed.",
        "",
    ]
    for name, found in results["subjects"].items():
        lines += [*_about(name, found), "", *_table_of(found), "", _verdict(found), ""]
    machine = results["machine"]
    seeds, minutes = ", ".join(map(str, results["seeds"])), results["seconds"] / 60
    lines += [
        f"Measured with seeds {seeds} on {machine['processor']},",
        f"threads: {results['threads']}; {minutes:.0f} minutes of processor time in all. Epochs and images",
        "are few so that it takes no more; with all of Fashion-MNIST, labels say more and a teacher less.",
        "",
    ]
    return "\n".join(lines)


def _about(name: str, found: Mapping[str, Any]) -> list[str]:
    (teacher, student), (train, test) = found["parameters"], found["examples"]
    return [
        f"## {name.capitalize()}",
        "",
        f"Teacher: {teacher:,} parameters, {found['teacher']:.2f} %. Student: {student:,} parameters, "
        f"{teacher / student:.1f} times fewer,",
        f"{found['training']['epochs']} epochs of {train:,} examples; {test:,} test examples.",
    ]


def gain(row: Row, alone: Row) -> float:
    """Return the points that a row has over another one, mean over seeds."""
    return statistics.fmean(row["accuracies"]) - statistics.fmean(alone["accuracies"])


def _table_of(found: Mapping[str, Any]) -> list[str]:
    alone = found["rows"][0]
    lines = ["| loss | accuracy | spread | gain | p | seconds |", "|---|---:|---:|---:|---:|---:|"]
    for row in found["rows"]:
        spread = statistics.stdev(row["accuracies"]) if len(row["accuracies"]) > 1 else 0.0
        compared = " | " if row is alone else f"{gain(row, alone):+.2f} | {row['p']:.2g}"
        mean = statistics.fmean(row["accuracies"])
        lines.append(f"| {row['name']} | {mean:.2f} | {spread:.2f} | {compared} | {row['seconds']:.1f} |")
    return lines


def _verdict(found: Mapping[str, Any]) -> str:
    """Return which loss gains most, and what beginning from the teacher gains."""
    alone, *rest = found["rows"]
    best = max(rest, key=lambda row: gain(row, alone))
    named = {row["name"]: row for row in rest}
    begun = gain(named["temperature, start: teacher"], named["temperature"])
    worth = "more" if begun > 0 else "less"
    return (
        f"The best is {best['name']}, {gain(best, alone):+.2f} points. A student that begins with those\n"
        f"channels of its teacher that pruning would keep has {abs(begun):.2f} points {worth} than a fresh\n"
        "one."
    )


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Measure, and print the page or write it; return the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--subjects", nargs="*", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--rows", nargs="*", default=[], help="rows to measure anew; the others stay")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few images, to see that it runs")
    parser.add_argument("--write", action="store_true", help="write benchmarks/distillation.{json,md}")
    chosen = parser.parse_args(words)
    if chosen.quick and chosen.write:
        parser.error("--quick measures nothing worth writing; leave out one of the two")
    decant.make_deterministic(chosen.threads)
    begun = time.process_time()
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if chosen.rows and RESULTS.exists() else {}
    before = {name: found["rows"] for name, found in known.get("subjects", {}).items()}
    found = {
        name: measured(SUBJECTS[name](chosen.quick), chosen.seeds, chosen.rows, before.get(name, ()))
        for name in chosen.subjects
    }
    results = {
        "machine": describe_machine(chosen.threads) | {"cores": os.cpu_count()},
        "threads": chosen.threads,
        "seeds": chosen.seeds,
        "subjects": found,
        "seconds": time.process_time() - begun + known.get("seconds", 0.0),
    }
    if chosen.write:
        write_json(RESULTS, results)
        write_text(RESULTS.with_suffix(".md"), page(json.loads(json.dumps(results))))
    print(page(results))
    return results


if __name__ == "__main__":
    with report_errors():
        main()
