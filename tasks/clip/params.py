"""The block of a model with `op: clip`."""

from __future__ import annotations

from typing import Literal

from tasks.clip.ranges import Cut
from tasks.params import Block


class ClipParams(Block):
    """Where each layer's weights are cut, and the layers that are left out."""

    op: Literal["clip"]
    cut: Cut
    skip: tuple[str, ...] = ()
