"""Sizes moved between neighbouring layers, so that what is rounded later spreads better: the same function.

Between two layers, what is positively homogeneous in each channel (a rectified linear unit, pooling, a
flattening) lets a factor through: with the first layer's channel i divided by s_i, and the second layer's
weights on it multiplied by s_i, the network computes what it did.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decant.checkpoints.activations import detach_
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import FREE
from decant.errors import DecantError
from decant.examples import Batch, arguments
from decant.lowering.folding import foldable
from decant.networks.execution import answers
from decant.networks.layer_inputs import channel_axis, layer_of, received
from decant.networks.record import record_of
from decant.networks.structure import axis_of, compressible, followers
from decant.reconstruction.hessians import BATCH
from decant.sealed import one_line

SWEEPS = 1000
"""How often all pairs are gone through, at most: they settle within some tens."""

SETTLED = 1e-9
"""How far the logarithm of a factor may be from 0 where nothing is left to move."""

TRIED = 8
"""Images on which a pair is proven."""

UNMOVED = 1e-9
"""By which share of the largest the logits may move, in float64, when a pair is scaled by powers of two."""

FLOAT32 = 1e-4
"""By which share of the largest they may move when all is done and weights are back in float32."""

NOTHING = 2.0**-20
"""What is below this share of a layer's largest is as good as zero, and has no size to make a factor of."""


@dataclass(frozen=True)
class Pair:
    """Two layers, by their weights' names: what the first one gives goes to the second one alone."""

    first: str
    second: str


Balanced = tuple[Checkpoint, list[Pair], dict[str, str]]
"""The same function; the pairs that were balanced; why other weights are no pair with the next one."""


def equalized(checkpoint: Checkpoint, images: Batch) -> Balanced:
    """Return the same function in which each channel's range is the same in both layers of a pair.

    With r_i the largest size of the weights that give channel i, and r'_i of those that read it,
    s_i = sqrt(r_i / r'_i) makes both sqrt(r_i r'_i). As a layer may be in two pairs, all are gone through
    until nothing moves. A channel with a range of next to nothing stays as it is, and none grows, its bias
    included, beyond the largest of its layer: a channel that is its bias alone, as batch norms leave some,
    would fill the grid of all others.

    Helps one scale for a whole tensor, where a few channels make the step coarse for all others. Does not
    help where each output channel has its own scale, which undoes the first layer's part of it; and it may
    widen what passes between the layers, for which rounded inputs pay.

    Args:
        checkpoint: A network whose batch norms are folded; untouched. Masks stay what they are.
        images: Pixels [N, C, H, W], uint8: a few are enough to see which layers follow each other.

    Returns:
        The same function up to float32's rounding; the pairs; and what was left out and why, by the name of
        the first weight.

    Raises:
        DecantError: There are no images, or batch norms are not folded.

    References:
        Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, section
        4.1. https://arxiv.org/abs/1906.04721
    """
    pairs, skipped = pairs_of(checkpoint, images)
    work = copy.deepcopy(checkpoint.module).double()
    alive = {pair: _alive(*ranges(work, pair)) for pair in pairs}
    for _ in range(SWEEPS):
        moved = 0.0
        for pair in pairs:
            given, read = ranges(work, pair)
            factors = _bounded((given / read).sqrt(), alive[pair], _biases(work, pair), given)
            scale_(work, pair, factors)
            moved = max(moved, factors.log().abs().max().item())
        if moved < SETTLED:
            break
    return _with_weights_of(checkpoint, work, images), pairs, skipped


def smoothed(checkpoint: Checkpoint, images: Batch, strength: float) -> Balanced:
    """Return the same function in which a part of what is large in a layer's inputs is in its weights.

    Each input channel of a pair's second layer is divided by s_j = max|x_j|^a / max|w_j|^(1 - a), and its
    weights are multiplied by it; the layer before absorbs the division. At a = 1/2 channel and weights
    reach equally far. A channel that is always next to nothing, or that hardly any weight reads, stays as it
    is, and none grows in the layer before beyond the largest there.

    Helps inputs rounded on one grid where a few channels are far larger than the others, as in
    transformers. Does not help where only weights are rounded, which it makes harder, nor where channels
    are of one size already.

    Args:
        checkpoint: A network whose batch norms are folded; untouched. Masks stay what they are.
        images: Pixels [N, C, H, W], uint8, from which the largest inputs are taken.
        strength: a, strictly between 0 and 1: how much of the difference the weights take over.

    Returns:
        As `equalized` does.

    Raises:
        DecantError: There are no images, or batch norms are not folded.
        ValueError: The strength is not between 0 and 1.

    References:
        Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
        Models, 2022, section 4. https://arxiv.org/abs/2211.10438
    """
    if not 0 < strength < 1:
        raise ValueError(f"The strength must lie between 0 and 1, got {strength:g}")
    pairs, skipped = pairs_of(checkpoint, images)
    work = copy.deepcopy(checkpoint.module).double()
    largest = _largest_inputs(checkpoint.module, pairs, images)
    for pair in pairs:
        given, read = ranges(work, pair)
        inputs = largest[pair.second].double().reshape(len(given), -1).amax(1)
        sizes, wanted = given.maximum(_biases(work, pair)), inputs.pow(strength) / read.pow(1 - strength)
        scale_(work, pair, _bounded(wanted, _alive(inputs, read), sizes, given))
    return _with_weights_of(checkpoint, work, images), pairs, skipped


