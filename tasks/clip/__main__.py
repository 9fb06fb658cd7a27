"""Stage `compress` of a model with `op: clip`: python -m tasks.clip <model>"""

from tasks.checkpoints import load_model
from tasks.clip.params import ClipParams
from tasks.constraints import FREE
from tasks.errors import DecantError
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
        earlier = parent.constraints.get(name, FREE)
        cut = step.block.cut.constrain(parent.module.get_parameter(name), earlier.mask)
        try:
            changes[name] = earlier.narrow(range=cut.range, mask=cut.mask)
        except ValueError as error:
            raise DecantError(f"{name} of {step.block.from_}: {error}") from None
    finish(step, parent, parent.narrowed(changes), untouched)


if __name__ == "__main__":
    run(main)
