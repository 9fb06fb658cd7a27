"""Stage `teacher`: python -m tasks.teacher"""

from dataclasses import replace

from decant.recipes import counted
from decant.training.fresh import train
from tasks.pipeline.splits import read_splits
from tasks.pipeline.stage import run
from tasks.pipeline.step import begin, write
from tasks.teacher.params import TeacherParams


def main() -> None:
    """Read the images; train the teacher; write it to models/teacher."""
    step, splits = begin("teacher", "teacher", "teacher", TeacherParams), read_splits()
    step = replace(step, block=counted(step.block, splits.sizes))
    write(step, train(step.block.architecture, step.block.training, splits, step.run()))


if __name__ == "__main__":
    run(main)
