"""Stages `evaluate` and `evaluate-teacher`: python -m tasks.evaluate <model>"""

from pathlib import Path

from tasks import data
from tasks.checkpoints import MODELS, load_model, size_bytes
from tasks.determinism import make_deterministic
from tasks.evaluate.measures import headline, measure
from tasks.models import predict
from tasks.stages import run, write_json


def main(model: str) -> None:
    """Read a model and the teacher; write metrics/<model>.json and its headline."""
    make_deterministic()
    teacher, measured, test = load_model("teacher"), load_model(model), data.read(data.TEST)
    reference = predict(teacher.module, test.images)
    logits = reference if model == "teacher" else predict(measured.module, test.images)
    row = measure(measured, teacher, logits, reference, test.labels, size_bytes(MODELS / model))
    write_json(Path("metrics") / f"{model}.json", row)
    write_json(Path("headline") / f"{model}.json", headline(row))


if __name__ == "__main__":
    run(main)
