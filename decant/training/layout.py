"""How tensors lie in memory while a network is trained."""

from __future__ import annotations

import torch
from torch import nn


def layout(module: nn.Module) -> torch.memory_format:
    """Return how tensors lie in memory while training: with the channels last where that is safe.

    It is a sixth faster. But with torch 2.13 on AVX2, two threads, 4 input channels and a 1 x 1 convolution
    of stride 2, the gradient of the weight came out up to 45 % wrong, and other in each run. Nothing of
    the kind was found with multiples of 8, so only these are trained with the channels last.
    """
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    widths = [layer.out_channels for layer in convolutions] + [
        layer.in_channels for layer in convolutions[1:]
    ]
    aligned = bool(widths) and all(width % 8 == 0 for width in widths)
    return torch.channels_last if aligned else torch.contiguous_format


def lay_out_(module: nn.Module, memory_format: torch.memory_format) -> None:
    """Change, in place, how the weights lie in memory; models are evaluated and saved contiguous."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=memory_format)
