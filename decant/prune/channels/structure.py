"""Channels as a structure of pruning: what a number of them may be."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from decant.schema import Count, Section


class Channels(Section):
    """Whole channels, taken out of the network: fewer multiplications on any processor, in any runtime.

    A channel goes from every layer that it passes through: residual additions, batch norms, grouped
    convolutions, and what reads it behind a flattening. What is left in each layer is a multiple of
    `round_to`, which `auto` finds by timing the network's shapes on this machine, and never below `minimum`.
    `batch` is how many images at once `auto` and a latency budget are for.
    Does not help size as much as single weights do at the same accuracy.

    References:
        Li et al., Pruning Filters for Efficient ConvNets, 2016. https://arxiv.org/abs/1608.08710
        Fang et al., DepGraph: Towards Any Structural Pruning, 2023. https://arxiv.org/abs/2301.12900
    """

    kind: Literal["channels"] = "channels"
    round_to: Count | Literal["auto"] = 1
    minimum: Count = 1
    batch: Annotated[int, Field(gt=0, le=4096)] = 1
