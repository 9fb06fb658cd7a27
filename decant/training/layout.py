"""How tensors lie in memory while a network is trained."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from decant.networks.calls import Kind
from decant.networks.draws import drawing
from decant.networks.record import example_of, record_of


def layout(module: nn.Module) -> torch.memory_format:
    """Return how tensors lie in memory while training: with the channels last where that is safe.

    It is a sixth faster. But with torch 2.13 on AVX2, two threads, 4 input channels and a 1 x 1 convolution
    of stride 2, the gradient of the weight came out up to 45 % wrong, and other in each run. Nothing of
    the kind was found with multiples of 8, so only these are trained with the channels last. Nor is a
    network that fails so, as one that asks for views of what it computes.
    """
    calls = [call for call in record_of(module).calls if call.kind in (Kind.CONVOLUTION, Kind.TRANSPOSED)]
    pictures = [call for call in calls if len(call.inputs) == 4]
    widths = [call.outputs[1] for call in pictures] + [call.inputs[1] for call in pictures[1:]]
    aligned = bool(widths) and all(width % 8 == 0 for width in widths)
    return torch.channels_last if aligned and _works(module) else torch.contiguous_format


def _works(module: nn.Module) -> bool:
    """Say whether a pass over the example works with the channels last."""
    tried = copy.deepcopy(module).eval()
    lay_out_(tried, torch.channels_last)
    try:
        with torch.no_grad(), drawing(0):
            tried(
                *tree_map_only(Tensor, lambda each: laid_out(each, torch.channels_last), example_of(module))
            )
    except RuntimeError:
        return False
    return True


def laid_out(inputs: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return pictures in a layout, as a copy; anything else as it is."""
    # A clone: `contiguous` leaves the strides of one-channel images alone, as they fit both layouts.
    return inputs.clone(memory_format=memory_format) if inputs.dim() == 4 else inputs


def lay_out_(module: nn.Module, memory_format: torch.memory_format) -> None:
    """Change, in place, how the weights lie in memory; models are evaluated and saved contiguous."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=memory_format)
