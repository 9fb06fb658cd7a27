"""Pruning in rounds, each of which ends with answers as near to the parent's as can be."""

from __future__ import annotations

from dataclasses import replace

from decant.calibration.batch_norms import with_statistics
from decant.compression.surgery import composed
from decant.prune.logit_rounds import LogitRounds
from decant.prune.mask_pruning import MaskPruning, Pruned
from decant.reconstruction.logits import Matched, facts_of, matched, rounded_in, within
from decant.seeds import derive_seed


def run_logit_rounds(pruning: MaskPruning, logits: LogitRounds) -> Pruned:
    """Prune a part and bring the answers near to the parent's, in rounds; the last meets the budget."""
    result, done = Pruned(pruning.parent), list[Matched]()
    budgets = pruning.budgets(logits) if logits.rounds > 1 else [pruning.block.budget]
    for number, budget in enumerate(budgets):
        block = pruning.block.model_copy(update={"budget": budget})
        part = with_norms(pruning, replace(pruning, parent=result.model, block=block).pruned())
        done.append(_matched(pruning, logits, part, derive_seed(pruning.seed, f"logits {number}")))
        result = replace(part, model=done[-1].model, kept=composed(result.kept, part.kept))
    return replace(result, facts={**result.facts, **facts_of(done)})


def with_norms(pruning: MaskPruning, result: Pruned) -> Pruned:
    """Return the result with the statistics of its batch norms estimated anew, where that is asked."""
    if not pruning.block.statistics:
        return result
    model, images = with_statistics(result.model, pruning.train, pruning.block.device)
    return replace(result, model=model, facts={**result.facts, **images})


def _matched(pruning: MaskPruning, logits: LogitRounds, part: Pruned, seed: int) -> Matched:
    """Bring the answers near to those of the parent of all rounds; what is skipped, or has levels, stays."""
    return matched(
        part.model,
        pruning.parent.module,
        pruning.train.first(logits.images).images,
        logits,
        fixed=within(part.model.module, pruning.block.skip) | rounded_in(pruning.parent),
        seed=seed,
    )
