"""Stage `compress` of a model with `op: quantize`: python -m tasks.quantize <model>"""

from __future__ import annotations

from decant.checkpoints.checkpoint import Checkpoint
from decant.quantize.params import QuantizeParams
from decant.quantize.quantizable import quantizable
from decant.quantize.recipe import Recipe
from tasks.pipeline import splits
from tasks.pipeline.models import load_model
from tasks.pipeline.stage import run
from tasks.pipeline.step import begin_model, finish


def main(model: str) -> None:
    """Read the parent; round its weights and, where asked, its inputs, or train them; write the model."""
    step = begin_model(model, QuantizeParams)
    parent, teacher = load_model(step.block.from_), load_model("teacher")
    recipe = Recipe(step.block, parent, teacher, splits.read(splits.TRAIN), splits.read(splits.VALIDATION))
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
