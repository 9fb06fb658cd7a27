"""Rounding that learns: modules that sit inside layers while a network is trained, and are gone afterwards.

A learner turns the free weight behind a layer, or the layer's inputs, into what the deployed layer will have,
to the bit, and gives gradients to both the free numbers and its own, such as the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from decant.checkpoints.activations import InputGrid, on_grid
from decant.checkpoints.constraints import Constraints, Levels, nearest_integers
from decant.checkpoints.gradients import passed, straight_through, within
from decant.networks.devices import CPU
from decant.networks.layer_inputs import Arguments, first_of, with_first
from decant.networks.record import same_record
from decant.quantize.schemes import Scheme

LEAST = 0.01
"""What is left of a positive number at least, as a share of where it began."""


class Positive(nn.Module):
    """Positive numbers, such as steps, that are learned as multiples of where they began.

    Adam moves every parameter by about the learning rate, however large it is, so what it moves is a factor
    near 1. Under SGD the numbers go where they would go if they were the parameters themselves: the factor's
    gradient is theirs divided by the start.

    Attributes:
        start: Where they begin, positive.
        factor: The parameter, of the start's shape; 1 at first.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.start = start.detach().clone()
        self.factor = nn.Parameter(torch.ones_like(self.start))

    def forward(self, share: float | Tensor = 1.0) -> Tensor:
        """Return the numbers; the gradient that their parameter gets is multiplied by `share`."""
        numbers: Tensor = _Multiple.apply(self.factor, self.start, share)
        return numbers


class _Multiple(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, factor: Tensor, start: Tensor, share: float | Tensor) -> Tensor:
        ctx.rate = share / start
        return start * factor.clamp(min=LEAST)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        # At the least factor too: else it could never grow again.
        return gradients[0] * ctx.rate, None, None


class WeightLearner(nn.Module):
    """Rounds a weight; each kind says how.

    Attributes:
        held: The range and the mask that the weight came with.
    """

    def __init__(self, held: Constraints) -> None:
        super().__init__()
        self.held = held

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight on its levels, masked; of the weight's shape."""
        raise NotImplementedError

    def levels(self, weight: Tensor) -> Levels:
        """Return the levels that the free weight is rounded to now."""
        raise NotImplementedError

    def masked(self, weight: Tensor) -> Tensor:
        """Return the weight with zeros, and no gradients, where the mask is False."""
        return weight if self.held.mask is None else torch.where(self.held.mask, weight, 0.0)


class Straight(WeightLearner):
    """The scheme's levels; gradients go straight through to the free weight, but not through the mask.

    Levels that are a closed form of the weight, as the scales of signs are, follow it; others stay as they
    were calibrated.

    References:
        Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
        Computation, 2013. https://arxiv.org/abs/1308.3432
    """

    def __init__(
        self, scheme: Scheme, weight: Tensor, held: Constraints, axis: int = 0, *, follows: bool
    ) -> None:
        super().__init__(held)
        self.scheme, self.axis = scheme, axis
        self.fixed = None if follows else scheme.levels(self._shifted(weight), held.mask, axis)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight on its levels, masked; of the weight's shape."""
        return straight_through(self._shifted(weight), self.held.narrow(levels=self.levels(weight)))

    def levels(self, weight: Tensor) -> Levels:
        """Return the levels that the free weight is rounded to now."""
        return self.fixed or self.scheme.levels(self._shifted(weight.detach()), self.held.mask, self.axis)

    def _shifted(self, weight: Tensor) -> Tensor:
        return self.scheme.shifted(weight, self.held.mask, self.axis)


