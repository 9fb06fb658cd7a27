"""The one training loop: the teacher, fine-tuning and distilling pass it their loss.

Every random number is a function of the seed and the epoch, so that a training that was interrupted goes on
to the same bits as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from tqdm import tqdm

from decant.checkpoints.checkpoint import state
from decant.checkpoints.constraints import FREE, Constraints, project_
from decant.checkpoints.gradients import straight_through
from decant.errors import DecantError
from decant.examples import Examples, pixels
from decant.networks.execution import predict
from decant.networks.structure import compressible, filters
from decant.progress import progress_bar
from decant.seeds import derive_seed
from decant.training.recipe import Loss, Training
from decant.training.resume import Scratch

EpochMetrics = dict[str, float]
"""One epoch of the curve."""


class Sparsifier(Protocol):
    """Masks that change while a network is trained.

    Attributes:
        masks: By weight; True survives. A mask that the network came with holds beside these.
        dense: Whether gradients reach masked weights too, so that their values live on behind the mask.
    """

    masks: dict[str, Tensor]
    dense: bool

    def before_(self, module: nn.Module, step: int, steps: int) -> None:
        """Set `masks` for the next of all `steps`, before which `step` were taken."""

    def after_(self, module: nn.Module) -> None:
        """See the gradients of a step, in the `grad` of the free weights, before the optimizer uses them."""

    def content(self) -> dict[str, Any]:
        """Return what an interrupted training is resumed from."""

    def restore_(self, content: dict[str, Any]) -> None:
        """Go on from what `content` returned."""


@dataclass
class _Progress:
    """All that changes while a network is trained; what an interrupted training is resumed from."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    layout: torch.memory_format
    averaged: dict[str, Tensor]
    curve: list[EpochMetrics]
    best: dict[str, Tensor]
    constraints: Mapping[str, Constraints] = field(default_factory=dict)
    sparsifier: Sparsifier | None = None

    @property
    def held(self) -> Mapping[str, Constraints]:
        """The constraints on weights now: those they came with, and the masks of this step."""
        if self.sparsifier is None:
            return self.constraints
        masked = {
            name: self.constraints.get(name, FREE).narrow(mask=mask)
            for name, mask in self.sparsifier.masks.items()
        }
        return {**self.constraints, **masked}

    def content(self) -> dict[str, Any]:
        content = self._content()
        return content if self.sparsifier is None else content | {"sparsifier": self.sparsifier.content()}

    def _content(self) -> dict[str, Any]:
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
        if self.sparsifier is not None:
            self.sparsifier.restore_(content["sparsifier"])


def fit_(
    module: nn.Module,
    training: Training,
    loss: Loss,
    train: Examples,
    validation: Examples,
    *,
    scratch: Scratch | None,
    seed: int,
    constraints: Mapping[str, Constraints],
    title: str,
    sparsifier: Sparsifier | None = None,
    epochs: tuple[int, int] | None = None,
) -> list[EpochMetrics]:
    """Train `module` in place and return its curve, one row an epoch.

    Weights satisfy their constraints in every forward pass; what is trained is the free weight behind each
    (straight through), and the module ends with the constrained ones. With `average`, it ends with the moving
    average; with `patience`, with the epoch of the lowest validation loss. A training that was interrupted
    goes on from its last whole epoch, to the same bits.

    Args:
        module: The network; ends in eval mode.
        training: Epochs, optimizer, schedule, augmentation and the rest.
        loss: What is minimized, beside the L1 term of the recipe.
        train: Examples to learn from.
        validation: Examples for the curve and for early stopping; never the test split.
        scratch: Where the state is kept while the training runs; None keeps none.
        seed: Decides the order of the images and their augmentation.
        constraints: By the weights' names.
        title: What the progress bar says.
        sparsifier: Masks that change from step to step; those of the last step hold at the end. With
            `patience` they are those of the best epoch only if they no longer changed after it.
        epochs: The first and the last but one, where only a part of the recipe's epochs is trained; learning
            rates and the order of images are those of these epochs.

    Raises:
        DecantError: The loss became NaN or infinite.
    """
    first, end = epochs or (0, training.epochs)
    _lay_out_(module, layout := _layout(module))
    optimizer = training.optimizer.build(_groups(module, training.weight_decay))
    progress = _Progress(module, optimizer, layout, _copy(state(module)), [], {}, constraints, sparsifier)
    if scratch is not None and (content := scratch.read()) is not None:
        progress.restore_(content)
    with _bar(title, end - first, training, train, done=len(progress.curve)) as bar:
        while (epoch := first + len(progress.curve)) < end and not _exhausted(
            progress.curve, training.patience
        ):
            row = _epoch(progress, training, loss, train, seed, epoch, (first, end), bar)
            progress.curve.append(row | _validate(progress, training, validation))
            if training.patience and progress.curve[-1] is _best(progress.curve):
                progress.best = _copy(_final(progress, training))
            if scratch is not None:
                scratch.write(progress.content())
    module.load_state_dict(progress.best if training.patience else _final(progress, training), strict=False)
    project_(module, progress.held)
    _lay_out_(module, torch.contiguous_format)
    module.eval()
    return progress.curve


