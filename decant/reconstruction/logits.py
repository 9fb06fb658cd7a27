"""All free numbers of a network at once, so that it answers as another one does; and what each output counts.

Least squares layer by layer takes all outputs for equally important and knows no layer but its own. Here the
loss is that of the answers: KL(reference || network) of logits, or the squared error of numbers.

References:
    Nocedal and Wright, Numerical Optimization, 2006, chapters 3 and 7.
    Martens, New Insights and Perspectives on the Natural Gradient Method, 2020, sections 8 and 9.
    https://arxiv.org/abs/1412.1193
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import FREE, Constraints, Levels
from decant.errors import DecantError
from decant.examples import Batch, Rows
from decant.networks.augmentation import Augmentation
from decant.networks.devices import device_of, fed, moved
from decant.networks.execution import answers, predict
from decant.networks.layer_inputs import channel_axis, layer_of
from decant.networks.ties import ties
from decant.reconstruction.minimizers import Minimum
from decant.reconstruction.params import Logits

BATCH = 250
"""Images that go through the network at once: fixed, as the last bits of a sum depend on it."""

DIRECTIONS = 32
"""Outputs up to which the Gauss-Newton matrix is exact; of more, so many random sums stand for all."""

FASTER = 5.0
"""How many times as far numbers behind codes move as all others: their unit is a step between levels."""

INSIDE = 0.9
"""How near to the end of what its code stands for a number behind it may begin."""

Apart = Callable[[Tensor, Tensor], Tensor]
"""(found [B, M], expected [B, M]) -> their part of the loss over all rows; shape []."""


# --- what may move


@dataclass(frozen=True)
class Variable:
    """Numbers that make one parameter of a network.

    Attributes:
        start: Where they stand [n].
        parameter: What they make, differentiable.
        held: What the parameter has to satisfy where they stand so.
        allowed: The nearest numbers that they may be.
    """

    start: Tensor
    parameter: Callable[[Tensor], Tensor]
    held: Callable[[Tensor], Constraints]
    allowed: Callable[[Tensor], Tensor] = lambda values: values


def free(parameter: Tensor, held: Constraints = FREE) -> Variable:
    """Return the variable of a parameter's own numbers, within a mask and a range.

    A number at an end of its range may come back: the slope passes there, and stops beyond.
    """
    return Variable(
        parameter.detach().flatten().clone(),
        lambda values: held.project(values.reshape(parameter.shape)),
        lambda _: held,
        lambda values: held.project(values.reshape(parameter.shape)).flatten(),
    )


def scales(weight: Tensor, held: Constraints) -> Variable:
    """Return the variable of the steps between a weight's levels, each weight at the level that it has.

    It is the logarithm of what each step is multiplied by, so that no step comes to 0 or changes its sign.
    Where there is a range as well, no weight that lies within leaves it.

    Args:
        weight: On its levels, [O, ...].
        held: All constraints on it, with levels.
    """
    levels = held.levels
    assert levels is not None
    codes, most = levels.codes(weight.detach()), _room(weight.detach(), held)

    def stretched(values: Tensor) -> Levels:
        return _stretched(levels, values.clamp(max=most))

    def parameter(values: Tensor) -> Tensor:
        return _behind(held.mask, stretched(values).decode(codes))

    start = torch.zeros(levels.scale.numel(), dtype=levels.scale.dtype)
    return Variable(
        start,
        parameter,
        lambda values: replace(held, levels=stretched(values)),
        lambda values: values.clamp(max=most),
    )


def choices(weight: Tensor, held: Constraints, toward: Tensor) -> Variable:
    """Return the variable of a weight's codes, and of the steps between its levels.

    Behind each code is a number, in the unit of the levels, whose nearest level it is. The slope passes the
    rounding as if it were not there (straight through). It begins where the weight was before it was rounded,
    moved into what its code stands for.

    Args:
        weight: On its levels, [O, ...].
        held: All constraints on it, with levels and without a range.
        toward: The weight before.

    References:
        Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
        Computation, 2013. https://arxiv.org/abs/1308.3432
        Esser et al., Learned Step Size Quantization, 2019. https://arxiv.org/abs/1902.08153
    """
    levels = held.levels
    assert levels is not None
    unit, gaps = replace(levels, scale=torch.ones(()), zero_point=None, group=None), levels.values.diff()
    edges = torch.cat([levels.values[:1] - gaps[:1] / 2, unit.middles, levels.values[-1:] + gaps[-1:] / 2])
    codes = levels.codes(weight.detach())
    here = levels.values[codes]
    behind = torch.minimum(torch.maximum(levels.in_steps(toward.detach()), edges[codes]), edges[codes + 1])
    start = torch.cat(
        [(here + INSIDE * (behind - here)).flatten() / FASTER, levels.scale.new_zeros(levels.scale.numel())]
    )
    count = weight.numel()

    def stretched(values: Tensor) -> Levels:
        return _stretched(levels, values[count:])

    def parameter(values: Tensor) -> Tensor:
        numbers, now = FASTER * values[:count].reshape(weight.shape), stretched(values)
        through = (numbers - numbers.detach()) * now.spread(now.scale.detach(), weight.shape)
        return _behind(held.mask, now.decode(unit.codes(numbers.detach())) + through)

    def allowed(values: Tensor) -> Tensor:
        numbers = values[:count].clamp(edges[0].item() / FASTER, edges[-1].item() / FASTER)
        return torch.cat([numbers, values[count:]])

    return Variable(start, parameter, lambda values: replace(held, levels=stretched(values)), allowed)


def _stretched(levels: Levels, logs: Tensor) -> Levels:
    """Return the levels with each step multiplied by the exponential of its number [n]."""
    return replace(levels, scale=levels.scale * logs.exp().to(levels.scale.dtype).reshape(levels.scale.shape))


def _behind(mask: Tensor | None, weight: Tensor) -> Tensor:
    return weight if mask is None else torch.where(mask, weight, 0.0)


def _room(weight: Tensor, held: Constraints) -> float:
    """Return the logarithm of what a weight may be multiplied by within its range, at least 0."""
    if held.range is None:
        return math.inf
    ends = torch.where(weight > 0, torch.as_tensor(held.range.high), torch.as_tensor(held.range.low))
    ratios = torch.where(weight != 0, ends / weight, math.inf)
    return max(0.0, math.log(max(1.0, ratios.min().item())))


def variables(
    model: Checkpoint, fixed: Collection[str] = (), toward: Mapping[str, Tensor] | None = None
) -> dict[str, Variable]:
    """Return what may move in a model, by the parameter.

    Args:
        model: The model; what its network keeps from training stays.
        fixed: Parameters that stay as they are.
        toward: Weights before they were rounded, whose codes may change; where there is a range they stay.
    """
    toward = toward or {}
    found = dict[str, Variable]()
    for name, parameter in model.module.named_parameters():
        held = model.constraints.get(name, FREE)
        if name in fixed or not parameter.requires_grad:
            continue
        if held.levels is None:
            found[name] = free(parameter, held)
        elif name in toward and held.range is None:
            found[name] = choices(parameter, held, toward[name])
        else:
            found[name] = scales(parameter, held)
    return found


# --- matching


@dataclass(frozen=True)
class Matched:
    """A model whose answers were brought nearer to another's.

    Attributes:
        model: The model.
        minimum: How far.
        images: How many images were looked at.
    """

    model: Checkpoint
    minimum: Minimum
    images: int


def facts_of(rounds: Sequence[Matched]) -> dict[str, Any]:
    """Return what a lineage says of it: images, and each round's iterations, passes and losses."""
    return {
        "logits_images": rounds[-1].images,
        "logits_iterations": [each.minimum.iterations for each in rounds],
        "logits_passes": [each.minimum.evaluations for each in rounds],
        "logits_loss": [[float(f"{x:.4g}") for x in (s.minimum.before, s.minimum.loss)] for s in rounds],
    }


