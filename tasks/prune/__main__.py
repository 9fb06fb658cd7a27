"""Stage `compress` of a model with `op: prune`: python -m tasks.prune <model>"""

from __future__ import annotations

from functools import partial

from decant.prune.channels.channel_pruning import Thinned
from decant.prune.channels.structure import Channels
from decant.prune.mask_pruning import Once
from decant.prune.params import PruneParams
from decant.prune.schedule_runs import fresh, run_schedule
from tasks.pipeline.models import load_model
from tasks.pipeline.stage import run
from tasks.pipeline.step import begin_model, finish


def main(model: str) -> None:
    """Read the parent; remove what is least important, as scheduled; write the model."""
    step = begin_model(model, PruneParams)
    parent, teacher = load_model(step.block.from_), load_model("teacher")
    kind = Thinned if isinstance(step.block.structure, Channels) else Once
    once = kind(step.block, parent, teacher, step.seed, partial(fresh, parent))
    result = run_schedule(once, step)
    once.check(result.model)
    finish(step, parent, result.model, once.untouched, result.curve, kept=result.kept, facts=result.facts)
    step.scratch(step.block.from_, "teacher").clear()


if __name__ == "__main__":
    run(main)
