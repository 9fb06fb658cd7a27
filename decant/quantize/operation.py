"""Quantize: round weights, and the inputs of layers where asked, after a training or with one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from decant.checkpoints.activations import RecurrentGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.finish import Result, finished
from decant.compression.given import check_given
from decant.examples import Splits
from decant.networks.layers import Summand
from decant.quantize.params import QuantizeParams
from decant.quantize.quantizable import rounded_layers
from decant.quantize.recipe import Recipe
from decant.recipes import recipe_of
from decant.training.run import Run


def quantize(
    parent: Checkpoint,
    recipe: QuantizeParams | Mapping[str, Any],
    splits: Splits,
    *,
    teacher: Checkpoint | None = None,
    run: Run | None = None,
) -> Result:
    """Return the parent with its weights and, where asked, the inputs of its layers rounded to few levels.

    Weights alone make the file smaller and no runtime faster; inputs of 8 bits too do that, where the
    processor multiplies integers.

    Args:
        parent: The model to quantize; untouched.
        recipe: Scheme, activations, rounding and the rest, with the keys of params.yaml.
        splits: Calibration and training look at `train`, the choice of widths at `validation`.
        teacher: What budgets that are shares refer to, and whose soft targets a training takes; the parent
            where None.
        run: Its name, its seed, and where an interrupted training is resumed from.

    Raises:
        DecantError: The recipe is not valid, a weight is quantized already, or the budget cannot be met.
    """
    check_given(parent, splits, teacher)
    block, run, teacher = recipe_of(QuantizeParams, recipe, splits.sizes), run or Run(), teacher or parent
    carried = Recipe(block, parent, teacher, splits.train, splits.validation)
    result = carried.trained(run) if block.train else carried.rounded(run.seed)
    return finished(
        result.before,
        result.model,
        result.untouched,
        curve=result.curve,
        tables=result.tables,
        facts=result.facts,
        note=beside_layers(result.model),
        promises=result.promises,
    )


def beside_layers(model: Checkpoint) -> str:
    """Return what is rounded beside weights and the inputs of layers, which are all that the ledger has."""
    layers = rounded_layers(model.module).values()
    places = [name for name in model.grids if name not in layers]
    sides = [name for name in places if isinstance(model.module.get_submodule(name), Summand)]
    steps = [name for name in places if isinstance(model.grids[name], RecurrentGrid)]
    others = [name for name in places if name not in (*sides, *steps)]
    said = {
        "sides of residual additions are rounded to 8 bits as well": sides,
        "results of convolutions are rounded to 8 bits as well, where they come to": others,
        "states of recurrent layers are rounded to 8 bits as well": steps,
    }
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in said.items() if names)