def rounded_in(model: Checkpoint) -> set[str]:
    """Return the weights whose levels were chosen already, and hold."""
    return {name for name, held in model.constraints.items() if held.levels is not None}


def within(module: nn.Module, places: Sequence[str]) -> set[str]:
    """Return the parameters that are, or lie in, what is named, whichever of their names says it."""
    return {
        names[0]
        for names in ties(module).values()
        if any(name == place or name.startswith(f"{place}.") for name in names for place in places)
    }


def matched(
    model: Checkpoint,
    reference: nn.Module,
    images: Batch,
    asked: Logits,
    *,
    fixed: Collection[str] = (),
    toward: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Matched:
    """Return the model with all that may move where its answers come nearest to the reference's.

    The loss is T² KL(reference || model) in nats where there are classes, else the squared error over the
    outputs' variance. It never comes out above where it began. Weights stay within masks and ranges and keep
    their codes among levels, whose steps move; batch norms keep their statistics. Tied weights move as one.

    Args:
        model: The model; untouched.
        reference: What it should answer as; in eval mode.
        images: Pixels [N, C, H, W], uint8, or rows, without labels; many for each number that moves, or they
            are learnt by heart.
        asked: Iterations, temperature, solver, augmentation; of images all are taken.
        fixed: Parameters that stay as they are.
        toward: Weights before they were rounded, by name: their codes may change.
        seed: Of what the solver and the augmentation draw, in [0, 2^63).

    Raises:
        DecantError: There are no images, nothing may move, or answers are NaN or infinite.
    """
    if not len(images):
        raise DecantError("logits: answers are compared on training images, and there are none")
    work = replace(model, module=copy.deepcopy(model.module))
    moving = variables(work, fixed, toward)
    if not moving:
        raise DecantError("logits: nothing of the model may move; leave logits out")
    answering = Answers(work.module, moving, images, reference, asked, classes=bool(model.classes))
    try:
        minimum = asked.solver.minimum(answering, asked.iterations, seed)
    except ValueError as error:
        raise DecantError(f"logits: {error}: answers are NaN or infinite on training images") from None
    parts = answering.put_(minimum.values)
    held = {name: moving[name].held(part) for name, part in parts.items() if name in model.constraints}
    return Matched(model_with(work, held), minimum, len(images))


def model_with(model: Checkpoint, held: Mapping[str, Constraints]) -> Checkpoint:
    """Return the model with constraints that its weights satisfy as they are."""
    return replace(model, constraints={**model.constraints, **held})


def apart(expected: Tensor, temperature: float | None) -> Apart:
    """Return the loss of some rows as their part of that of all rows of `expected` [N, M].

    It is T² KL(expected || found) of logits at a temperature T, and the squared error over the variance of
    what is expected where that is None.
    """
    whole = expected.double()
    if temperature is None:
        scale = next(s for s in (whole.var(correction=0).item(), whole.square().mean().item(), 1.0) if s > 0)
        return lambda found, part: (found.double() - part).square().sum() / (scale * whole.numel())
    factor = temperature**2 / len(whole)

    def divergence(found: Tensor, part: Tensor) -> Tensor:
        log_q, log_p = ((logits.double() / temperature).log_softmax(1) for logits in (found, part))
        return factor * F.kl_div(log_q, log_p, reduction="sum", log_target=True)

    return divergence


class Answers:
    """The loss of a network's answers, over all images or some, and its slope in what may move.

    One number after another is the same in memory and order each time, and so are the bits.

    Attributes:
        start: Where what may move stands [n].
    """

    def __init__(
        self,
        module: nn.Module,
        moving: Mapping[str, Variable],
        images: Batch,
        reference: nn.Module,
        asked: Logits,
        *,
        classes: bool,
    ) -> None:
        self._module, self._moving, self._images, self._reference = module, moving, images, reference
        self._asked, self._classes = asked, classes
        self._expected = predict(reference, images)
        if not bool(torch.isfinite(self._expected).all()):
            raise DecantError("logits: answers of the model before are NaN or infinite on training images")
        self._loss = apart(self._expected, asked.temperature if classes else None)
        self._parameters = [module.get_parameter(name) for name in moving]
        self.start = torch.cat([variable.start for variable in moving.values()])

    def __len__(self) -> int:
        return len(self._images)

    def changed(self, seed: int) -> Answers:
        """Return the loss of images that are changed once, as the recipe says."""
        images = self._images if isinstance(self._images, Rows) else self._images[:]
        if not self._changes(images):
            return self
        images = self._asked.augmentation.apply(images, torch.Generator().manual_seed(seed))
        return Answers(
            self._module, self._moving, images, self._reference, self._asked, classes=self._classes
        )

    def put_(self, values: Tensor) -> dict[str, Tensor]:
        """Set the network's parameters, in place; return each one's own part of the values."""
        parts = self._parts(values)
        with torch.no_grad():
            for parameter, (name, part) in zip(self._parameters, parts.items(), strict=True):
                parameter.copy_(self._moving[name].parameter(part))
        return parts

    def allowed(self, values: Tensor) -> Tensor:
        """Return the nearest values [n] that may be taken."""
        parts = self._parts(values)
        return torch.cat([self._moving[name].allowed(part) for name, part in parts.items()])

    def __call__(self, values: Tensor) -> tuple[float, Tensor]:
        """Return loss and slope [n] of all images."""
        parts, total = self.put_(values.detach()), 0.0
        slopes = [torch.zeros_like(parameter) for parameter in self._parameters]
        for images, expected in self._batches():
            total += self._add_slopes_(slopes, images, expected)
        return total, self._pulled_back(parts, slopes)

    def loss(self, values: Tensor) -> float:
        """Return the loss of all images."""
        self.put_(values)
        with torch.no_grad():
            return sum(
                self._loss(answers(self._module, images), expected).item()
                for images, expected in self._batches()
            )

    def part(self, values: Tensor, rows: Tensor, generator: torch.Generator) -> tuple[float, Tensor]:
        """Return loss and slope [n] of the images of some rows [B], int64, which are changed anew."""
        images, expected = self._images[rows], self._expected[rows]
        if self._changes(images):
            images = self._asked.augmentation.apply(images, generator)
            with torch.no_grad():
                expected = answers(self._reference, images)
        parts, slopes = self.put_(values), [torch.zeros_like(parameter) for parameter in self._parameters]
        share = len(self) / len(rows)
        loss = self._add_slopes_(slopes, images, expected)
        return share * loss, share * self._pulled_back(parts, slopes)

    def _batches(self) -> Iterator[tuple[Batch, Tensor]]:
        return zip(self._images.split(BATCH), self._expected.split(BATCH), strict=True)

    def _changes(self, images: Batch) -> TypeGuard[Tensor]:
        return isinstance(images, Tensor) and self._asked.augmentation != Augmentation()

    def _parts(self, values: Tensor) -> dict[str, Tensor]:
        sizes = [len(variable.start) for variable in self._moving.values()]
        return dict(zip(self._moving, values.split(sizes), strict=True))

    def _add_slopes_(self, slopes: Sequence[Tensor], images: Batch, expected: Tensor) -> float:
        """Add the slopes of a batch's part of the loss in each parameter, in place; return that part."""
        with torch.enable_grad():
            loss = self._loss(answers(self._module, images), expected)
            for slope, found in zip(slopes, self._gradients(loss), strict=True):
                if found is not None:
                    slope += found
        return loss.item()

    def _gradients(self, loss: Tensor) -> Sequence[Tensor | None]:
        return torch.autograd.grad(loss, self._parameters, allow_unused=True)

    def _pulled_back(self, parts: Mapping[str, Tensor], slopes: Sequence[Tensor]) -> Tensor:
        pairs = zip(self._moving.values(), parts.values(), slopes, strict=True)
        return torch.cat([_pulled_back(variable, part, slope) for variable, part, slope in pairs])


def _pulled_back(variable: Variable, values: Tensor, slope: Tensor) -> Tensor:
    """Return the slope in the variable's numbers [n], from that in its parameter."""
    values = values.clone().requires_grad_()
    with torch.enable_grad():
        made = variable.parameter(values)
        (found,) = torch.autograd.grad(made, values, slope.to(made.dtype))
    return found


# --- what outputs count


def sensitivities(
    module: nn.Module, names: Sequence[str], images: Batch, temperature: float | None
) -> dict[str, Tensor]:
    """Return what the squared error of each output of a layer costs in the loss of the network's answers.

    It is half the diagonal of the Gauss-Newton matrix of that loss at the layer's outputs, summed over
    positions and calls, mean over images: times the mean squared error of an output it is, to second order
    and without what errors do together, the rise of the loss. For logits z with p = softmax(z / T) that is
    T²/2 Σ_c p_c (∂ log p_c / ∂ output)²: exact up to `DIRECTIONS` outputs of the network, and beyond that the
    mean over as many draws of signs.

    Args:
        module: The network, in eval mode.
        names: Weights of linear layers and convolutions.
        images: Pixels [N, C, H, W], uint8, or rows, without labels; at least one.
        temperature: T of the loss T² KL of logits; None for the squared error over the outputs' variance.

    Returns:
        Float64 [O] by weight, at least 0, where the network lies.

    Raises:
        ValueError: There are no images.
        DecantError: The network does not run one of the layers.
    """
    if not len(images):
        raise ValueError("There are no images to take sensitivities of")
    layers = {name: layer_of(module, name) for name in names}
    network = fed(module, device_of(module))
    scale = (
        1.0 if temperature else 2 / max(predict(network, images).double().var(correction=0).item(), 1e-300)
    )
    signs = torch.Generator().manual_seed(0)
    sums = {
        name: layer.weight.new_zeros(len(layer.weight), dtype=torch.double) for name, layer in layers.items()
    }
    for batch in images.split(BATCH):
        with torch.enable_grad(), _watched(layers) as seen:
            outputs = answers(network, batch)
            for total in _directions(outputs, temperature, signs):
                _add_squares_(sums, layers, seen, total)
    return {name: scale * total / (2 * len(images)) for name, total in sums.items()}


def _directions(outputs: Tensor, temperature: float | None, signs: torch.Generator) -> Iterator[Tensor]:
    """Yield sums of outputs [B, M] whose squared gradients sum to the diagonal, in expectation at least."""
    width = outputs.shape[1]
    if temperature:
        logs = (outputs / temperature).log_softmax(1)
        parts = temperature * logs.detach().mul(0.5).exp() * logs
    else:
        parts = outputs / math.sqrt(width)
    if width <= DIRECTIONS:
        yield from parts.sum(0)
        return
    for _ in range(DIRECTIONS):
        drawn = moved(torch.randint(0, 2, parts.shape, generator=signs) * 2 - 1, parts.device)
        yield (parts * drawn).sum() / math.sqrt(DIRECTIONS)


def _add_squares_(
    sums: Mapping[str, Tensor],
    layers: Mapping[str, nn.Module],
    seen: Mapping[str, Sequence[Tensor]],
    total: Tensor,
) -> None:
    """Add the squared gradients of a sum of outputs, over images, positions and calls, in place."""
    calls = [(name, output) for name, each in seen.items() for output in each]
    found = torch.autograd.grad(total, [output for _, output in calls], retain_graph=True, allow_unused=True)
    for (name, _), gradient in zip(calls, found, strict=True):
        if gradient is not None:
            rows = gradient.movedim(channel_axis(layers[name]), -1).flatten(0, -2)
            sums[name] += rows.double().square().sum(0)


@contextmanager
def _watched(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Have what the layers return at hand, by their keys, so that gradients can be taken of it."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def record(_: nn.Module, given: Any, output: Tensor) -> Tensor:
            output = output if output.requires_grad else output.requires_grad_()
            seen[name].append(output)
            return output.clone()  # what comes next may change it in place

        return record

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
