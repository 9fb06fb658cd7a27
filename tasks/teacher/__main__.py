"""Stage `teacher`: python -m tasks.teacher"""

from dataclasses import replace

from decant.adoption.adopting import check_network
from decant.compression.finish import Result
from decant.examples import Splits
from decant.networks.architectures import FOREIGN
from decant.recipes import counted
from decant.training.fresh import train
from tasks.pipeline.networks import with_functions
from tasks.pipeline.splits import read_splits
from tasks.pipeline.stage import run
from tasks.pipeline.step import Step, begin, write
from tasks.teacher.params import TeacherParams


def main() -> None:
    """Read the data; train the teacher, or adopt it with its weights; write it to models/teacher."""
    step, splits = begin("teacher", "teacher", "teacher", TeacherParams), read_splits()
    step = replace(step, block=counted(with_functions(step.block), splits.sizes))
    write(step, made(step, splits))


def made(step: Step[TeacherParams], splits: Splits) -> Result:
    """Return the trained or the adopted teacher."""
    if step.block.stored is not None:
        from tasks.teacher.adopted import adopted

        return adopted(step.block, splits)
    assert step.block.training is not None
    architecture = step.block.architecture
    if isinstance(architecture, FOREIGN):
        check_network(architecture, splits.train, step.block.inputs)
    return train(architecture, step.block.training, splits, step.run(), device=step.block.device)


if __name__ == "__main__":
    run(main)
