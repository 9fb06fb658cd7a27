"""Stage `compress` of a model with `op: distill`: python -m tasks.distill <model>"""

from __future__ import annotations

from decant import examples
from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.ledger import created
from decant.distill.params import DistillParams
from decant.networks.architectures import build, fit_normalization_
from decant.training.fit import fit_
from decant.training.losses import against_teacher
from tasks.pipeline import splits
from tasks.pipeline.models import load_model
from tasks.pipeline.stage import run
from tasks.pipeline.step import begin_model, write


def main(model: str) -> None:
    """Read the teacher; train the student on its soft targets; write the student."""
    step = begin_model(model, DistillParams)
    teacher = load_model(step.block.from_)
    train, validation = splits.read(splits.TRAIN), splits.read(splits.VALIDATION)
    module = build(step.block.student, train.shape, len(train.classes), step.seed)
    fit_normalization_(module, examples.pixels(train.images))
    curve = fit_(
        module,
        step.block.training,
        against_teacher(step.block.loss, teacher.module, step.block.training.label_smoothing),
        train,
        validation,
        scratch=(scratch := step.scratch(step.block.from_)),
        seed=step.seed,
        constraints={},
        title=step.name,
    )
    student = Checkpoint(step.block.student, train.shape, train.classes, module, lineage=teacher.lineage)
    write(step, student, created(student), curve)
    scratch.clear()


if __name__ == "__main__":
    run(main)