def _alive(*sizes: Tensor) -> Tensor:
    """Return which channels [C] are more than next to nothing beside the largest, in all of the sizes."""
    return torch.stack([size > NOTHING * size.max() for size in sizes]).all(0)


def _bounded(wanted: Tensor, alive: Tensor, bounded: Tensor, given: Tensor) -> Tensor:
    """Return the factors [C] that are wanted, as far as they let nothing grow beyond what is largest now.

    Where all channels want to grow, they may by what the last of them wants: that is a change of unit.

    Args:
        wanted: By which each channel is to be divided.
        alive: Those that may be moved; the others get 1.
        bounded: Sizes that are divided too, and that the bound is for.
        given: The largest weight that gives each channel.
    """
    if not bool(alive.any()):
        return torch.ones_like(wanted)
    unit = wanted[alive].max().clamp(max=1.0)
    return torch.where(alive, wanted.maximum(unit * bounded / bounded.maximum(given).max()), 1.0)


def pairs_of(checkpoint: Checkpoint, images: Batch) -> tuple[list[Pair], dict[str, str]]:
    """Return the pairs of layers between which sizes can be moved, and why others are none, by first weight.

    Candidates are layers of which one receives what the other gives, as the network's record shows. Each is
    proven by trying: its channels are scaled by drawn powers of two, and by their inverses, and no output may
    move in float64. So whatever lies between the two
    needs no rule of its own: a saturation, a second reader or an addition moves the logits. A channel that is
    always 0 on the images proves nothing, and does no harm either.

    Raises:
        DecantError: There are no images, batch norms are not folded, or the network does not run in float64.
    """
    module = checkpoint.module
    if not len(images):
        raise DecantError(
            "Images have to show which layers follow each other, and there are none; ask for some"
        )
    if followers(module) and (unfolded := foldable(checkpoint)):
        layer = record_of(module).weights[next(iter(unfolded))].layer
        raise DecantError(f"A batch norm follows {layer}; fold them first, it would undo what is moved")
    bare = _bare(checkpoint)
    whole = copy.deepcopy(module).double() if checkpoint.grids or checkpoint.clamps else bare
    tried = images[:TRIED]
    with torch.no_grad():
        before = [_exact(each, tried) for each in (bare, whole)]
    pairs, skipped = list[Pair](), dict[str, str]()
    for pair in _candidates(module):
        if any(pair.first == each.first for each in pairs):
            continue
        reason = _no_pair(bare, pair, tried, before[0]) or _bound(checkpoint, pair)
        if not reason and _no_pair(whole, pair, tried, before[1]):
            reason = "what lies between is clamped or rounded"
        if reason:
            skipped.setdefault(pair.first, reason)
        else:
            pairs.append(pair)
    return pairs, {name: why for name, why in skipped.items() if all(name != pair.first for pair in pairs)}


def _exact(module: nn.Module, images: Batch) -> Tensor:
    """Return what a network in float64 answers."""
    try:
        return answers(module, images, torch.float64)
    except RuntimeError as error:
        raise DecantError(
            "Pairs of layers are proven in float64, and the network does not run in it "
            f"({one_line(error)}); do not equalize it"
        ) from error


def _candidates(module: nn.Module) -> list[Pair]:
    """Return layers that receive something of another layer, in the order in which the first ones run."""
    weights = record_of(module).weights
    names = [name for name in compressible(module) if weights[name].layer]
    feeds = [Pair(*each) for each in record_of(module).feeds if {*each} <= {*names} and each[0] != each[1]]
    return sorted(feeds, key=lambda pair: names.index(pair.first))


def ranges(module: nn.Module, pair: Pair) -> tuple[Tensor, Tensor]:
    """Return the largest size of the weights that give each channel of a pair [C], and that read it [C]."""
    given = _split(module, pair.first).abs().amax((2, 3)).flatten()
    read = _split(module, pair.second).abs().amax((1, 3))
    return given, read.reshape(len(given), -1).amax(1)


def _biases(module: nn.Module, pair: Pair) -> Tensor:
    """Return the size of the bias of each channel of a pair [C]; zeros where there is none."""
    giver = layer_of(module, pair.first)
    if giver.bias is None:
        return giver.weight.new_zeros(_channels(module, pair.first))
    size: Tensor = giver.bias.detach().abs()
    return size


