"""How a sparsity is shared among layers, and the masks that hold it exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

Scope = Literal["global", "layer"]


def make_masks(
    scores: Mapping[str, Tensor], kept: Mapping[str, Tensor], sparsity: float, scope: Scope
) -> dict[str, Tensor]:
    """Return a mask per weight that is False for the lowest scores; the count is exact, ties included.

    Weights that an earlier mask removed are the first to count, so that masks only ever shrink. Among equal
    scores the later one in order goes first.

    Args:
        scores: Importance by name.
        kept: Earlier masks by name, where there are any; True survives.
        sparsity: Fraction of zeros in [0, 1]; rounded to a whole number of weights over all (`global`), or
            in each layer (`layer`).
        scope: Who competes with whom.

    Raises:
        ValueError: The scores hold NaN.
    """
    for name, score in scores.items():
        if torch.isnan(score).any():
            raise ValueError(f"The scores of {name} hold NaN")
    ranked = {
        name: torch.where(kept[name], score.double(), -math.inf) if name in kept else score.double()
        for name, score in scores.items()
    }
    return SCOPES[scope](ranked, sparsity)


def _global(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    together = torch.cat([score.flatten() for score in scores.values()])
    parts = _survivors(together, sparsity).split([score.numel() for score in scores.values()])
    return {name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def _layer(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    return {
        name: _survivors(score.flatten(), sparsity).reshape(score.shape) for name, score in scores.items()
    }


SCOPES: dict[Scope, Callable[[Mapping[str, Tensor], float], dict[str, Tensor]]] = {
    "global": _global,
    "layer": _layer,
}


def _survivors(scores: Tensor, sparsity: float) -> Tensor:
    """Return True for all but the round(sparsity * N) lowest of scores [N]."""
    order = scores.flip(0).argsort(stable=True)
    mask = torch.ones(len(scores), dtype=torch.bool)
    mask[len(scores) - 1 - order[: round(sparsity * len(scores))]] = False
    return mask
