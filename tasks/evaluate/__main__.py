"""Stages `evaluate` and `evaluate-teacher`: python -m tasks.evaluate <model>"""

from pathlib import Path

from tasks import data
from tasks.checkpoints import MODELS, load_model, size_bytes
from tasks.determinism import make_deterministic
from tasks.evaluate import predictions
from tasks.evaluate.measures import headline, measure
from tasks.models import predict
from tasks.stages import run, write_json


def main(model: str) -> None:
    """Read a model, the teacher and its predictions; write metrics/<model>.json and its headline.

    The teacher's own evaluation writes its predictions.
    """
    make_deterministic("evaluate")
    teacher, measured, test = load_model("teacher"), load_model(model), data.read(data.TEST)
    logits = predict(measured.module, test.images)
    if model == "teacher":
        predictions.write(predictions.TEACHER, logits.argmax(1))
    reference = predictions.read(predictions.TEACHER, len(test))
    row = measure(measured, teacher, logits, reference, test.labels, size_bytes(MODELS / model))
    write_json(Path("metrics") / f"{model}.json", row)
    write_json(Path("headline") / f"{model}.json", headline(row))


if __name__ == "__main__":
    run(main)
