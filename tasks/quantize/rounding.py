"""A checkpoint with its weights, and then the inputs of its layers, rounded to a few levels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tasks.checkpoints import Checkpoint
from tasks.choice import Choice, choose, held_out
from tasks.constraints import FREE, Constraints, InputGrid
from tasks.data import Examples
from tasks.errors import DecantError
from tasks.grids import affine_grid
from tasks.quantize.params import Activations, QuantizeParams
from tasks.quantize.schemes import Integer, Scheme
from tasks.ranges import Best, MinMax, Span
from tasks.samples import Samples, of_inputs

Rounded = tuple[Checkpoint, dict[str, Choice]]
"""The child, and what was chosen for each weight by name, where the recipe asks for the best."""


def round_weights(
    parent: Checkpoint, names: Sequence[str], block: QuantizeParams, train: Examples
) -> Rounded:
    """Return the parent with the named weights rounded; images are read only to find the best ranges.

    Raises:
        DecantError: A weight has levels already, or holds NaN; names the weight.
    """
    for name in names:
        if parent.constraints.get(name, FREE).levels is not None:
            raise DecantError(
                f"{name} of {block.from_} is quantized already; quantize one of its ancestors instead"
            )
    choices: dict[str, Choice] = {}
    if isinstance(block.scheme, Integer) and isinstance(block.scheme.range, Best):
        used = block.activations.images if block.activations is not None else 0
        choices = _best_for_weights(parent, names, block.scheme, held_out(train, used, block.scheme.range))
    changes = {}
    for name in names:
        try:
            scheme = _with(block.scheme, choices[name].span) if choices else block.scheme
            changes[name] = _added(parent, name, scheme)
        except ValueError as error:
            raise DecantError(f"{name} of {block.from_}: {error}") from None
    return parent.narrowed(changes), choices


def round_inputs(
    parent: Checkpoint, names: Sequence[str], activations: Activations, train: Examples
) -> Rounded:
    """Return the parent with the inputs of the named weights' layers rounded, on grids found on images.

    Raises:
        DecantError: There are no images, inputs are NaN, or a fixed range misses all inputs of a layer.
    """
    layers = [name.removesuffix(".weight") for name in names]
    calibration = train.first(activations.images)
    choices: dict[str, Choice] = {}
    grids: dict[str, InputGrid] = {}
    try:
        samples = of_inputs(parent.module, layers, calibration.images)
        if isinstance(activations.range, Best):
            images = held_out(train, len(calibration), activations.range)
            choices = _best_for_inputs(parent, samples, activations.bits, images)
        for layer in layers:
            span = choices[layer].span if choices else activations.range
            grids[layer] = _grid(span, layer, samples, activations.bits)
    except ValueError as error:
        raise DecantError(f"The activations cannot be rounded so: {error}") from None
    return parent.narrowed({}, grids), {f"{layer}.weight": choice for layer, choice in choices.items()}


def _best_for_weights(
    parent: Checkpoint, names: Sequence[str], scheme: Integer, images: Tensor
) -> dict[str, Choice]:
    def trial(name: str, span: Span) -> Checkpoint:
        return parent.narrowed({name: _added(parent, name, _with(scheme, span))})

    return choose(parent, names, images, trial, bits=scheme.bits, per_channel=scheme.per_channel)


def _best_for_inputs(
    parent: Checkpoint, samples: dict[str, Samples], bits: int, images: Tensor
) -> dict[str, Choice]:
    def trial(layer: str, span: Span) -> Checkpoint:
        return parent.narrowed({}, {layer: _grid(span, layer, samples, bits)})

    return choose(parent, list(samples), images, trial, bits=bits, per_channel=False)


def _grid(span: Span, layer: str, samples: dict[str, Samples], bits: int) -> InputGrid:
    """Return the grid over the range, as far as there are inputs: beyond them a level would be wasted."""
    seen = MinMax().over(samples[layer])
    try:
        return affine_grid(*span.over(samples[layer], bits).intersect(seen).ends(), bits)
    except ValueError as error:
        raise ValueError(f"inputs of {layer}, which lie in {seen.describe()}: {error}") from None


def _added(parent: Checkpoint, name: str, scheme: Scheme) -> Constraints:
    """Return what the weight obeys in the parent, and the levels."""
    earlier = parent.constraints.get(name, FREE)
    return earlier.narrow(levels=scheme.levels(parent.module.get_parameter(name), earlier.mask))


def _with(scheme: Scheme, span: Span) -> Scheme:
    return scheme.model_copy(update={"range": span})
