"""Stage `compress` of a model with `op: clip`: python -m tasks.clip <model>"""

from tasks.checkpoints import load_model
from tasks.clip.params import ClipParams
from tasks.constraints import FREE
from tasks.ledger import select
from tasks.stages import run
from tasks.steps import begin_model, finish


def main(model: str) -> None:
    """Read the parent; cut its weights; write the model."""
    step = begin_model(model, ClipParams)
    parent = load_model(step.block.from_)
    chosen, untouched = select(parent.module, step.block.skip)
    changes = {}
    for name in chosen:
        cut = step.block.cut.constrain(parent.module.get_parameter(name))
        changes[name] = parent.constraints.get(name, FREE).narrow(range=cut.range, mask=cut.mask)
    finish(step, parent, parent.narrowed(changes), untouched)


if __name__ == "__main__":
    run(main)
