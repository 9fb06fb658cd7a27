"""Part of what was tasks.models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from decant.examples import pixels


def predict(module: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 250) -> Tensor:
    """Return logits [N, K] of uint8 images [N, C, H, W], without gradients; the caller sets eval mode.

    The batch size is fixed because the last bits of a sum depend on it.
    """
    with torch.no_grad():
        return torch.cat([module(pixels(batch)) for batch in images.split(batch_size)])
