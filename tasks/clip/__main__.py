"""Stage `compress` of a model with `op: clip`: python -m tasks.clip <model>"""

from __future__ import annotations

from decant.calibration.range_search import tables
from decant.clip.clipping import clip_inputs, clip_weights
from decant.clip.params import ClipParams
from decant.compression.selection import select
from tasks.pipeline import splits
from tasks.pipeline.models import load_model
from tasks.pipeline.stage import run
from tasks.pipeline.step import begin_model, finish


def main(model: str) -> None:
    """Read the parent; cut its weights or the inputs of its layers; write the model."""
    step = begin_model(model, ClipParams)
    parent = load_model(step.block.from_)
    chosen, untouched = select(parent.module, step.block.skip)
    train = splits.read(splits.TRAIN)
    if step.block.target == "weights":
        child, choices = clip_weights(parent, chosen, step.block, train)
        finish(step, parent, child, untouched, tables=tables(choices, {}))
    else:
        child, choices = clip_inputs(parent, chosen, step.block, train)
        finish(step, parent, child, untouched, tables=tables({}, choices))


if __name__ == "__main__":
    run(main)