def _epoch(
    progress: _Progress,
    training: Training,
    loss: Loss,
    train: Examples,
    seed: int,
    epoch: int,
    epochs: tuple[int, int],
    bar: tqdm[Any],
) -> EpochMetrics:
    """Take one pass over the training images and return its mean loss, accuracy and last learning rate."""
    losses, hits, seen, rate = 0.0, 0, 0, 0.0
    progress.module.train()
    steps = _steps(train, training)
    before, whole = (epoch - epochs[0]) * steps, (epochs[1] - epochs[0]) * steps
    for step, (images, labels) in enumerate(_batches(train, training, derive_seed(seed, f"epoch {epoch}"))):
        # In the middle of the step, so that neither the first nor the last one has a rate of zero.
        rate = _set_rate_(progress.optimizer, training, (epoch + (step + 0.5) / steps) / training.epochs)
        # A clone: `contiguous` leaves the strides of one-channel images alone, as they fit both layouts.
        inputs = pixels(images).clone(memory_format=progress.layout)
        if progress.sparsifier is not None:
            progress.sparsifier.before_(progress.module, before + step, whole)
        value, logits = _step_(progress, training, loss, inputs, labels)
        if not math.isfinite(value):
            raise DecantError(f"The loss became {value} in epoch {epoch + 1}; lower the learning rate")
        _average_(progress, training.average, before + step)
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
) -> tuple[float, Tensor]:
    """Take one step of the optimizer; return the loss and the logits."""
    module, sparsifier = progress.module, progress.sparsifier
    dense = sparsifier is not None and sparsifier.dense
    satisfying = {
        name: straight_through(module.get_parameter(name), constraint, dense)
        for name, constraint in progress.held.items()
    }
    with torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bfloat16"):
        logits = functional_call(module, satisfying, (inputs,)) if satisfying else module(inputs)
    value = loss(inputs, logits.float(), labels)
    total = value
    if training.l1:
        total = (
            value + training.l1 * torch.stack([w.abs().sum() for w in compressible(module).values()]).sum()
        )
    if training.group_lasso:
        total = total + training.group_lasso * group_norms(module)
    progress.optimizer.zero_grad()
    total.backward()
    if sparsifier is not None:
        sparsifier.after_(module)
    progress.optimizer.step()
    return value.item(), logits.detach()


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


def _validate(progress: _Progress, training: Training, validation: Examples) -> EpochMetrics:
    """Return loss and accuracy on the validation images of the network as it would end here."""
    final, constraints = _final(progress, training), progress.held
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


def _best(curve: list[EpochMetrics]) -> EpochMetrics:
    return min(curve, key=lambda row: row["validation_loss"])


def _exhausted(curve: list[EpochMetrics], patience: int | None) -> bool:
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


def _bar(title: str, epochs: int, training: Training, train: Examples, done: int) -> tqdm[Any]:
    """Return the bar over all epochs' images, which is there at once and stays."""
    whole = _steps(train, training) * min(training.batch_size, len(train))
    total, initial = epochs * whole, done * whole
    return progress_bar(
        None, title, "images", total=total, initial=initial, unit_scale=True, delay=0, leave=True
    )
