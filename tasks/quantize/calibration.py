"""The grids that layers round their inputs to, from what training images send through the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tasks.constraints import InputGrid
from tasks.models import predict

TINY = 1e-30


def input_ranges(module: nn.Module, layers: Sequence[str], images: Tensor) -> dict[str, tuple[float, float]]:
    """Return the least and largest value that each layer receives over uint8 images [N, C, H, W]."""
    ranges: dict[str, tuple[float, float]] = {}

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            low, high = ranges.get(name, (torch.inf, -torch.inf))
            ranges[name] = (min(low, inputs[0].min().item()), max(high, inputs[0].max().item()))

        return module.get_submodule(name).register_forward_pre_hook(record)

    handles = [watch(name) for name in layers]
    try:
        predict(module, images)
    finally:
        for handle in handles:
            handle.remove()
    return ranges


def affine_grid(low: float, high: float, bits: int) -> InputGrid:
    """Return the grid of 2^bits points over [low, high], widened to hold 0, which it represents exactly.

    Raises:
        ValueError: The range is empty or not finite.

    References:
        Jacob et al., 2017, section 2.1. https://arxiv.org/abs/1712.05877
    """
    if not (torch.isfinite(torch.tensor([low, high])).all() and low <= high):
        raise ValueError(f"A range of inputs must be finite and ordered, got [{low}, {high}]")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    if scale < TINY:  # constant inputs, or so near to it that 1 / scale is infinite in float32
        scale = 1.0
    return InputGrid(bits, torch.tensor(scale, dtype=torch.float32).item(), round(-low / scale))
