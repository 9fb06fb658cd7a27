"""Clip: cut weights, or the inputs of layers, to ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from decant.calibration.batch_norms import with_statistics
from decant.calibration.range_search import tried_ranges
from decant.calibration.ranges import Sparsity
from decant.checkpoints.checkpoint import Checkpoint
from decant.clip.clipping import clip_inputs, clip_weights
from decant.clip.params import ClipParams
from decant.compression.finish import Result, finished
from decant.compression.given import check_given
from decant.compression.promises import Promise
from decant.compression.selection import select
from decant.errors import DecantError
from decant.examples import Splits
from decant.networks.record import record_of
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
        DecantError: The recipe is not valid, nothing would change, nothing would be left of a layer or of its
            inputs, or a range does not meet an earlier one.
    """
    check_given(parent, splits, teacher)
    block = recipe_of(ClipParams, recipe, splits.sizes)
    names, untouched = select(parent.module, block.skip)
    if block.target == "weights":
        child, choices = clip_weights(parent, names, block, splits.train)
        promises = [sparse(parent, names, block.cut)] if isinstance(block.cut, Sparsity) else []
        tables = tried_ranges(choices, {})
    else:
        names, hidden = called(parent, names)
        untouched |= hidden
        child, choices = clip_inputs(parent, names, block, splits.train)
        promises, tables = [], tried_ranges({}, choices)
    facts: dict[str, Any] = {}
    if block.statistics:
        child, facts = with_statistics(child, splits.train, block.device)
    return finished(parent, child, untouched, tables=tables, facts=facts, promises=promises)


def called(parent: Checkpoint, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the weights whose layers are called, so that their inputs can be cut, and why others are not.

    Raises:
        DecantError: There are none.
    """
    weights = record_of(parent.module).weights
    if hidden := {name: weights[name].why for name in names if not weights[name].layer}:
        names = [name for name in names if name not in hidden]
    if not names:
        name, why = next(iter(hidden.items()))
        raise DecantError(f"No layer's inputs can be cut: {name}: {why}; take target weights")
    return list(names), hidden


def sparse(parent: Checkpoint, names: Sequence[str], cut: Sparsity) -> Promise:
    """Return the promise that each named weight has as many zeros as were asked for, or as it had before."""

    def broken(model: Checkpoint) -> Iterator[str]:
        for name in names:
            before, weight = parent.module.get_parameter(name), model.module.get_parameter(name)
            asked = max(round(cut.sparsity * weight.numel()), int((before == 0).sum()))
            if (zeros := int((weight == 0).sum())) != asked:
                yield (
                    f"{name}: {asked:,} of {weight.numel():,} weights are to be zero, and {zeros:,} are; "
                    f"build the model anew, and report this if it happens again"
                )

    return broken
