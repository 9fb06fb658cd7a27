"""Stage `compress` of a model with `op: quantize`: python -m tasks.quantize <model>"""

from tasks import data
from tasks.checkpoints import Checkpoint, load_model
from tasks.quantize.layers import quantizable
from tasks.quantize.params import QuantizeParams
from tasks.quantize.quantized import Recipe
from tasks.stages import run
from tasks.steps import begin_model, finish


def main(model: str) -> None:
    """Read the parent; round its weights and, where asked, its inputs, or train them; write the model."""
    step = begin_model(model, QuantizeParams)
    parent, teacher = load_model(step.block.from_), load_model("teacher")
    recipe = Recipe(step.block, parent, teacher, data.read(data.TRAIN), data.read(data.VALIDATION))
    scratch = step.scratch(step.block.from_, "teacher")
    result = recipe.trained(scratch, step.seed, step.name) if step.block.train else recipe.rounded()
    finish(
        step,
        result.before,
        result.model,
        result.untouched,
        result.curve,
        result.tables,
        facts=result.facts,
        note=of_additions(result.model),
    )
    scratch.clear()


def of_additions(model: Checkpoint) -> str:
    """Return what is rounded beside weights and the inputs of layers, of which alone the ledger tells."""
    layers = {name.removesuffix(".weight") for name in quantizable(model.module)}
    sides = [name for name in model.grids if name not in layers]
    return f"sides of residual additions are rounded to 8 bits as well: {', '.join(sides)}" if sides else ""


if __name__ == "__main__":
    run(main)
