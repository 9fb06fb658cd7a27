"""A checkpoint with its weights, or the inputs of its layers, cut to ranges."""

from __future__ import annotations

from collections.abc import Sequence

from decant.calibration.grids import affine_grid, check_apart, symmetric_levels
from decant.calibration.observers import Samples, of_inputs
from decant.calibration.range_search import Choice, choose, held_out
from decant.calibration.ranges import BITS, Best, MinMax, Span, Sparsity, Threshold
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import FREE, Constraints, Range
from decant.clip.params import ClipParams
from decant.errors import DecantError
from decant.examples import Batch, Examples
from decant.networks.record import record_of
from decant.networks.structure import axis_of

Clipped = tuple[Checkpoint, dict[str, Choice]]
"""The child, and what was chosen for each weight by name, where the recipe asks for the best."""


def clip_weights(parent: Checkpoint, names: Sequence[str], block: ClipParams, train: Examples) -> Clipped:
    """Return the parent with the named weights cut; images are read only to find the best ranges.

    Raises:
        DecantError: A range does not meet an earlier one, or a weight holds NaN; names the weight.
    """
    choices: dict[str, Choice] = {}
    if isinstance(block.cut, Best):
        choices = _best_for_weights(parent, names, block.cut, train)
    changes = {}
    for name in names:
        try:
            changes[name] = _added(parent, name, choices[name].span if choices else block.cut)
        except ValueError as error:
            raise DecantError(f"{name} of {block.from_}: {error}") from None
    return parent.narrowed(changes), choices


def clip_inputs(parent: Checkpoint, names: Sequence[str], block: ClipParams, train: Examples) -> Clipped:
    """Return the parent with the inputs of the named weights' layers cut, to ranges found on images.

    Raises:
        DecantError: There are no images, inputs are NaN, or a range does not meet an earlier one.
    """
    layers = {name: record_of(parent.module).weights[name].layer for name in names}
    assert isinstance(block.cut, Span)  # ClipParams refuses the other cuts
    calibration = train.first(block.images)
    choices: dict[str, Choice] = {}
    clamps: dict[str, Range] = {}
    try:
        samples = of_inputs(
            parent.module,
            list(layers.values()),
            calibration.images,
            per_channel=block.cut.per_channel,
            device=block.device,
        )
        if isinstance(block.cut, Best):
            choices = _best_for_inputs(
                parent, samples, block.cut, held_out(train, len(calibration), block.cut)
            )
        for layer in layers.values():
            span = choices[layer].span if choices else block.cut
            clamps[layer] = span.over(samples[layer])
            check_apart(layer, MinMax().over(samples[layer]), clamps[layer], parent.grids.get(layer))
        child = parent.narrowed({}, clamps=clamps)
    except ValueError as error:
        raise DecantError(f"{block.from_} cannot be clipped so: {error}") from None
    return child, {name: choices[layer] for name, layer in layers.items() if layer in choices}


def _added(parent: Checkpoint, name: str, cut: Span | Threshold | Sparsity) -> Constraints:
    """Return the constraints of the weight in the parent, and the cut."""
    earlier = parent.constraints.get(name, FREE)
    new = cut.constrain(parent.module.get_parameter(name), earlier.mask, axis_of(parent.module, name))
    return earlier.narrow(range=new.range, mask=new.mask)


def _best_for_weights(
    parent: Checkpoint, names: Sequence[str], best: Best, train: Examples
) -> dict[str, Choice]:
    bits = best.bits or BITS

    def trial(name: str, span: Span) -> Checkpoint:
        held = _added(parent, name, span)
        if held.levels is None:
            weight = held.project(parent.module.get_parameter(name))
            axis = axis_of(parent.module, name)
            threshold = MinMax().threshold(weight, held.mask, bits, per_channel=best.per_channel, axis=axis)
            held = held.narrow(levels=symmetric_levels(threshold, bits))
        return parent.narrowed({name: held})

    images = held_out(train, 0, best)
    return choose(parent, names, images, trial, bits=bits, per_channel=best.per_channel)


def _best_for_inputs(
    parent: Checkpoint, samples: dict[str, Samples], best: Best, images: Batch
) -> dict[str, Choice]:
    bits = best.bits or BITS

    def trial(layer: str, span: Span) -> Checkpoint:
        clamp = span.over(samples[layer])
        grid = parent.grids.get(layer) or affine_grid(*clamp.ends(), bits)
        return parent.narrowed({}, {layer: grid}, {layer: clamp})

    return choose(parent, list(samples), images, trial, bits=bits, per_channel=best.per_channel)
