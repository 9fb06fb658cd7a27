"""Which temperature suits which width: one student, trained at each of some bits by soft targets of each T.

    python -m benchmarks.distillation_grid [--seeds 1 2 3] [--temperatures 1 2 4 8] [--bits 32 8 4 3 2]
    python -m benchmarks.distillation_grid --write
    python -m benchmarks.distillation_grid --quick

The student of `python -m benchmarks.distillation` is first trained on labels alone, once for a seed, which
uses no teacher. From there on all cells have the same batches, epochs and learning rate: at 32 bits it is
fine-tuned, at fewer it is trained on its levels (`train: {kind: lsq}`, ranges by `mse`), against the default
teacher of models/ (run `dvc repro` first) at each temperature, and against labels alone. Temperatures are
compared on validation images; the test split is shown beside. Cells are kept in
benchmarks/distillation_grid.json one by one: an interrupted run goes on with those that are missing, and
--write makes the page and the picture of all that is there. --quick goes through it on few images, with
numbers that mean nothing.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

import decant
from benchmarks.distillation import Subject, garments, hits
from benchmarks.kept import parsed, place_of
from decant.checkpoints.checkpoint import Checkpoint
from decant.distill import distill
from decant.finetune import finetune
from decant.outputs import write_json, write_text
from decant.quantize import quantize
from tasks.benchmark.measure import describe_machine
from tasks.pipeline import splits
from tasks.pipeline.stage import report_errors
from tasks.report.pictures import SETTINGS, STYLES, save
from tests.imports import ROOT

Block = dict[str, Any]
Cell = dict[str, Any]

RESULTS = ROOT / "benchmarks" / "distillation_grid.json"
WIDTHS, TEMPERATURES = (32, 8, 4, 3, 2), (1.0, 2.0, 4.0, 8.0)
IMAGES, EPOCHS = 6000, 6
LABELS = None
"""The temperature of a cell without soft targets."""


# --- measuring


@functools.cache
def subject(quick: bool) -> Subject:
    """Return the student of the other benchmark with more images, and all those of validation."""
    found = garments(quick)
    if quick:
        return found
    whole = splits.read_splits()
    more = decant.Splits(whole.train.first(IMAGES), whole.validation)
    return Subject(**{**vars(found), "splits": more})


def training(of: Subject, learning_rate: float, quick: bool) -> Block:
    """Return the recipe of both trainings of a cell, but for its learning rate."""
    return of.training | {
        "epochs": 1 if quick else EPOCHS,
        "optimizer": {"kind": "sgd", "learning_rate": learning_rate},
    }


def loss(temperature: float | None) -> Block:
    """Return soft targets at a temperature, or labels alone."""
    hot = {"kind": "temperature", "temperature": temperature or 1.0}
    return hot | {"hard": 1.0 if temperature is LABELS else 0.1}


@functools.cache
def parent(seed: int, quick: bool) -> Checkpoint:
    """Return the student that was trained on labels alone."""
    of = subject(quick)
    block = {"student": of.student, "training": training(of, 0.1, quick), "loss": loss(LABELS)}
    return distill(of.teacher, block, of.splits, run=decant.Run("parent", seed)).model


def block_of(bits: int, temperature: float | None, recipe: Block) -> Block:
    """Return how the student is trained at a width; at 32 bits it is fine-tuned."""
    taught: Block = {"loss": loss(temperature), "training": recipe}
    if bits == 32:
        return taught
    levels = {"kind": "integer", "bits": bits, "range": {"kind": "mse"}}
    return {"scheme": levels, "train": {"kind": "lsq", **taught}}


def measured(bits: int, temperature: float | None, seed: int, quick: bool) -> Cell:
    """Return the accuracy of one cell in percent, on validation images and on the test split."""
    decant.make_deterministic(1)
    of, begun = subject(quick), time.process_time()
    start = parent(seed, quick)
    block = block_of(bits, temperature, training(of, 0.05, quick))
    made = finetune if bits == 32 else quantize
    model = made(start, block, of.splits, teacher=of.teacher, run=decant.Run("cell", seed)).model
    shares = {
        name: 100 * hits(model, examples).double().mean().item()
        for name, examples in (("validation", of.splits.validation), ("test", of.test))
    }
    seconds = time.process_time() - begun
    return {"bits": bits, "temperature": temperature, "seed": seed, **shares, "seconds": seconds}


def key(cell: Mapping[str, Any]) -> tuple[int, float | None, int]:
    """Return what tells one cell from another."""
    return cell["bits"], cell["temperature"], cell["seed"]


def run(wanted: Sequence[tuple[int, float | None, int]], keep: Path, workers: int, quick: bool) -> list[Cell]:
    """Return all cells; those that are there already stay, and each is kept as soon as it is known."""
    cells: list[Cell] = json.loads(keep.read_text(encoding="utf-8"))["cells"] if keep.exists() else []
    missing = [each for each in wanted if each not in {key(cell) for cell in cells}]
    for cell in _each(missing, workers, quick):
        cells = sorted([*cells, cell], key=lambda one: (-one["bits"], one["temperature"] or 0, one["seed"]))
        machine = describe_machine(1) | {"cores": os.cpu_count()}
        write_json(keep, {"machine": machine, "images": IMAGES, "epochs": EPOCHS, "cells": cells})
    return cells


def _each(missing: Sequence[tuple[int, float | None, int]], workers: int, quick: bool) -> Iterator[Cell]:
    """Yield cells as they are done, each by one thread of its own process."""
    if workers == 1:
        yield from (measured(*each, quick) for each in missing)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(measured, *each, quick) for each in missing]
        yield from (each.result() for each in as_completed(waiting))


# --- the page


def mean(cells: Sequence[Cell], bits: int, temperature: float | None, split: str) -> float:
    """Return the accuracy of a cell in percent, mean over seeds."""
    return statistics.fmean(
        cell[split] for cell in cells if (cell["bits"], cell["temperature"]) == (bits, temperature)
    )


def columns(cells: Sequence[Cell]) -> list[float]:
    """Return the temperatures that were measured."""
    return sorted({cell["temperature"] for cell in cells} - {LABELS})


def table(cells: Sequence[Cell], split: str) -> list[str]:
    """Return the lines of one split's table; the best of a width is in bold where the split may choose."""
    heads = [f"T = {each:g}" for each in columns(cells)]
    lines = [f"| bits | labels | {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) + 1)]
    for bits in sorted({cell["bits"] for cell in cells}, reverse=True):
        numbers = [mean(cells, bits, each, split) for each in (LABELS, *columns(cells))]
        best = max(numbers) if split == "validation" else None
        shown = [f"**{each:.2f}**" if each == best else f"{each:.2f}" for each in numbers]
        lines.append(f"| {bits} | {' | '.join(shown)} |")
    return lines


def choices(cells: Sequence[Cell]) -> list[str]:
    """Return the temperature that validation chooses for each width, and its gains there and in test."""
    lines = [
        "| bits | best T, validation | over labels | over T = 4 | over labels, test | over T = 4, test |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for bits in sorted({cell["bits"] for cell in cells}, reverse=True):
        best = max(columns(cells), key=lambda each: mean(cells, bits, each, "validation"))
        gains = [
            gain(cells, bits, best, other, split)
            for split in ("validation", "test")
            for other in (LABELS, 4.0)
        ]
        lines.append(f"| {bits} | {best:g} | {' | '.join(gains)} |")
    return lines


def gain(cells: Sequence[Cell], bits: int, one: float | None, other: float | None, split: str) -> str:
    """Return the points that one temperature has over another: mean and deviation over seeds."""
    by_key = {key(cell): cell[split] for cell in cells}
    seeds = sorted({cell["seed"] for cell in cells})
    pairs = [by_key[bits, one, seed] - by_key[bits, other, seed] for seed in seeds]
    spread = f" ± {statistics.stdev(pairs):.2f}" if len(pairs) > 1 and one != other else ""
    return f"{statistics.fmean(pairs):+.2f}{spread}"


def page(results: Mapping[str, Any]) -> str:
    """Return what was measured, as a page."""
    cells = results["cells"]
    seeds = ", ".join(str(each) for each in sorted({cell["seed"] for cell in cells}))
    minutes = sum(cell["seconds"] for cell in cells) / 60
    return "\n".join(
        [
            "# Temperature and width",
            "",
            "Written by `python -m benchmarks.distillation_grid --write`; what follows from it is in",
            "[docs/distillation.md](../docs/distillation.md#temperature-and-width).",
            "",
            "One student, trained on labels and then at each width, by labels or by soft targets of the",
            f"default teacher at a temperature T (a tenth labels): {results['epochs']} epochs of "
            f"{results['images']:,} images of garments",
            "each. Accuracy in percent, mean over seeds.",
            "",
            "![Accuracy against temperature, a line for each width](distillation_grid.svg)",
            "",
            "## Validation",
            "",
            *table(cells, "validation"),
            "",
            "## Test",
            "",
            *table(cells, "test"),
            "",
            "## Chosen on validation",
            "",
            "Gains in points with the deviation over seeds.",
            "",
            *choices(cells),
            "",
            f"Measured with seeds {seeds} on {results['machine']['processor']}, a thread for each cell;",
            f"{minutes:.0f} minutes of processor time in all.",
            "",
        ]
    )


def picture(cells: Sequence[Cell]) -> Figure:
    """Return validation accuracy against the temperature, a line for each width; labels alone at the left."""
    temperatures = columns(cells)
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(6, 4), layout="constrained")
        panel = figure.subplots()
        for (colour, marker), bits in zip(
            STYLES, sorted({c["bits"] for c in cells}, reverse=True), strict=False
        ):
            heights = [mean(cells, bits, each, "validation") for each in (LABELS, *temperatures)]
            panel.plot(heights[:1], color=colour, marker=marker, linestyle="")
            places = range(1, len(heights))
            panel.plot(places, heights[1:], color=colour, marker=marker, linewidth=1.2, label=f"{bits} bits")
        panel.set_xticks(
            range(len(temperatures) + 1), ["labels", *(f"T = {each:g}" for each in temperatures)]
        )
        panel.set(title="Temperature of soft targets and width of weights", ylabel="accuracy, validation, %")
        panel.legend(frameon=False, fontsize=8)
        return figure


def main(words: list[str] | None = None) -> list[Cell]:
    """Measure what is missing, and print the page or write it; return the cells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--temperatures", nargs="*", type=float, default=list(TEMPERATURES))
    parser.add_argument("--bits", nargs="*", type=int, default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    chosen = parsed(parser, words, page="the page and the picture")
    wanted = [
        (bits, temperature, seed)
        for seed in chosen.seeds
        for bits in chosen.bits
        for temperature in (LABELS, *chosen.temperatures)
    ]
    with place_of(RESULTS, chosen.quick) as keep:
        cells = run(wanted, keep, chosen.workers, chosen.quick)
        results = json.loads(keep.read_text(encoding="utf-8"))
    if chosen.write:
        write_text(RESULTS.with_suffix(".md"), page(results))
        save(picture(cells), RESULTS.with_suffix(".svg"))
    print(page(results))
    return cells


if __name__ == "__main__":
    with report_errors():
        main()
