"""Stage `teacher`: python -m tasks.teacher"""

from __future__ import annotations

from decant import examples
from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.ledger import created
from decant.networks.architectures import build, fit_normalization_
from decant.training.fit import fit_
from tasks.pipeline import splits
from tasks.pipeline.stage import run
from tasks.pipeline.step import begin, write
from tasks.teacher.params import TeacherParams


def main() -> None:
    """Read the images; train the teacher; write it to models/teacher."""
    step = begin("teacher", "teacher", "teacher", TeacherParams)
    train, validation = splits.read(splits.TRAIN), splits.read(splits.VALIDATION)
    module = build(step.block.architecture, train.shape, len(train.classes), step.seed)
    fit_normalization_(module, examples.pixels(train.images))
    curve = fit_(
        module,
        step.block.training,
        step.block.training.hard_loss(),
        train,
        validation,
        scratch=(scratch := step.scratch()),
        seed=step.seed,
        constraints={},
        title=step.name,
    )
    teacher = Checkpoint(step.block.architecture, train.shape, train.classes, module)
    write(step, teacher, created(teacher), curve)
    scratch.clear()


if __name__ == "__main__":
    run(main)
