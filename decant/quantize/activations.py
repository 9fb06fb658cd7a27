"""The grids on which the inputs of layers are rounded, found on training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from decant.calibration.grids import affine_grid, check_apart
from decant.calibration.observers import Samples, of_inputs
from decant.calibration.range_search import Choice, choose, held_out
from decant.calibration.ranges import Best, MinMax, Span
from decant.checkpoints.activations import DynamicGrid, Grid, InputGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.errors import DecantError
from decant.examples import Examples
from decant.networks.layers import Summand
from decant.quantize.params import Activations

SUMS = 8
"""Bits of what goes into an addition. Runtimes add integers of this width alone, whatever they multiply."""


def grids_for(
    parent: Checkpoint, widths: Mapping[str, int], activations: Activations, images: int, train: Examples
) -> tuple[dict[str, Grid], dict[str, Choice]]:
    """Return the grid of each layer's inputs by the layer's name, and what was chosen by the weight's.

    The two sides of each residual addition have static grids too, of 8 bits: only so does a runtime add
    integers, and only so does it multiply integers in the convolutions before.

    Args:
        parent: The network that receives the images; layers may cut their inputs already.
        widths: Bits by layer.
        activations: How inputs are rounded.
        images: How many of the training images are sent through.
        train: The training images.

    Raises:
        DecantError: There are no images, inputs are NaN, or a fixed range misses all inputs of a layer; or
            inputs are rounded already.
    """
    if again := [layer for layer in widths if layer in parent.grids]:
        raise DecantError(
            f"inputs of {again[0]} are rounded already; quantize an ancestor instead, "
            f"or leave out activations"
        )
    widths = dict(widths) | _sums(parent, activations)
    if activations.dynamic:
        return {layer: DynamicGrid(bits) for layer, bits in widths.items()}, {}
    try:
        samples = of_inputs(parent.module, list(widths), train.first(images).images)
        choices: dict[str, Choice] = {}
        if isinstance(activations.range, Best):
            choices = _best(parent, samples, widths, held_out(train, images, activations.range))
        grids: dict[str, Grid] = {
            layer: _grid(choices[layer].span if choices else activations.range, layer, samples, bits)
            for layer, bits in widths.items()
        }
    except ValueError as error:
        raise DecantError(f"The activations cannot be rounded so: {error}") from None
    return grids, {f"{layer}.weight": choice for layer, choice in choices.items()}


def _sums(parent: Checkpoint, activations: Activations) -> dict[str, int]:
    if activations.dynamic:
        return {}
    return {
        name: SUMS
        for name, layer in parent.module.named_modules()
        if isinstance(layer, Summand) and name not in parent.grids
    }


def _best(
    parent: Checkpoint, samples: Mapping[str, Samples], widths: Mapping[str, int], images: Tensor
) -> dict[str, Choice]:
    """Return the range of each layer's inputs that moves the answers least, among layers of each width."""
    choices: dict[str, Choice] = {}
    for bits in sorted(set(widths.values())):

        def trial(layer: str, span: Span, bits: int = bits) -> Checkpoint:
            return parent.narrowed({}, {layer: _grid(span, layer, samples, bits)})

        layers: Sequence[str] = [layer for layer, width in widths.items() if width == bits]
        choices |= choose(parent, layers, images, trial, bits=bits, per_channel=False)
    return choices


def _grid(span: Span, layer: str, samples: Mapping[str, Samples], bits: int) -> InputGrid:
    """Return the grid over the range, as far as there are inputs: beyond them a level would be wasted."""
    seen = MinMax().over(samples[layer])
    try:
        kept = span.over(samples[layer], bits).intersect(seen)
        grid = affine_grid(*kept.ends(), bits)
    except ValueError as error:
        raise ValueError(f"inputs of {layer}, which lie in {seen.describe()}: {error}") from None
    check_apart(layer, seen, kept, grid)
    return grid
