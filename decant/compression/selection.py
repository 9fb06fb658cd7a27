"""Which weights an operation works on, and why it leaves the other parameters alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from decant.errors import DecantError
from decant.networks.record import record_of
from decant.networks.roles import roles
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
        skip: What the recipe leaves out, as `unskipped`.
        weights: The names of all that the operation can work on; those of `compressible` where None.

    Raises:
        DecantError: There is none; or the recipe skips a layer that there is not, or all of them.
    """
    known, every = record_of(module).weights, roles(module)
    weights = list(compressible(module)) if weights is None else list(weights)
    if not weights:
        name, why = next(iter(every.items()), ("the network", "it has no parameters"))
        raise DecantError(
            f"No weight of the network can be compressed ({name}: {why}); make what multiplies its inputs a "
            "parameter for each layer"
        )
    chosen = unskipped(weights, skip, {name: weight.names for name, weight in known.items()})
    reasons = every | {n: w.why for n, w in known.items() if w.why and every[n] != "embedding"}
    reasons |= dict.fromkeys(weights, "named in skip")
    return chosen, {name: reason for name, reason in reasons.items() if name not in chosen}


def unskipped(
    weights: Sequence[str], skip: Sequence[str], names: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """Return the names of those weights that a recipe does not skip.

    Args:
        weights: By their first names.
        skip: Weights; or layers and larger modules, which stand for all weights in them: `head` for
            `head.weight`, `lstm` for its four, `encoder` for what its layers have.
        names: All names of the network's weights, tables too, by the first: of tied ones any may be given.

    Raises:
        DecantError: The recipe skips a layer that there is not, or all of them.
    """
    every = {name: (name,) for name in weights} | {first: (*each,) for first, each in (names or {}).items()}
    layers = sorted({_layer(name) for each in every.values() for name in each})
    for layer in skip:
        if not any(_within(name, layer) for each in every.values() for name in each):
            raise DecantError(f"skip names no layer {layer!r}{did_you_mean(layer, layers)}")
    chosen = [name for name in weights if not any(_within(each, s) for each in every[name] for s in skip)]
    if not chosen:
        raise DecantError(f"skip names every layer there is: {', '.join(_unique(map(_layer, weights)))}")
    return chosen


def _within(name: str, place: str) -> bool:
    """Say whether a weight is, or lies in, what is named."""
    return name == place or name.startswith(f"{place}.")


def _layer(name: str) -> str:
    """Return what has a weight: a module, or the weight itself where it is the network's own."""
    return name.rpartition(".")[0] or name


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
