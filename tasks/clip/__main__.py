"""Stage `compress` of a model with `op: clip`: python -m tasks.clip <model>"""

from tasks import data
from tasks.checkpoints import load_model
from tasks.choice import tables
from tasks.clip.cuts import clip_inputs, clip_weights
from tasks.clip.params import ClipParams
from tasks.ledger import select
from tasks.stages import run
from tasks.steps import begin_model, finish


def main(model: str) -> None:
    """Read the parent; cut its weights or the inputs of its layers; write the model."""
    step = begin_model(model, ClipParams)
    parent = load_model(step.block.from_)
    chosen, untouched = select(parent.module, step.block.skip)
    train = data.read(data.TRAIN)
    if step.block.target == "weights":
        child, choices = clip_weights(parent, chosen, step.block, train)
        finish(step, parent, child, untouched, tables=tables(choices, {}))
    else:
        child, choices = clip_inputs(parent, chosen, step.block, train)
        finish(step, parent, child, untouched, tables=tables({}, choices))


if __name__ == "__main__":
    run(main)
