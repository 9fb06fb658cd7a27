"""Stages `stability` and `stability-teacher`: python -m tasks.stability <model>"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from decant.checkpoints.checkpoint import Checkpoint
from decant.examples import Examples
from decant.networks.execution import make_deterministic, predict
from decant.networks.next_tokens import scoring
from decant.outputs import write_json
from decant.targets import Tokens
from tasks.pipeline import predictions, splits
from tasks.pipeline.lineages import TEACHER
from tasks.pipeline.models import load_models, load_seeds
from tasks.pipeline.params import read_section
from tasks.pipeline.stage import run
from tasks.stability.corrupted import Cell, answers, cells, fitting_of
from tasks.stability.damage import Answers
from tasks.stability.report import report

FOLDER = Path("stability")
CORRUPTED = FOLDER / f"{TEACHER}.npy"


def main(model: str) -> None:
    """Read a model, the teacher, and what both answer; write stability/<model>.json and its details.

    The teacher's own stage writes what it answers to corrupted examples, which all others read.
    """
    make_deterministic(read_section("threads.evaluate", int))
    models, test = load_models(TEACHER, model), splits.read(splits.TEST)
    fit = fitting_of(test)
    every = cells(fit, len(test))
    network = _network(models[model], test)
    ours = Answers(_clean(model, network, test), answers(network, test.images, every))
    if model == TEACHER:
        predictions.write(CORRUPTED, ours.corrupted, predictions.sources_of(TEACHER))
    theirs = ours if model == TEACHER else _of_teacher(models[TEACHER], test, every)
    seeds = [predict(_network(each, test), test.images).float() for each in load_seeds(model)]
    row, details = report(model, (models[model], models[TEACHER]), (ours, theirs), test, fit, every, seeds)
    write_json(FOLDER / f"{model}.json", row)
    write_json(FOLDER / f"{model}.details.json", details)


def _network(model: Checkpoint, test: Examples) -> Callable[..., Any]:
    """Return what gives the answers that `evaluate` keeps."""
    return scoring(model.module) if isinstance(test.target, Tokens) else model.module


def _clean(name: str, network: Callable[..., Any], test: Examples) -> Tensor:
    """Return what a model answers to the test split [N, M], as `evaluate` wrote it."""
    width = predict(network, test.images[:1]).shape[1]
    place, sources = predictions.path_of(name), predictions.sources_of(name)
    return predictions.read(place, (len(test), width), sources, predictions.stage_of(name))


def _of_teacher(teacher: Checkpoint, test: Examples, every: list[Cell]) -> Answers:
    """Return what the teacher answers, as its own stages wrote it."""
    clean = _clean(TEACHER, _network(teacher, test), test)
    rows = sum(len(cell.indices) for cell in every)
    sources = predictions.sources_of(TEACHER)
    return Answers(
        clean, predictions.read(CORRUPTED, (rows, clean.shape[1]), sources, f"stability-{TEACHER}")
    )


if __name__ == "__main__":
    run(main)