class Steps(WeightLearner):
    """Integers whose steps are learned; zero points stay.

    With w / s the weight in steps and q its level, the rounded weight is (q - z) s, and its derivative in s
    is q - z - w / s between the outermost levels and q - z beyond them. The gradient is divided by
    sqrt(N Q), N weights sharing the step and Q levels on the longer side of zero.

    References:
        Esser et al., Learned Step Size Quantization, 2019, section 2. https://arxiv.org/abs/1902.08153
    """

    def __init__(self, levels: Levels, held: Constraints, shape: torch.Size) -> None:
        super().__init__(held)
        assert levels.integers is not None
        self.grid, self.step, self.ends = levels, Positive(levels.scale), levels.integers
        self.share = (_sharing(levels, held.mask, shape) * _longer_side(levels)).rsqrt()

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight on its levels, masked; of the weight's shape."""
        if self.held.range is not None:
            weight = passed(self.held.range.project(weight.detach()), weight)
        step, zero_point = self.grid.spread(self.step(self.share), weight.shape), self.grid.zero_point
        if zero_point is not None:
            zero_point = self.grid.spread(zero_point, weight.shape)
        rounded: Tensor = _Steps.apply(weight, step, zero_point, self.ends)
        return self.masked(rounded)

    def levels(self, weight: Tensor) -> Levels:
        """Return the levels that the free weight is rounded to now."""
        return replace(self.grid, scale=self.step().detach())


class _Steps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, step: Tensor, zero_point: Tensor | None, ends: tuple[int, int]
    ) -> Tensor:
        plain = weight / step
        steps = plain if zero_point is None else plain + zero_point
        level = nearest_integers(steps, *ends)
        if zero_point is not None:
            level -= zero_point
        ctx.ends = ends
        ctx.save_for_backward(plain, steps, level, step)
        return level * step

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        plain, steps, level, step = ctx.saved_tensors
        ends = (steps.new_full((), end) for end in ctx.ends)
        laid = torch.empty_like(steps).copy_(gradient)  # as the weight lies, whose sums keep their order
        of_steps = within(laid.mul_(step), steps, *ends)
        of_step = (gradient * level).sum_to_size(step.shape)
        of_step += (-of_steps * (plain / step)).sum_to_size(step.shape)
        return of_steps.div_(step), of_step, None, None


def _sharing(levels: Levels, mask: Tensor | None, shape: torch.Size) -> Tensor:
    """Return how many weights share each scale, of the scale's shape; at least 1."""
    kept = torch.ones(shape) if mask is None else mask.float()
    probe = torch.zeros_like(levels.scale).requires_grad_()
    (counts,) = torch.autograd.grad((levels.spread(probe, shape) * kept).sum(), probe)
    return counts.clamp(min=1)


def _longer_side(levels: Levels) -> Tensor:
    """Return the number of levels between zero and the farther end: [], or of the zero points' shape."""
    zero = torch.zeros(()) if levels.zero_point is None else levels.zero_point
    return torch.maximum(levels.values[-1] - zero, zero - levels.values[0]).clamp(min=1)


class TwoScales(WeightLearner):
    """Minus one scale, zero, and another scale, both learned.

    A weight is on the upper level above t max |w|, on the lower one below minus that. The gradient of a scale
    is the sum over its weights; the free weight's is multiplied by the scale of its level, and by 1 at zero.

    References:
        Zhu et al., Trained Ternary Quantization, 2016, section 3. https://arxiv.org/abs/1612.01064
    """

    def __init__(self, threshold: float, weight: Tensor, held: Constraints) -> None:
        super().__init__(held)
        self.threshold = threshold
        signs = self._signs(weight.detach())
        self.upper, self.lower = (Positive(_mean_size(weight.detach(), signs == sign)) for sign in (1, -1))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight on its levels, masked; of the weight's shape."""
        ternary: Tensor = _TwoScales.apply(weight, self._signs(weight.detach()), self.lower(), self.upper())
        return self.masked(ternary)

    def levels(self, weight: Tensor) -> Levels:
        """Return the levels that the free weight is rounded to now."""
        lower, upper = self.lower().detach(), self.upper().detach()
        return Levels(torch.stack([-lower, torch.zeros_like(upper), upper]), torch.ones_like(upper))

    def _signs(self, weight: Tensor) -> Tensor:
        kept = self.masked(weight)
        return torch.where(kept.abs() > self.threshold * kept.abs().max(), kept.sign(), 0.0)


