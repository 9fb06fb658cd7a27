"""Which weights of a network can be quantized, and where their output channels are."""

from __future__ import annotations

from torch import Tensor, nn

from decant.networks.calls import Kind
from decant.networks.record import record_of


def quantizable(module: nn.Module) -> dict[str, tuple[Tensor, int]]:
    """Return each weight that can be quantized, by name, with the axis of its output channels.

    These are all that the network multiplies by, wherever they live: in linear layers, convolutions,
    recurrent layers and attention, or as parameters that a function reads; and embeddings, whose rows are
    what a channel is elsewhere. They are in the order in which a pass first uses them. The axis is 0, but 1
    for transposed convolutions [I, O / groups, ...], where with groups the channels at the same place of each
    share a scale, and the last one for a parameter that stands on the right of a product. Biases, norms and
    what is added, as positions are, are left alone: they are few and sensitive.

    Without embeddings these are `compressible`'s, in the same order.
    """
    return {
        name: (module.get_parameter(name), weight.axis) for name, weight in record_of(module).weights.items()
    }


def first_and_last(module: nn.Module) -> set[str]:
    """Return the weight that a pass uses first, and the one that it uses last, by name."""
    used = [call.weight for call in record_of(module).calls if call.weight]
    return {used[0], used[-1]} if used else set()


def rounded_layers(module: nn.Module) -> dict[str, str]:
    """Return the layers whose inputs can be rounded, by weight; tables have indices for inputs."""
    weights = record_of(module).weights.items()
    return {
        name: weight.layer for name, weight in weights if weight.layer and weight.kind is not Kind.EMBEDDING
    }


def without_layer(module: nn.Module) -> dict[str, str]:
    """Return why there is no layer whose inputs could be rounded, by weight; nothing of tables."""
    weights = record_of(module).weights.items()
    return {name: weight.why for name, weight in weights if weight.why and weight.kind is not Kind.EMBEDDING}
