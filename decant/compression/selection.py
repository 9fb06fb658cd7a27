"""Which weights an operation works on, and why it leaves the other parameters alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from decant.errors import DecantError
from decant.networks.structure import compressible
from decant.schema import did_you_mean

if TYPE_CHECKING:
    from torch import nn


def select(
    module: nn.Module, skip: Sequence[str], weights: Sequence[str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """Return the names of the weights to work on, and why each other parameter is left alone.

    Args:
        module: The network.
        skip: Layers that the recipe leaves out, such as `head`.
        weights: The names of all that the operation can work on; those of `compressible` where None.

    Raises:
        DecantError: The recipe skips a layer that there is not, or all of them.
    """
    weights = list(compressible(module)) if weights is None else list(weights)
    chosen = unskipped(weights, skip)
    reasons = {name: "bias or batch norm, kept in float32" for name, _ in module.named_parameters()}
    reasons |= dict.fromkeys(weights, "named in skip")
    return chosen, {name: reason for name, reason in reasons.items() if name not in chosen}


def unskipped(weights: Sequence[str], skip: Sequence[str]) -> list[str]:
    """Return the names of those weights whose layers a recipe does not skip.

    Raises:
        DecantError: The recipe skips a layer that there is not, or all of them.
    """
    layers = [name.removesuffix(".weight") for name in weights]
    for layer in skip:
        if layer not in layers:
            raise DecantError(f"skip names no layer {layer!r}{did_you_mean(layer, layers)}")
    chosen = [name for name in weights if name.removesuffix(".weight") not in skip]
    if not chosen:
        raise DecantError(f"skip names every layer there is: {', '.join(layers)}")
    return chosen
