"""Weights and biases as the integers that processors multiply and add: the same numbers in another form."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from decant.checkpoints.activations import DynamicGrid, InputGrid, stepped_weights
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import FREE, Constraints, Levels
from decant.networks.record import record_of
from decant.networks.structure import compressible, observable

TOP = 255
"""The largest code of a layer's input."""

MIDDLE = 128
"""The code that stands for 0 where integers of both signs are written in uint8."""

SAFE = 64
"""Two products of such a code and an input's fit into 16 bits, where processors without VNNI add them up."""

EXACT_SUMS = "session.x64quantprecision"
"""ONNX Runtime's option, "1", for exact sums of larger codes there."""

ROOM = 2**31 - 1

UNSEEN = 2.0**-25
"""What is smaller than this share of a float32 number does not move it when it is added."""

EXACT = 2.0**-22
"""How far off, as a share of it, a bias in float32 may be that stands for a whole number of steps."""

NOTHING = 1e-20
"""A contribution that no grid and no logit shows; much below it float32 runs out of exponents."""


@dataclass(frozen=True, eq=False)
class Whole:
    """A weight as `(codes - zero_point) * scale`.

    Attributes:
        codes: [O, ...], int8; or uint8 where eight bits have a zero point.
        scale: [O], float32, positive.
        zero_point: [O], in the codes' type; 0 for int8.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    @property
    def steps(self) -> Tensor:
        """The weight in steps of its scale [O, ...], int64."""
        return self.codes.long() - _column(self.zero_point.long(), self.codes)

    def unsigned(self) -> Whole:
        """Return the same numbers as uint8."""
        if self.codes.dtype == torch.uint8:
            return self
        codes, zero_point = ((each.int() + MIDDLE).to(torch.uint8) for each in (self.codes, self.zero_point))
        return Whole(codes, self.scale, zero_point)


def whole(weight: Tensor, held: Constraints) -> Whole | None:
    """Return a constrained weight [O, ...] as integers of 8 bits, with a positive scale per output channel.

    A scale that folding made negative gives its sign to the codes. Codes of few bits are multiplied, and
    their scale divided, by a power of two, as far as they stay within `SAFE`: a bias, which is rounded to
    the product of the input's step and the weight's, is then rounded less.

    Returns:
        None where there are no such integers: no levels, or some that are not whole numbers; a scale for
        each group or input channel.
    """
    levels = held.levels
    if levels is None or levels.group is not None:
        return None
    if not (whole_numbers(levels) and by_channel(levels, weight)):
        return None
    scale = levels.scale.flatten().expand(len(weight)).contiguous()
    signs = torch.where(scale < 0, -1, 1)
    steps, scale = steps_of(weight, held, levels) * _column(signs, weight), scale.abs()
    if steps.abs().max() <= 127:
        largest = steps.abs().flatten(1).amax(1).clamp(min=1)
        shift = torch.floor(torch.log2(SAFE / largest)).clamp(min=0)
        codes = (steps * _column(2**shift, weight)).to(torch.int8)
        return Whole(codes, scale / 2**shift, torch.zeros(len(weight), dtype=torch.int8))
    if levels.zero_point is None:
        return None  # more than 8 bits
    zero_point = levels.zero_point.flatten().expand(len(weight)).long()
    zero_point = torch.where(signs < 0, TOP - zero_point, zero_point)
    return Whole((steps + _column(zero_point, weight)).to(torch.uint8), scale, zero_point.to(torch.uint8))


def with_bias(weight: Whole, bias: Tensor, step: float) -> tuple[Whole, Tensor] | None:
    """Return the weight, and its bias in steps of `step * scale`, so that their sum fits 32 bits.

    A channel whose weights are zero, or so small that float32 would not show what they add to the bias, is
    left with the bias alone, and gets the scale that writes it to 24 bits: its own can be anything.

    Args:
        weight: The weight.
        bias: [O], float32.
        step: The step of the inputs' grid of 8 bits.

    Returns:
        The weight and the bias [O], int32, off by at most half a step; or None where a channel's largest
        sum does not fit.
    """
    reach = TOP * weight.steps.abs().flatten(1).sum(1).double()
    seen = reach * step * weight.scale.double() > (bias.double().abs() * UNSEEN).clamp(min=NOTHING)
    own = (bias.abs() / (2**24 * step)).clamp(min=NOTHING)
    scale = torch.where(seen, weight.scale, torch.where(bias == 0, 1.0, own))
    codes = torch.where(_column(seen, weight.codes), weight.codes, _column(weight.zero_point, weight.codes))
    whole_bias = torch.round(bias.double() / unit(scale, step).double())
    if bool((whole_bias.abs() + torch.where(seen, reach, 0) > ROOM).any()):
        return None
    return Whole(codes, scale, weight.zero_point), whole_bias.to(torch.int32)


def settled(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with each bias rounded as integer kernels hold it; the given one is untouched.

    Where a layer's inputs are rounded to one grid and its weights are integers, kernels add the bias to the
    sums of their products, as a whole number of steps `input step * weight scale`. Half of such a step in a
    bias moves the inputs of the next layer in every picture and place alike, over the edge of a step there
    for one in a hundred, so that what was evaluated would not be what is deployed. Rounded here, once, both
    are one function. Twice is as good as once. Batch norms have to be folded before: where there are some,
    the biases are theirs. It does not help what runs in float32.

    References:
        Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference, 2017, section 2.4. https://arxiv.org/abs/1712.05877
    """
    module = copy.deepcopy(checkpoint.module)
    weights = record_of(module).weights
    for name, parameter in observable(module).items():  # others have no integer kernels
        layer = weights[name].layer
        grid, bias = checkpoint.grids.get(layer), module.get_submodule(layer).bias
        if not isinstance(grid, InputGrid) or not isinstance(bias, Tensor):
            continue
        weight = whole(parameter.detach(), checkpoint.constraints.get(name, FREE))
        fitting = None if weight is None else with_bias(weight, bias.detach(), grid.scale)
        if fitting is not None:
            bias.detach().copy_(fitting[1] * unit(fitting[0].scale, grid.scale))
    return replace(checkpoint, module=module)


