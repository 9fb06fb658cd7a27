"""Stage `teacher`: python -m tasks.teacher"""

from tasks import data
from tasks.checkpoints import Checkpoint
from tasks.fit import fit_
from tasks.ledger import created
from tasks.models import build, fit_normalization_
from tasks.stages import run
from tasks.steps import begin, write
from tasks.teacher.params import TeacherParams


def main() -> None:
    """Read the images; train the teacher; write it to models/teacher."""
    step = begin("teacher", "teacher", "teacher", TeacherParams)
    train, validation = data.read(data.TRAIN), data.read(data.VALIDATION)
    module = build(step.block.architecture, train.shape, len(train.classes), step.seed)
    fit_normalization_(module, data.pixels(train.images))
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
