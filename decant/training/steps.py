"""One step of a training: gradients of the batch's parts, the optimizer's step, the weights' average."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decant.errors import DecantError
from decant.examples import Batch, arguments, pixels
from decant.networks.devices import CPU, autocast
from decant.networks.execution import as_rows
from decant.networks.faults import told_in_training, told_of_gradients
from decant.networks.structure import compressible, filters
from decant.training.layout import laid_out
from decant.training.recipe import Loss, Training
from decant.training.spread import Spread
from decant.training.trainee import Trainee


def step_(
    trainee: Trainee,
    training: Training,
    loss: Loss,
    images: Batch,
    labels: Tensor | None,
    taken: int,
) -> tuple[Tensor, Tensor]:
    """Take one step of the optimizer; return the loss [] and the logits, which nobody has waited for.

    Args:
        trainee: What is trained.
        training: Its recipe.
        loss: What is minimized.
        images: This process's share of the step.
        labels: Of the whole step.
        taken: How many examples the step has, in all processes together.
    """
    module = trainee.module
    trainee.optimizer.zero_grad()
    parts = list(_parts(trainee.spread, images, labels, taken, training.batch_size))
    passes = [_gradients_(trainee, training, loss, part, taken, part is parts[-1]) for part in parts]
    trainee.spread.sum_gradients_(trainee.trained)
    if trainee.scaler.usable_(trainee.trained) and _may_step(passes, trainee.device):
        trainee.held.mask_gradients_(module)
        if trainee.sparsifier is not None:
            trainee.sparsifier.after_(module)
        if training.clip_gradients is not None:
            nn.utils.clip_grad_norm_(trainee.trained, training.clip_gradients)
        trainee.optimizer.step()
    if len(passes) == 1:
        return passes[0]
    return torch.stack([value for value, _ in passes]).sum(), torch.cat([logits for _, logits in passes])


def _may_step(passes: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> bool:
    """Say whether all losses are finite; on a GPU, which is not waited for, yes in any case."""
    return device.type != CPU or all(math.isfinite(value.item()) for value, _ in passes)


@dataclass(frozen=True)
class _Part:
    """A batch of a step.

    Attributes:
        images: This process's share.
        labels: Of the whole batch.
        size: Examples of the whole batch.
    """

    images: Batch
    labels: Tensor | None
    size: int


def _parts(spread: Spread, images: Batch, labels: Tensor | None, taken: int, size: int) -> Iterator[_Part]:
    """Yield the batches of a step, of so many examples each."""
    at = 0
    for start in range(0, taken, size):
        whole = min(size, taken - start)
        own = spread.processes.of(whole)
        count = own.stop - own.start
        known = None if labels is None else labels[start : start + whole]
        yield _Part(images[at : at + count], known, whole)
        at += count


def _gradients_(
    trainee: Trainee,
    training: Training,
    loss: Loss,
    part: _Part,
    taken: int,
    last: bool,
) -> tuple[Tensor, Tensor]:
    """Add gradients of a batch, a share of its step; return so much of the step's loss [], and the logits.

    What the recipe adds to the loss comes with the last one.
    """
    module, share, spread = trainee.module, part.size / taken, trainee.spread
    spread.batch = part.size
    inputs = _inputs(part.images, trainee.layout)
    with autocast(trainee.device, training.precision):
        logits = _forward(trainee, trainee.held.satisfying(module), inputs)
    if trainee.width not in (None, logits.shape[1]):
        raise DecantError(
            f"In a training the network returns {logits.shape[1]} numbers for a row, and {trainee.width} "
            "otherwise; have it return the same in both"
        )
    logits = spread.whole(logits)
    value = loss(inputs, logits.to(torch.promote_types(logits.dtype, torch.float32)), part.labels)
    value = value if share == 1 else value * share
    total = value
    if training.l1 and last:
        total = (
            value + training.l1 * torch.stack([w.abs().sum() for w in compressible(module).values()]).sum()
        )
    if training.group_lasso and last:
        total = total + training.group_lasso * group_norms(module)
    with told_of_gradients():
        trainee.scaler.scaled(spread.share(total)).backward()
    return value.detach(), logits.detach()


def _inputs(images: Batch, form: torch.memory_format) -> tuple[Tensor, ...]:
    """Return what a network is called with for a batch, new tensors; pictures in a layout, in one copy."""
    if isinstance(images, Tensor) and images.dim() == 4:
        return (pixels(images, form),)
    return tuple(laid_out(each, form) for each in arguments(images))


def _forward(trainee: Trainee, satisfying: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
    """Return the logits of a batch with the weights that satisfy their constraints.

    Raises:
        DecantError: A batch norm has one number for each channel alone, of which there is no variance; or the
            network fails in training mode.
    """
    with told_in_training():
        try:
            outputs = (trainee.trained_call or trainee.call_with)(satisfying, inputs)
        except ValueError as error:
            if len(inputs[0]) > 1:
                raise
            raise DecantError(
                f"A batch of one image cannot be trained on ({error}); raise batch_size"
            ) from None
    return as_rows(outputs, len(inputs[0]))


def group_norms(module: nn.Module) -> Tensor:
    """Return the sum over channels of sqrt(n) * ||w||, the group lasso; shape [].

    A channel's group is the n weights that make it. Where a batch norm follows, these can shrink without any
    effect, so there the group is the batch norm's scale, by which the channel reaches the next layer.

    References:
        Wen et al., Learning Structured Sparsity in Deep Neural Networks, 2016.
        https://arxiv.org/abs/1608.03665
        Liu et al., Learning Efficient Convolutional Networks through Network Slimming, 2017.
        https://arxiv.org/abs/1708.06519
    """
    sums = [
        weight.flatten(1).square().sum(1).add(1e-12).sqrt().sum() * math.sqrt(weight[0].numel())
        if weight.dim() > 1
        else weight.abs().sum()
        for weight in filters(module).values()
    ]
    return torch.stack(sums).sum()


def average_(trainee: Trainee, decay: float, step: int) -> None:
    """Move the average towards the network, faster in the first steps, when there is little to average."""
    if decay == 0:
        return
    share = 1 - min(decay, (step + 1) / (step + 10))
    now, averaged, (fractions, others) = trainee.now(), trainee.averaged, trainee.averages
    with torch.no_grad():
        torch._foreach_lerp_([averaged[n] for n in fractions], [now[n] for n in fractions], share)
        if others:
            torch._foreach_copy_([averaged[n] for n in others], [now[n] for n in others])
