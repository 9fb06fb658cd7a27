"""Clip: cut weights, or the inputs of layers, to ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from decant.calibration.range_search import tried_ranges
from decant.checkpoints.checkpoint import Checkpoint
from decant.clip.clipping import clip_inputs, clip_weights
from decant.clip.params import ClipParams
from decant.compression.finish import Result, finished
from decant.compression.selection import select
from decant.examples import Splits
from decant.recipes import recipe_of
from decant.training.run import Run


def clip(
    parent: Checkpoint,
    recipe: ClipParams | Mapping[str, Any],
    splits: Splits,
    *,
    teacher: Checkpoint | None = None,
    run: Run | None = None,
) -> Result:
    """Return the parent with its weights, or the inputs of its layers, cut to ranges.

    It does not help by itself: it costs accuracy and saves nothing, unless what comes after it is rounded to
    few bits.

    Args:
        parent: The model to clip; untouched.
        recipe: Where the cuts are, with the keys of params.yaml.
        splits: Training images give the ranges of inputs, and decide where the best of several is asked for.
        teacher: Not used; every operation takes one.
        run: Not used; every operation takes one.

    Raises:
        DecantError: The recipe is not valid, nothing would change, or a range does not meet an earlier one.
    """
    block = recipe_of(ClipParams, recipe)
    names, untouched = select(parent.module, block.skip)
    if block.target == "weights":
        child, choices = clip_weights(parent, names, block, splits.train)
        return finished(parent, child, untouched, tables=tried_ranges(choices, {}))
    child, choices = clip_inputs(parent, names, block, splits.train)
    return finished(parent, child, untouched, tables=tried_ranges({}, choices))
