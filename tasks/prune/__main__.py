"""Stage `compress` of a model with `op: prune`: python -m tasks.prune <model>"""

from tasks import data
from tasks.checkpoints import load_model
from tasks.constraints import FREE
from tasks.ledger import select
from tasks.prune.masks import make_masks
from tasks.prune.params import PruneParams
from tasks.stages import run
from tasks.steps import begin_model, finish


def main(model: str) -> None:
    """Read the parent; mask its least important weights; write the model."""
    step = begin_model(model, PruneParams)
    parent = load_model(step.block.from_)
    chosen, untouched = select(parent.module, step.block.skip)
    scores = step.block.criterion.scores(parent.module, data.read(data.TRAIN), step.seed)
    earlier = {name: held.mask for name, held in parent.constraints.items() if held.mask is not None}
    masks = make_masks({n: scores[n] for n in chosen}, earlier, step.block.sparsity, step.block.scope)
    changes = {n: parent.constraints.get(n, FREE).narrow(mask=mask) for n, mask in masks.items()}
    finish(step, parent, parent.narrowed(changes), untouched)


if __name__ == "__main__":
    run(main)