def _mean_size(weight: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean |w| of the chosen weights, []; 1 where there are none, or all are zero."""
    size = weight[chosen].abs().double().mean().float()
    return torch.where(size > 0, size, 1.0)  # the mean of none is NaN, which is not above 0 either


class _TwoScales(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, signs: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        ctx.save_for_backward(signs, lower, upper)
        return torch.where(signs > 0, upper, torch.where(signs < 0, -lower, 0.0))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        (gradient,) = gradients
        signs, lower, upper = ctx.saved_tensors
        slope = torch.where(signs > 0, upper, torch.where(signs < 0, lower, 1.0))
        return gradient * slope, None, -gradient[signs < 0].sum(), gradient[signs > 0].sum()


class Decaying(WeightLearner):
    """Signs whose gradient begins as the straight one and ends near that of the sign itself.

    With x the weight over its channel's deviation, dw_q / dw = k t (1 - tanh^2(t x)), k = max(1 / t, 1),
    where t grows from `first` to `last` over the training, evenly in its logarithm: early every weight is
    updated, late only those near zero, where signs are still undecided.

    Attributes:
        progress: Share of the training that is done, in [0, 1].

    References:
        Qin et al., Forward and Backward Information Retention for Accurate Binary Neural Networks, 2020,
        section 3.3. https://arxiv.org/abs/1909.10788
    """

    def __init__(
        self, scheme: Scheme, held: Constraints, axis: int = 0, *, first: float, last: float
    ) -> None:
        super().__init__(held)
        self.scheme, self.axis, self.first, self.last, self.progress = scheme, axis, first, last, 0.0

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight on its levels, masked; of the weight's shape."""
        shifted = self._shifted(weight)
        value = self.held.narrow(levels=self.levels(weight)).project(shifted.detach())
        return self.masked(passed(value, weight * self.slope(shifted.detach())))

    def slope(self, shifted: Tensor) -> Tensor:
        """Return the derivative at each weight, of its shape, once the scheme has shifted it."""
        t = self.first * (self.last / self.first) ** self.progress
        x = shifted / _deviation(shifted, self.held.mask, self.axis)
        return max(1 / t, 1.0) * t * (1 - torch.tanh(t * x).square())

    def levels(self, weight: Tensor) -> Levels:
        """Return the levels that the free weight is rounded to now."""
        return self.scheme.levels(self._shifted(weight.detach()), self.held.mask, self.axis)

    def _shifted(self, weight: Tensor) -> Tensor:
        return self.scheme.shifted(weight, self.held.mask, self.axis)


def _deviation(weight: Tensor, mask: Tensor | None, axis: int) -> Tensor:
    """Return the root mean square [O, 1, ...] of each channel's surviving weights; 1 where it is zero."""
    kept = torch.ones_like(weight) if mask is None else mask.to(weight)
    others = [dim for dim in range(weight.dim()) if dim != axis]
    counts = kept.sum(others, keepdim=True).clamp(min=1)
    size = ((weight * kept).square().sum(others, keepdim=True) / counts).sqrt()
    return torch.where(size > 0, size, 1.0)


class Entries(WeightLearner):
    """The entries of a codebook, learned; which weight has which entry stays.

    An entry moves as its weights would move on average, each by itself: its gradient is their mean. The
    paper's is their sum, which at a learning rate for weights is thousands of times too far.

    References:
        Han et al., Deep Compression, 2015, section 3. https://arxiv.org/abs/1510.00149
    """

    def __init__(self, levels: Levels, weight: Tensor, held: Constraints) -> None:
        super().__init__(held)
        self.codes = levels.codes(weight.detach())
        self.values = nn.Parameter(levels.values * levels.scale)
        kept = self.codes if held.mask is None else self.codes[held.mask]
        self.share = 1 / kept.flatten().bincount(minlength=len(levels.values)).clamp(min=1)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight on its levels, masked; of the weight's shape."""
        fixed = self.values.detach()
        values = fixed + (self.values - fixed) * self.share  # their own numbers, to the bit
        return self.masked(values[self.codes])

    def levels(self, weight: Tensor) -> Levels:
        """Return the levels that the weight is rounded to now, ascending: entries may have met or crossed."""
        return Levels(values := self.values.detach().unique(), torch.ones((), device=values.device))


class InputLearner(nn.Module):
    """Rounds a layer's inputs on a static grid; each kind says how."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs on their grid, of their shape."""
        raise NotImplementedError

    def grid(self) -> InputGrid:
        """Return the grid that inputs are rounded on now."""
        raise NotImplementedError


class InputStep(InputLearner):
    """A grid whose step is learned as those of `Steps` are; N counts the inputs of one image.

    References:
        Esser et al., Learned Step Size Quantization, 2019, section 2. https://arxiv.org/abs/1902.08153
    """

    def __init__(self, start: InputGrid) -> None:
        super().__init__()
        self.start, self.step = start, Positive(torch.tensor(start.scale))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs on their grid, of their shape."""
        zero, top = self.start.zero_point, 2**self.start.bits - 1
        share = (inputs[0].numel() * max(top - zero, zero)) ** -0.5
        rounded: Tensor = _InputStep.apply(inputs, self.step(share), zero, self.start.bits)
        return rounded

    def grid(self) -> InputGrid:
        """Return the grid that inputs are rounded on now."""
        return replace(self.start, scale=self.step().item())


class _InputStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, step: Tensor, zero: int, bits: int) -> Tensor:
        ctx.ends = -zero, 2**bits - 1 - zero
        value = on_grid(inputs, step, *ctx.ends)
        ctx.save_for_backward(inputs, step, value)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        inputs, step, value = ctx.saved_tensors
        first, last = ctx.ends
        ends = first * step, last * step
        slope = within(inputs, inputs, *ends)
        torch.sub(value, slope, out=slope)
        of_step = _product(gradient, slope) / step
        # Into the same memory where the gradient lies as it does: fresh memory costs as much as the look.
        into = slope if _alike(gradient, slope, inputs) else None
        return within(gradient, inputs, *ends, out=into), of_step, None, None


def _alike(*tensors: Tensor) -> bool:
    """Say whether tensors lie in memory alike, and are of one type."""
    first, *others = tensors
    return all(each.stride() == first.stride() and each.dtype == first.dtype for each in others)


def _product(first: Tensor, second: Tensor) -> Tensor:
    """Return the sum of the products of two tensors of one shape, []; the second is dense in memory."""
    plain = all(each.device.type == CPU and each.dtype == torch.float32 for each in (first, second))
    if torch.compiler.is_compiling() or not plain:
        return (first * second).sum()
    order = sorted(range(second.dim()), key=second.stride, reverse=True)
    return torch.dot(*(each.permute(order).reshape(-1) for each in (first, second)))


class InputClip(InputLearner):
    """A grid from 0 to a clip alpha that is learned.

    The clip's gradient is the sum over inputs at or above it; inputs get theirs between 0 and the clip.

    References:
        Choi et al., PACT: Parameterized Clipping Activation for Quantized Neural Networks, 2018, section 3.
        https://arxiv.org/abs/1805.06085
    """

    def __init__(self, start: InputGrid) -> None:
        super().__init__()
        self.bits = start.bits
        self.clip = Positive(torch.tensor(start.scale * (2**start.bits - 1)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs on their grid, of their shape."""
        rounded: Tensor = _InputClip.apply(inputs, self.clip(), 2**self.bits - 1)
        return rounded

    def grid(self) -> InputGrid:
        """Return the grid that inputs are rounded on now."""
        return InputGrid(self.bits, (self.clip() / (2**self.bits - 1)).item(), 0)


class _InputClip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, clip: Tensor, last: int) -> Tensor:
        ctx.save_for_backward(inputs, clip)
        return on_grid(inputs, clip / last, 0, last)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        inputs, clip = ctx.saved_tensors
        passed = torch.where((inputs >= 0).logical_and_(inputs < clip), gradient, 0.0)
        return passed, (gradient * (inputs >= clip)).sum(), None


