"""Weights onto their levels, one layer after another, each on what the rounded ones before send it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import Constraints
from decant.errors import DecantError
from decant.examples import Batch
from decant.networks.devices import CPU, ONE_LAYER, computing_on, find, moved, place_, placed
from decant.networks.record import record_of
from decant.networks.structure import unobservable
from decant.progress import progress_bar
from decant.quantize.quantizable import quantizable
from decant.quantize.rounding.methods import Nearest, Rounding
from decant.reconstruction.in_turn import MomentsInTurn


def round_layers(
    parent: Checkpoint,
    held: Mapping[str, Constraints],
    rounding: Rounding,
    images: Batch,
    reference: nn.Module,
    device: str = CPU,
) -> Checkpoint:
    """Return the parent with the named weights on their levels, each layer making up for those before it.

    Layers are rounded in the order in which they run: each on the inputs that the layers before, rounded
    already, send it, clamped and rounded as the parent's layers do that, towards the outputs that its own
    weight has on the reference's inputs, in all of its calls. Weights whose inputs are not looked at, such as
    those of transposed convolutions, embeddings, recurrent layers and attention, are rounded to nearest.
    Biases stay.

    Args:
        parent: The network, its weights not rounded yet, its input grids attached; it is untouched.
        held: All constraints on each weight, the parent's included, by the weight's name.
        rounding: How.
        images: Pixels [N, C, H, W], uint8, without labels; some ten rows of patches for each input of the
            widest layer. Not read where the rounding needs no moments.
        reference: The network in float, in eval mode, whose layers receive what the parent's would: channels
            in the same units, nothing rounded.
        device: Where both networks run and layers are rounded by their outputs: it holds their weights and
            the moments of one layer. Rounding to nearest is done on the processor.

    Raises:
        DecantError: There are no images; the network does not run one of the layers, or it receives NaN; or
            a weight cannot be rounded so. Names the layer. Or the device is not there, or too small.
    """
    child, satisfied = parent.narrowed({}), dict[str, Constraints]()
    order = list(held)
    if rounding.needs_moments and held:
        if not len(images):
            raise DecantError(f"{rounding.kind} reads images to round by, and there are none; ask for some")
        running = list(quantizable(child.module))
        order = [name for name in running if name in held] + [name for name in held if name not in running]
    there = find(device if rounding.needs_moments else CPU)
    record_of(reference)
    with torch.no_grad(), computing_on(there, ONE_LAYER):
        reference = placed(reference, there)
        place_(child.module, there)
        seen = MomentsInTurn(child.module, order, images, reference)
        for name in progress_bar(order, "rounding", "layers"):
            weight, each = child.module.get_parameter(name), moved(held[name], there)
            found, kept = _fitted(child.module, name, each, rounding, seen)
            weight.copy_(found)
            satisfied[name] = moved(kept, CPU)
        place_(child.module, CPU)
    return child.narrowed({name: satisfied[name] for name in held})


def _fitted(
    module: nn.Module, name: str, held: Constraints, rounding: Rounding, seen: MomentsInTurn
) -> tuple[Tensor, Constraints]:
    """Return one layer's weight on its levels, and its constraints, given the network as rounded so far."""
    weight = module.get_parameter(name)
    if not rounding.needs_moments or name in unobservable(module):
        return Nearest().fitted(weight, held, None)
    moments = seen.at(name)
    try:
        return rounding.fitted(weight, held, moments)
    except ValueError as error:
        raise DecantError(f"{name}: {error}") from None
