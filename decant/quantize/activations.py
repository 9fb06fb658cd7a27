"""The grids on which the inputs of layers are rounded, found on training images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from decant.calibration.grids import affine_grid, check_apart
from decant.calibration.observers import Samples, of_inputs
from decant.calibration.range_search import Choice, choose, held_out
from decant.calibration.ranges import Best, MinMax, Span
from decant.checkpoints.activations import DynamicGrid, Grid, InputGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.errors import DecantError
from decant.examples import Batch, Examples
from decant.networks.calls import Kind
from decant.networks.devices import CPU
from decant.networks.layers import Summand
from decant.networks.record import record_of
from decant.quantize.params import Activations
from decant.quantize.points import points
from decant.quantize.quantizable import rounded_layers
from decant.schema import did_you_mean

SUMS = 8
"""Bits of what goes into an addition. Runtimes add integers of this width alone, whatever they multiply."""


def grids_for(
    parent: Checkpoint,
    widths: Mapping[str, int],
    activations: Activations,
    images: int,
    train: Examples,
    convolutions: Collection[str] = (),
    device: str = CPU,
) -> tuple[dict[str, Grid], dict[str, Choice]]:
    """Return the grid of each layer's inputs by the layer's name, and what was chosen by the weight's.

    The two sides of each residual addition have static grids too, of 8 bits: only so does a runtime add
    integers, and only so does it multiply integers in the convolutions before. In networks of other people
    the modules of `points` have them, for the same reason.

    Args:
        parent: The network that receives the images; layers may cut their inputs already.
        widths: Bits by layer.
        activations: How inputs are rounded.
        images: How many of the training images are sent through.
        train: The training images.
        convolutions: Those whose weights are integers, of which `points` are looked for.
        device: Where the network runs.

    Raises:
        DecantError: There are no images, inputs are NaN, or a fixed range misses all inputs of a layer; or
            inputs are rounded already, or rows are asked of what is no linear layer.
    """
    if again := [layer for layer in widths if layer in parent.grids]:
        raise DecantError(
            f"inputs of {again[0]} are rounded already; quantize an ancestor instead, "
            f"or leave out activations"
        )
    widths = dict(widths) | _sums(parent, activations)
    if activations.dynamic:
        rows = _by_rows(parent, list(widths), activations.rows)
        return {layer: DynamicGrid(bits, rows=layer in rows) for layer, bits in widths.items()}, {}
    read = points(parent.module, [*widths, *parent.grids], convolutions) if convolutions else {}
    widths |= dict.fromkeys(read, SUMS)
    try:
        samples = of_inputs(parent.module, list(widths), train.first(images).images, device=device)
        samples |= {name: samples[name].cut(*ends) for name, ends in read.items()}
        choices: dict[str, Choice] = {}
        if isinstance(activations.range, Best):
            choices = _best(parent, samples, widths, held_out(train, images, activations.range))
        grids: dict[str, Grid] = {
            layer: _grid(choices[layer].span if choices else activations.range, layer, samples, bits)
            for layer, bits in widths.items()
        }
    except ValueError as error:
        raise DecantError(f"The activations cannot be rounded so: {error}") from None
    weights = {layer: name for name, layer in rounded_layers(parent.module).items()}
    return grids, {weights[layer]: choice for layer, choice in choices.items() if layer in weights}


def _by_rows(parent: Checkpoint, layers: Sequence[str], rows: bool | Sequence[str]) -> set[str]:
    """Return the linear layers of which each row of inputs has its own range."""
    kinds = {weight.layer: weight.kind for weight in record_of(parent.module).weights.values()}
    linear = {layer for layer in layers if kinds.get(layer) is Kind.LINEAR}
    if isinstance(rows, bool):
        return linear if rows else set()
    chosen = {name: {layer for layer in layers if f"{layer}.".startswith(f"{name}.")} for name in rows}
    for name, found in chosen.items():
        if not found:
            raise DecantError(f"activations.rows names no layer {name!r}{did_you_mean(name, layers)}")
        if other := sorted(found - linear):
            raise DecantError(f"activations.rows: {other[0]} is no linear layer, and its inputs have no rows")
    return set().union(*chosen.values())


def _sums(parent: Checkpoint, activations: Activations) -> dict[str, int]:
    if activations.dynamic:
        return {}
    called = record_of(parent.module).called
    return {
        name: SUMS
        for name, layer in parent.module.named_modules()
        if isinstance(layer, Summand) and name in called and name not in parent.grids
    }


def _best(
    parent: Checkpoint, samples: Mapping[str, Samples], widths: Mapping[str, int], images: Batch
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