def insert_(
    module: nn.Module, weights: Mapping[str, WeightLearner], inputs: Mapping[str, InputLearner]
) -> None:
    """Make a network use learners, in place: each is a part of the module that has its weight.

    So they are trained too. The free weight stays a parameter under its own name. While the network runs,
    what its learner makes of it stands in its place, under all of its names and for whatever reads it: a
    layer, a function, or an operator for a whole layer, as torch has them for attention.

    Args:
        module: The network.
        weights: By the weight's name.
        inputs: By the layer's name; comes after what hooks do to the layer's inputs.
    """
    with same_record(module):
        for name, learner in weights.items():
            path, _, attribute = name.rpartition(".")
            _part(module.get_submodule(path)).add_module(attribute, learner)
        for name, of_inputs in inputs.items():
            layer = module.get_submodule(name)
            _part(layer).add_module("inputs", of_inputs)
            layer.register_forward_pre_hook(_RoundedInputs(of_inputs), with_kwargs=True)
    rounded = _RoundedWeights(_places(module, weights))
    module.register_forward_pre_hook(rounded.put)
    module.register_forward_hook(rounded.put_back, always_call=True)


def take_out_(module: nn.Module) -> None:
    """Undo `insert_`, in place: the module has exactly the names that it had."""
    with same_record(module):
        for part in list(module.modules()):
            part._modules.pop(PART, None)
            for hooks in (part._forward_pre_hooks, part._forward_hooks):
                ours = [key for key, hook in hooks.items() if _is_ours(hook)]
                for key in ours:
                    del hooks[key]
                    part._forward_pre_hooks_with_kwargs.pop(key, None)
                    part._forward_hooks_always_called.pop(key, None)


