"""Prune: remove what is least important, at once, in rounds or in a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.finish import Result, finished
from decant.compression.given import check_given
from decant.examples import Splits
from decant.prune.channels.channel_pruning import ChannelPruning
from decant.prune.channels.structure import Channels
from decant.prune.logit_runs import run_logit_rounds, with_norms
from decant.prune.mask_pruning import MaskPruning
from decant.prune.params import PruneParams
from decant.prune.schedule_runs import run_schedule
from decant.recipes import recipe_of
from decant.training.run import Run


def prune(
    parent: Checkpoint,
    recipe: PruneParams | Mapping[str, Any],
    splits: Splits,
    *,
    teacher: Checkpoint | None = None,
    run: Run | None = None,
) -> Result:
    """Return the parent without its least important weights, patterns, blocks or channels.

    Each criterion's docstring says when it does not help; zeros among weights make no runtime faster by
    themselves.

    Args:
        parent: The model to prune; untouched.
        recipe: Criterion, allocation, structure, schedule and budget, with the keys of params.yaml.
        splits: What criteria look at, and what schedules train on.
        teacher: What budgets that are shares refer to, and whose soft targets a schedule takes; the parent
            where None.
        run: Its name, its seed, and where an interrupted training is resumed from.

    Raises:
        DecantError: The recipe is not valid, the budget cannot be met or is met already, or a layer would be
            emptied.
    """
    check_given(parent, splits, teacher)
    block, run, teacher = recipe_of(PruneParams, recipe, splits.sizes), run or Run(), teacher or parent
    kind = ChannelPruning if isinstance(block.structure, Channels) else MaskPruning
    pruning = kind(block, parent, teacher, splits, run.seed)
    if block.logits is not None:
        result = run_logit_rounds(pruning, block.logits)
    else:
        result = with_norms(pruning, run_schedule(pruning, run))
    return finished(
        parent,
        result.model,
        pruning.untouched,
        curve=result.curve,
        kept=result.kept,
        facts=result.facts,
        promises=pruning.promises(result),
    )
