"""The LSTM layers whose inputs and states are rounded, so that they can be multiplied as integers."""

from __future__ import annotations

from collections.abc import Mapping

from decant.checkpoints.activations import RecurrentGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.errors import DecantError
from decant.networks.recurrence import steppable
from decant.quantize.params import Activations
from decant.quantize.schemes import Integer, Scheme

BITS = 8
"""Of inputs and states, in the kernel that ONNX Runtime has."""


def recurrent_grids(
    parent: Checkpoint, schemes: Mapping[str, Scheme], activations: Activations
) -> tuple[dict[str, RecurrentGrid], set[str]]:
    """Return grids for LSTM layers by the name of the LSTM, and the weights of these layers.

    They are dynamic and of 8 bits, for layers all of whose weights get symmetric integers, with a step for
    each output or one for all. Other layers keep inputs and states in float32: those of an LSTM whose inputs
    span decades, as power spectra do, are better off so, and groups in one of their weights say it.

    Args:
        parent: The network.
        schemes: Of each weight that is rounded, by name.
        activations: How inputs are rounded.

    Raises:
        DecantError: The LSTM rounds its inputs already.
    """
    grids: dict[str, RecurrentGrid] = {}
    weights: set[str] = set()
    for name, layers in steppable(parent.module).items():
        fitting = {at: own for at, own in enumerate(layers) if all(_fits(schemes.get(w)) for w in own)}
        if not fitting or not activations.dynamic or activations.bits != BITS:
            continue
        if name in parent.grids:
            raise DecantError(
                f"inputs of {name} are rounded already; quantize an ancestor, or leave out activations"
            )
        grids[name] = RecurrentGrid(BITS, tuple(fitting))
        weights |= {weight for own in fitting.values() for weight in own}
    return grids, weights


def _fits(scheme: Scheme | None) -> bool:
    return isinstance(scheme, Integer) and scheme.symmetric and scheme.group is None
