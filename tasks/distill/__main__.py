"""Stage `compress` of a model with `op: distill`: python -m tasks.distill <model>"""

from tasks import data
from tasks.checkpoints import Checkpoint, load_model
from tasks.distill.params import DistillParams
from tasks.fit import fit_
from tasks.ledger import created
from tasks.losses import against_teacher
from tasks.models import build, fit_normalization_
from tasks.stages import run
from tasks.steps import begin_model, write


def main(model: str) -> None:
    """Read the teacher; train the student on its soft targets; write the student."""
    step = begin_model(model, DistillParams)
    teacher = load_model(step.block.from_)
    train, validation = data.read(data.TRAIN), data.read(data.VALIDATION)
    module = build(step.block.student, train.shape, len(train.classes), step.seed)
    fit_normalization_(module, data.pixels(train.images))
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