def scale_(module: nn.Module, pair: Pair, factors: Tensor) -> None:
    """Divide a pair's channels by the factors [C], and multiply the weights that read them, in place."""
    giver, given, read = layer_of(module, pair.first), _split(module, pair.first), _split(module, pair.second)
    with torch.no_grad():
        given /= factors.reshape(*given.shape[:2], 1, 1)
        if giver.bias is not None:
            giver.bias /= factors
        # Behind a flattening, a channel is a block of inputs.
        each = factors.repeat_interleave(read.shape[0] * read.shape[2] // len(factors))
        read *= each.reshape(len(read), 1, -1, 1)


def _split(module: nn.Module, name: str) -> Tensor:
    """Return a weight as [groups, outputs of a group, inputs of a group, places], to write to."""
    layer, axis = layer_of(module, name), axis_of(module, name)
    weight, groups = layer.weight.detach(), getattr(layer, "groups", 1)
    split: Tensor = weight.view(groups, len(weight) // groups, weight.shape[1], -1)
    return split.transpose(1, 2) if axis else split


def _channels(module: nn.Module, name: str) -> int:
    """Return how many channels a layer gives."""
    split = _split(module, name)
    return split.shape[0] * split.shape[1]


def _no_pair(bare: nn.Module, pair: Pair, images: Batch, before: Tensor) -> str:
    """Return why a factor does not pass from one layer to the other alone; empty where it does.

    The powers of two are taken back afterwards, to the bit.
    """
    channels, split = _channels(bare, pair.first), _split(bare, pair.second)
    if (split.shape[0] * split.shape[2]) % channels:
        return f"{pair.second} does not read its {channels} channels"
    generator = torch.Generator().manual_seed(0)
    size = torch.randint(3, 9, (channels,), generator=generator)
    power = torch.where(torch.rand(channels, generator=generator) < 0.5, size, -size).double()
    for factors in (power.exp2(), (-power).exp2()):
        scale_(bare, pair, factors)
        with torch.no_grad():
            after = answers(bare, images, torch.float64)
        scale_(bare, pair, 1 / factors)
        if not (after - before).abs().max() <= UNMOVED * before.abs().max():
            return f"its channels do not go to {pair.second} alone, or not through what lets a factor pass"
    return ""


def _bound(checkpoint: Checkpoint, pair: Pair) -> str:
    """Return the constraint of a pair that scaling would break; empty where there is none."""
    for name in (pair.first, pair.second):
        held = checkpoint.constraints.get(name, FREE)
        if held.levels is not None or held.range is not None:
            return f"{name} has {held.describe()}, which scaling would break"
    layer = record_of(checkpoint.module).weights[pair.second].layer
    if layer in checkpoint.grids or layer in checkpoint.clamps:
        return f"inputs of {layer} are clamped or rounded already, which scaling would break"
    return ""


def _largest_inputs(module: nn.Module, pairs: list[Pair], images: Batch) -> dict[str, Tensor]:
    """Return the largest size of each input of each pair's second layer, by its weight's name."""
    names = [pair.second for pair in pairs]
    found: dict[str, Tensor] = {}
    for batch in images.split(BATCH) if names else ():
        for name, calls in received(module, names, arguments(batch)).items():
            for inputs in calls:
                last = inputs.movedim(channel_axis(layer_of(module, name)), -1)
                largest = last.abs().flatten(0, -2).amax(0)
                found[name] = found[name].maximum(largest) if name in found else largest
    return found


def _with_weights_of(checkpoint: Checkpoint, work: nn.Module, images: Batch) -> Checkpoint:
    """Return the checkpoint with the parameters of a float64 copy of its module.

    Raises:
        DecantError: In float, with nothing rounded, it is not the same function.
    """
    child = checkpoint.narrowed({})
    with torch.no_grad():
        for name, parameter in child.module.named_parameters():
            parameter.copy_(work.get_parameter(name))
        before, after = (answers(_bare(each), images[:TRIED], torch.float64) for each in (checkpoint, child))
    gap, largest = (after - before).abs().max().item(), before.abs().max().item()
    if not gap <= FLOAT32 * largest:
        raise DecantError(
            f"Sizes cannot be moved between layers in float32: logits move by up to {gap:.3g}, and the "
            f"largest is {largest:.3g}; leave equalize and smooth out"
        )
    return child


def _bare(checkpoint: Checkpoint) -> nn.Module:
    """Return the network in float64, without the grids and clamps, which hide what its layers do."""
    bare = copy.deepcopy(checkpoint.module).double()
    detach_(bare, {**checkpoint.grids, **checkpoint.clamps})
    return bare
