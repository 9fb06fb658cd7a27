"""What measures need of a network that predicts the next token, without the logits of many texts at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from decant.networks.execution import as_rows
from decant.targets import next_tokens, scored

TEXTS = 8
"""How many texts are answered at a time: each has a logit for every token at every place."""


def scoring(network: Callable[..., Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what answers `scored` [N, 2 L] of token ids and masks [N, L].

    Args:
        network: Answers logits [N, L, V] of these.
    """

    def scores(ids: Tensor, mask: Tensor) -> Tensor:
        found = []
        for some, there in zip(ids.split(TEXTS), mask.split(TEXTS), strict=True):
            labels = next_tokens(some, there)  # first: a network may change its inputs in place
            found.append(scored(as_rows(network(some, there), len(some)), labels))
        return torch.cat(found)

    return scores
