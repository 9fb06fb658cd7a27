"""Which weights of a network can be quantized, and where their output channels are."""

from __future__ import annotations

from torch import Tensor, nn

Rows = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear | nn.Embedding
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def quantizable(module: nn.Module) -> dict[str, tuple[Tensor, int]]:
    """Return each weight that can be quantized, by name, with the axis of its output channels.

    These are the weights of convolutions (grouped, depthwise and dilated ones as well), of linear layers,
    of embeddings, whose rows are what a channel is elsewhere, on axis 0; and of transposed convolutions
    [I, O / groups, ...] on axis 1, where with groups the channels at the same place of each share a scale.
    Weights of recurrent layers and of attention's joint projections are left alone, and so are biases and
    batch norms, which are few and sensitive.

    Without transposed convolutions and embeddings these are `compressible`'s, in the same order.
    """
    return {
        f"{name}.weight": (layer.weight, 1 if isinstance(layer, Transposed) else 0)
        for name, layer in module.named_modules()
        if isinstance(layer, Rows | Transposed)
    }
