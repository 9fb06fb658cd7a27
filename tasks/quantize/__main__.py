"""Stage `compress` of a model with `op: quantize`: python -m tasks.quantize <model>"""

from tasks import data
from tasks.checkpoints import load_model
from tasks.choice import Choice, tables
from tasks.ledger import select
from tasks.quantize.params import QuantizeParams
from tasks.quantize.rounding import round_inputs, round_weights
from tasks.stages import run
from tasks.steps import begin_model, finish


def main(model: str) -> None:
    """Read the parent; round its weights and, where asked, its activations; write the model."""
    step = begin_model(model, QuantizeParams)
    parent, train = load_model(step.block.from_), data.read(data.TRAIN)
    chosen, untouched = select(parent.module, step.block.skip)
    child, of_weights = round_weights(parent, chosen, step.block, train)
    of_inputs: dict[str, Choice] = {}
    if step.block.activations is not None:
        child, of_inputs = round_inputs(child, chosen, step.block.activations, train)
    finish(step, parent, child, untouched, tables=tables(of_weights, of_inputs))


if __name__ == "__main__":
    run(main)
