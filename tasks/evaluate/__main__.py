"""Stages `evaluate` and `evaluate-teacher`: python -m tasks.evaluate <model>"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.files import size_bytes
from decant.networks.execution import make_deterministic, predict
from decant.networks.next_tokens import scoring
from decant.outputs import write_json
from decant.targets import Classes, Tokens
from tasks.evaluate.measures import headline, measure
from tasks.pipeline import predictions, splits
from tasks.pipeline.lineages import MODELS, TEACHER
from tasks.pipeline.models import load_models
from tasks.pipeline.params import read_section
from tasks.pipeline.stage import run


def main(model: str) -> None:
    """Read a model, and what the teacher answers; write metrics/<model>.json, its headline, its answers."""
    make_deterministic(read_section("threads.evaluate", int))
    models, test = load_models(TEACHER, model, with_parents=True), splits.read(splits.TEST)
    teacher, measured = models[TEACHER], models[model]
    tokens = isinstance(test.target, Tokens)
    network = scoring(measured.module) if tokens else measured.module
    outputs = predict(network, test.images)
    sizes = splits.bytes_of(splits.TEST) if tokens else None
    predictions.write(predictions.path_of(model), outputs.float(), predictions.sources_of(model))
    reference = outputs.float() if model == TEACHER else _teacher(len(outputs), outputs.shape[1], teacher)
    if test.labels is not None and isinstance(test.target, Classes):
        reference = reference.argmax(1)
    size = size_bytes(MODELS / model)
    row = measure(measured, teacher, outputs, reference, test.labels, size, test.target, sizes)
    write_json(Path("metrics") / f"{model}.json", row)
    write_json(Path("headline") / f"{model}.json", headline(row))


def _teacher(rows: int, width: int, teacher: Checkpoint) -> Tensor:
    """Return what the teacher answers [N, M]: a logit for each class, or as much as a model of it."""
    shape = (rows, len(teacher.classes) or width)
    return predictions.read(predictions.path_of(TEACHER), shape, predictions.sources_of(TEACHER))


if __name__ == "__main__":
    run(main)
