"""Stage `compress` of a model with `op: finetune`: python -m tasks.finetune <model>"""

from __future__ import annotations

import copy
from dataclasses import replace

from decant.finetune.params import FinetuneParams
from decant.training.fit import fit_
from decant.training.losses import against_teacher, warning
from tasks.pipeline import splits
from tasks.pipeline.models import load_model
from tasks.pipeline.stage import run
from tasks.pipeline.step import begin_model, finish


def main(model: str) -> None:
    """Read the parent; train it with its masks, levels and ranges held; write the model."""
    step = begin_model(model, FinetuneParams)
    parent, teacher = load_model(step.block.from_), load_model("teacher")
    training, soft = step.block.training, step.block.loss
    if soft is None:
        loss = training.hard_loss()
    else:
        loss = against_teacher(soft, teacher.module, training.label_smoothing)
    child = replace(parent, module=copy.deepcopy(parent.module))
    curve = fit_(
        child.module,
        training,
        loss,
        splits.read(splits.TRAIN),
        splits.read(splits.VALIDATION),
        scratch=(scratch := step.scratch(step.block.from_, "teacher")),
        seed=step.seed,
        constraints=parent.constraints,
        title=step.name,
    )
    words = warning(soft, parent.narrowest)
    finish(step, parent, child, {}, curve, facts={"warning": words} if words else None)
    scratch.clear()


if __name__ == "__main__":
    run(main)
