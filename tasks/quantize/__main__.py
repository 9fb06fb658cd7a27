"""Stage `compress` of a model with `op: quantize`: python -m tasks.quantize <model>"""

from tasks import data
from tasks.checkpoints import Checkpoint, load_model
from tasks.integers import EXACT_SUMS, risky
from tasks.models import compressible
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
        notes=notes(result.model),
    )
    scratch.clear()


def notes(model: Checkpoint) -> list[str]:
    """Return what the ledger of weights does not tell: other roundings, and what a program has to know."""
    weights, found = compressible(model.module), []
    layers = {name.removesuffix(".weight") for name in quantizable(model.module)}
    if sides := [name for name in model.grids if name not in layers]:
        found.append(f"sides of residual additions are rounded to 8 bits as well: {', '.join(sides)}")
    if cut := risky(model):
        found.append(
            f"{len(cut)} of {len(weights)} layers have codes of which two products do not fit 16 bits: on "
            f"x86-64 without VNNI, open the model in ONNX Runtime with {EXACT_SUMS} = 1, or take weights of "
            f"7 bits, which need nothing (docs/quantization.md)"
        )
    return found


if __name__ == "__main__":
    run(main)
