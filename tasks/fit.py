"""The one training loop: the teacher, fine-tuning and distilling pass it their loss.

Every random number is a function of the seed and the epoch, so that a training that was interrupted goes on
to the same bits as one that was not.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from tqdm import tqdm

from tasks.checkpoints import state
from tasks.constraints import Constraints, project_, straight_through
from tasks.data import Examples, pixels
from tasks.errors import DecantError
from tasks.models import compressible, predict
from tasks.params import derive_seed
from tasks.scratch import Scratch
from tasks.training import Loss, Training

Row = dict[str, float]
"""One epoch of the curve."""


@dataclass
class _Progress:
    """All that changes while a network is trained; what an interrupted training is resumed from."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    layout: torch.memory_format
    averaged: dict[str, Tensor]
    curve: list[Row]
    best: dict[str, Tensor]

    def content(self) -> dict[str, Any]:
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": self.averaged,
            "curve": self.curve,
            "best": self.best,
        }

    def restore_(self, content: dict[str, Any]) -> None:
        self.module.load_state_dict(content["module"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.averaged, self.curve, self.best = content["averaged"], content["curve"], content["best"]


def fit_(
    module: nn.Module,
    training: Training,
    loss: Loss,
    train: Examples,
    validation: Examples,
    *,
    scratch: Scratch,
    seed: int,
    constraints: Mapping[str, Constraints],
    title: str,
) -> list[Row]:
    """Train `module` in place and return its curve, one row an epoch.

    Constrained weights obey in every forward pass; what is trained is the free weight behind each (straight
    through), and the module ends with the constrained ones. With `average`, it ends with the moving average;
    with `patience`, with the epoch of the lowest validation loss. A training that was interrupted goes on
    from its last whole epoch, to the same bits.

    Args:
        module: The network; ends in eval mode.
        training: Epochs, optimizer, schedule, augmentation and the rest.
        loss: What is minimized, beside the L1 term of the recipe.
        train: Examples to learn from.
        validation: Examples for the curve and for early stopping; never the test split.
        scratch: Where the state is kept while the training runs.
        seed: Decides the order of the images and their augmentation.
        constraints: By the weights' names.
        title: What the progress bar says.

    Raises:
        DecantError: The loss became NaN or infinite.
    """
    _lay_out_(module, layout := _layout(module))
    optimizer = training.optimizer.build(_groups(module, training.weight_decay))
    progress = _Progress(module, optimizer, layout, _copy(state(module)), [], {})
    if (content := scratch.read()) is not None:
        progress.restore_(content)
    with _bar(title, training, train, done=len(progress.curve)) as bar:
        while len(progress.curve) < training.epochs and not _exhausted(progress.curve, training.patience):
            row = _epoch(progress, training, loss, train, seed, constraints, bar)
            progress.curve.append(row | _validate(progress, training, validation, constraints))
            if training.patience and progress.curve[-1] is _best(progress.curve):
                progress.best = _copy(_final(progress, training))
            scratch.write(progress.content())
    module.load_state_dict(progress.best if training.patience else _final(progress, training), strict=False)
    project_(module, constraints)
    _lay_out_(module, torch.contiguous_format)
    module.eval()
    return progress.curve


def _epoch(
    progress: _Progress,
    training: Training,
    loss: Loss,
    train: Examples,
    seed: int,
    constraints: Mapping[str, Constraints],
    bar: tqdm[Any],
) -> Row:
    """Take one pass over the training images and return its mean loss, accuracy and last learning rate."""
    epoch = len(progress.curve)
    losses, hits, seen, rate = 0.0, 0, 0, 0.0
    progress.module.train()
    steps = _steps(train, training)
    for step, (images, labels) in enumerate(_batches(train, training, derive_seed(seed, f"epoch {epoch}"))):
        # In the middle of the step, so that neither the first nor the last one has a rate of zero.
        rate = _set_rate_(progress.optimizer, training, (epoch + (step + 0.5) / steps) / training.epochs)
        # A clone: `contiguous` leaves the strides of one-channel images alone, as they fit both layouts.
        inputs = pixels(images).clone(memory_format=progress.layout)
        value, logits = _step_(progress, training, loss, inputs, labels, constraints)
        if not math.isfinite(value):
            raise DecantError(f"The loss became {value} in epoch {epoch + 1}; lower the learning rate")
        _average_(progress, training.average, epoch * steps + step)
        losses += value * len(labels)
        hits += int((logits.argmax(1) == labels).sum())
        seen += len(labels)
        bar.set_postfix(loss=f"{losses / seen:.3f}", accuracy=f"{hits / seen:.3f}", refresh=False)
        bar.update(len(labels))
    return {"epoch": epoch + 1, "loss": losses / seen, "accuracy": hits / seen, "learning_rate": rate}


def _batches(train: Examples, training: Training, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield augmented batches in a random order; the last one is left out where it is not full."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train), generator=generator)
    size = min(training.batch_size, len(train))
    for chosen in order[: _steps(train, training) * size].split(size):
        yield training.augmentation.apply(train.images[chosen], generator), train.labels[chosen]


def _steps(train: Examples, training: Training) -> int:
    """Return the number of full batches in an epoch; at least one, of all there is."""
    return max(1, len(train) // training.batch_size)


def _step_(
    progress: _Progress,
    training: Training,
    loss: Loss,
    inputs: Tensor,
    labels: Tensor,
    constraints: Mapping[str, Constraints],
) -> tuple[float, Tensor]:
    """Take one step of the optimizer; return the loss and the logits."""
    module = progress.module
    obeying = {
        name: straight_through(module.get_parameter(name), constraint)
        for name, constraint in constraints.items()
    }
    with torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bfloat16"):
        logits = functional_call(module, obeying, (inputs,)) if obeying else module(inputs)
    value = loss(inputs, logits.float(), labels)
    total = value
    if training.l1:
        total = (
            value + training.l1 * torch.stack([w.abs().sum() for w in compressible(module).values()]).sum()
        )
    progress.optimizer.zero_grad()
    total.backward()
    progress.optimizer.step()
    return value.item(), logits.detach()


def _validate(
    progress: _Progress, training: Training, validation: Examples, constraints: Mapping[str, Constraints]
) -> Row:
    """Return loss and accuracy on the validation images of the network as it would end here."""
    final = _final(progress, training)
    tensors = {name: constraints[name].project(t) if name in constraints else t for name, t in final.items()}
    logits = predict(
        lambda inputs: functional_call(progress.module.eval(), tensors, (inputs,)), validation.images
    )
    return {
        "validation_loss": F.cross_entropy(logits, validation.labels).item(),
        "validation_accuracy": (logits.argmax(1) == validation.labels).float().mean().item(),
    }


def _final(progress: _Progress, training: Training) -> dict[str, Tensor]:
    """Return the free weights and buffers that the training would end with now."""
    return progress.averaged if training.average else state(progress.module)


def _average_(progress: _Progress, decay: float, step: int) -> None:
    """Move the average towards the network, faster in the first steps, when there is little to average."""
    if decay == 0:
        return
    share = 1 - min(decay, (step + 1) / (step + 10))
    with torch.no_grad():
        torch._foreach_lerp_(list(progress.averaged.values()), list(state(progress.module).values()), share)


def _set_rate_(optimizer: torch.optim.Optimizer, training: Training, at: float) -> float:
    rate = training.optimizer.learning_rate * training.schedule.factor(at)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def _groups(module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Return parameter groups: weight decay pulls at weights, not at biases and batch norms."""
    decayed = {id(weight) for weight in compressible(module).values()}
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": decay},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]


def _best(curve: list[Row]) -> Row:
    return min(curve, key=lambda row: row["validation_loss"])


def _exhausted(curve: list[Row], patience: int | None) -> bool:
    if patience is None or not curve:
        return False
    return len(curve) - curve.index(_best(curve)) > patience


def _layout(module: nn.Module) -> torch.memory_format:
    """Return how tensors lie in memory while training: with the channels last where that is safe.

    It is a sixth faster. But with torch 2.13 on AVX2, two threads, 4 input channels and a 1 x 1 convolution
    of stride 2, the gradient of the weight came out up to 45 % wrong, and other in each run. Nothing of
    the kind was found with multiples of 8, so only these are trained with the channels last.
    """
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    widths = [layer.out_channels for layer in convolutions] + [
        layer.in_channels for layer in convolutions[1:]
    ]
    aligned = bool(widths) and all(width % 8 == 0 for width in widths)
    return torch.channels_last if aligned else torch.contiguous_format


def _lay_out_(module: nn.Module, memory_format: torch.memory_format) -> None:
    """Change, in place, how the weights lie in memory; models are evaluated and saved contiguous."""
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=memory_format)


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _bar(title: str, training: Training, train: Examples, done: int) -> tqdm[Any]:
    """Return the bar over all epochs' images; in a log file it writes a line every ten seconds."""
    whole = _steps(train, training) * min(training.batch_size, len(train))
    return tqdm(
        total=training.epochs * whole,
        initial=done * whole,
        desc=title,
        unit=" images",
        unit_scale=True,
        mininterval=0.2 if sys.stderr.isatty() else 10,
        dynamic_ncols=True,
    )