PART = "rounding"
"""Under which name a module has the learners of its weights and of its inputs."""

Place = tuple[nn.Module, str]
"""A module, and the name of one of its parameters."""


def _part(owner: nn.Module) -> nn.Module:
    """Return a module's part for learners, new where there is none yet."""
    if PART not in owner._modules:
        owner.add_module(PART, nn.Module())
    return owner.get_submodule(PART)


def _places(
    module: nn.Module, weights: Mapping[str, WeightLearner]
) -> list[tuple[list[Place], WeightLearner]]:
    """Return where each weight stands: a tensor of several names stands in several places."""
    places: dict[int, list[Place]] = {}
    for owner in module.modules():
        for attribute, parameter in owner._parameters.items():
            places.setdefault(id(parameter), []).append((owner, attribute))
    return [(places[id(module.get_parameter(name))], learner) for name, learner in weights.items()]


def _is_ours(hook: Any) -> bool:
    return isinstance(hook, _RoundedInputs) or isinstance(getattr(hook, "__self__", None), _RoundedWeights)


class _RoundedWeights:
    """Puts rounded weights in the place of the free ones while a network runs."""

    def __init__(self, learners: list[tuple[list[Place], WeightLearner]]) -> None:
        self.learners = learners
        self.free: list[Tensor] = []

    def put(self, *_: Any) -> None:
        # Not by their names: while validating, the average stands there, which is no parameter.
        for places, learner in self.learners:
            owner, attribute = places[0]
            free = owner._parameters[attribute]
            assert free is not None
            _stand(places, learner(free))
            self.free.append(free)

    def put_back(self, *_: Any) -> None:
        # Not all of them were put where a learner has failed.
        for (places, _learner), free in zip(self.learners, self.free, strict=False):
            _stand(places, free)
        self.free = []


def _stand(places: list[Place], weight: Any) -> None:
    for owner, attribute in places:
        owner._parameters[attribute] = weight


class _RoundedInputs:
    """Rounds what a layer receives."""

    def __init__(self, learner: InputLearner) -> None:
        self.learner = learner

    def __call__(self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Arguments:
        return with_first(self.learner(first_of(given, named)), given, named)