def is_settled(weight: Whole, codes: Tensor, bias: Tensor, step: float) -> bool:
    """Say whether a bias [O] is what its codes stand for, but for float32's rounding."""
    stands_for = codes.double() * unit(weight.scale, step).double()
    return bool(((stands_for - bias.double()).abs() <= EXACT * bias.double().abs()).all())


def unit(scale: Tensor, step: float) -> Tensor:
    """Return the step of a bias and of the sums it is added to [O], float32."""
    return scale * torch.tensor(step, dtype=torch.float32)


def steps_of(weight: Tensor, held: Constraints, levels: Levels) -> Tensor:
    """Return the weight in steps of its scale [weight's shape], int64."""
    steps = levels.values[levels.codes(weight)]
    if levels.zero_point is not None:
        steps = steps - levels.spread(levels.zero_point, weight.shape)
    steps = steps if held.mask is None else torch.where(held.mask, steps, 0.0)
    return steps.long()


def risky(checkpoint: Checkpoint) -> list[str]:
    """Return the layers whose integer products overflow in ONNX Runtime unless `EXACT_SUMS` is set.

    These have rounded inputs and codes beyond `SAFE` in int8: symmetric weights of 8 bits, and affine ones of
    7 bits whose channels lie on one side of zero. It does not concern weights in uint8, nor processors with
    VNNI or of other kinds than x86-64.
    """
    found, weights = [], record_of(checkpoint.module).weights
    for name, parameter in observable(checkpoint.module).items():
        layer, held = weights[name].layer, checkpoint.constraints.get(name, FREE)
        grid = checkpoint.grids.get(layer)
        if not isinstance(grid, InputGrid) and not (isinstance(grid, DynamicGrid) and parameter.dim() == 2):
            continue  # multiplied in float32
        if weights[name].calls > 1:
            continue  # written as uint8
        weight = whole(parameter.detach(), held)
        if (
            weight is not None
            and weight.codes.dtype == torch.int8
            and bool((weight.steps.abs() > SAFE).any())
        ):
            found.append(layer)
    return found + _risky_within(checkpoint)


def _risky_within(checkpoint: Checkpoint) -> list[str]:
    """Return the like of weights of LSTM layers that round what they multiply, by the weights' names."""
    weights = record_of(checkpoint.module).weights
    names = [
        n
        for n in stepped_weights(checkpoint.module, checkpoint.grids)
        if n in weights and weights[n].calls == 1
    ]
    numbers = {
        n: whole(checkpoint.module.get_parameter(n).detach(), checkpoint.constraints.get(n, FREE))
        for n in names
    }
    return [
        name for name, each in numbers.items() if each is not None and bool((each.steps.abs() > SAFE).any())
    ]


def exact_sums(checkpoint: Checkpoint) -> str:
    """Return what a program has to know that runs the model's integers; empty where there is nothing."""
    if not (layers := risky(checkpoint)):
        return ""
    return (
        f"{len(layers)} of {len(compressible(checkpoint.module))} layers have codes of which two products do "
        f"not fit 16 bits: on x86-64 without VNNI, open the model in ONNX Runtime with {EXACT_SUMS} = 1, or "
        f"take weights of 7 bits, which need nothing (docs/quantization.md)"
    )


def whole_numbers(levels: Levels) -> bool:
    """Say whether all levels are whole numbers, as integers and signs are, and powers of two are not."""
    return torch.equal(levels.values, levels.values.round()) and levels.values.abs().max().item() <= TOP


def by_channel(levels: Levels, weight: Tensor) -> bool:
    """Say whether no two inputs of an output channel, or of a group, differ in scale."""
    return (
        levels.group is not None
        or levels.scale.numel() == 1
        or (levels.scale.shape == (len(weight), *[1] * (weight.dim() - 1)))
    )


def _column(numbers: Tensor, weight: Tensor) -> Tensor:
    """Return one number for each output channel so that it broadcasts against the weight."""
    return numbers.reshape(-1, *[1] * (weight.dim() - 1))
