"""Stages `evaluate` and `evaluate-teacher`: python -m tasks.evaluate <model>"""

from __future__ import annotations

from pathlib import Path

from decant.checkpoints.files import DEPLOYED, size_bytes
from decant.networks.execution import make_deterministic, predict
from decant.networks.next_tokens import scoring
from decant.outputs import write_json
from decant.targets import Classes, Tokens
from tasks.evaluate import predictions
from tasks.evaluate.measures import headline, measure
from tasks.pipeline import splits
from tasks.pipeline.lineages import MODELS, TEACHER
from tasks.pipeline.models import load_models
from tasks.pipeline.params import read_section
from tasks.pipeline.stage import run


def main(model: str) -> None:
    """Read a model, the teacher and its predictions; write metrics/<model>.json and its headline.

    The teacher's own evaluation writes its predictions.
    """
    make_deterministic(read_section("threads.evaluate", int))
    models, test = load_models(TEACHER, model, with_parents=True), splits.read(splits.TEST)
    teacher, measured = models[TEACHER], models[model]
    tokens = isinstance(test.target, Tokens)
    network = scoring(measured.module) if tokens else measured.module
    outputs = predict(network, test.images)
    sizes = splits.bytes_of(splits.TEST) if tokens else None
    classes = test.labels is not None and isinstance(test.target, Classes)
    sources = [splits.TEST, *(MODELS / TEACHER / file for file in DEPLOYED)]
    if model == TEACHER:
        predictions.write(predictions.TEACHER, predictions.expected(outputs, classes), sources)
    shape = predictions.expected(outputs, classes).shape
    reference = predictions.read(predictions.TEACHER, tuple(shape), sources)
    size = size_bytes(MODELS / model)
    row = measure(measured, teacher, outputs, reference, test.labels, size, test.target, sizes)
    write_json(Path("metrics") / f"{model}.json", row)
    write_json(Path("headline") / f"{model}.json", headline(row))


if __name__ == "__main__":
    run(main)
