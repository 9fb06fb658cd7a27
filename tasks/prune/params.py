"""The block of a model with `op: prune`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.params import Block
from tasks.prune.criteria import Criterion
from tasks.prune.masks import Scope


class PruneParams(Block):
    """What to remove and how much of it."""

    op: Literal["prune"]
    criterion: Criterion
    sparsity: Annotated[float, Field(gt=0, lt=1)]
    scope: Scope = "global"
    skip: tuple[str, ...] = ()
