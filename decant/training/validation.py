"""What a network in training answers for the validation examples, and the curve's row that follows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from decant.errors import DecantError
from decant.examples import Batch, Examples
from decant.networks.devices import CPU, computing_on, fed, moved, placed
from decant.networks.draws import drawing
from decant.networks.execution import predict
from decant.networks.processes import ALONE, Processes, shares
from decant.seeds import derive_seed
from decant.training.batches import lengths_in
from decant.training.goals import Goal, goal_of
from decant.training.recipe import Training
from decant.training.resume import DivergedError
from decant.training.trainee import EpochMetrics, Trainee

EQUAL = 1e-4
"""How far the loss of what a training ends with may be from what was measured, as a share of it plus the
outputs' spread."""

CHECKED = 500
"""Validation examples that what a training ends with answers once more for that; all of them where they were
answered before an interruption."""

AT_ONCE = 250
"""Validation examples that a process answers at once."""


def width_of(module: nn.Module, images: Batch, seed: int, device: torch.device) -> int | None:
    """Return how many numbers a network gives for a row; None of texts, which are cut to their lengths."""
    if lengths_in(images) is not None:
        return None
    return answers(module.eval(), images[:1], seed, device).shape[1]


def validate(
    trainee: Trainee, training: Training, validation: Examples, goal: Goal, seed: int, epoch: int
) -> EpochMetrics:
    """Return what the network, as it would end after this epoch, has on the validation examples."""
    final, held = trainee.final(training), trainee.held.all
    for name, tensor in final.items():
        wrong = ~torch.isfinite(tensor) if name in trainee.fractions else torch.isnan(tensor)
        if bool(wrong.any()):
            raise DivergedError(f"{name} held NaN or infinity after epoch {epoch}; lower the learning rate")
    tensors = {name: held[name].project(t) if name in held else t for name, t in final.items()}
    trainee.module.eval()
    network = goal.reduced(lambda *inputs: trainee.call_with(tensors, inputs))
    logits = answers(network, validation.images, seed, trainee.device, trainee.spread.processes)
    if not torch.isfinite(logits).all():
        raise DivergedError(
            f"Logits of validation images were NaN or infinite after epoch {epoch}; lower the learning rate"
        )
    trainee.answered = logits[:CHECKED].clone()
    return goal.measures(logits)


def answers(
    network: Callable[..., Any],
    images: Batch,
    seed: int,
    device: torch.device | None = None,
    processes: Processes = ALONE,
) -> Tensor:
    """Return the outputs for validation images; what draws in eval mode too draws the same each time.

    Several processes answer some of the batches each; all of them have all answers, on the processor.
    """
    place = device or torch.device(CPU)
    with drawing(derive_seed(seed, "validation"), place):
        if processes.count == 1:
            return predict(fed(network, place), images)
        own = images[shares(len(images), AT_ONCE, processes)]
        found = predict(fed(network, place), own, AT_ONCE) if len(own) else torch.empty(0, 0)
        return moved(processes.joined(moved(found, CPU)), place)


def measured_by(
    module: nn.Module,
    train: Examples,
    validation: Examples,
    teacher: nn.Module | None,
    seed: int,
    device: torch.device,
) -> Goal:
    """Return what the curve is measured by, once the network's outputs are of the form for it."""
    expected = None if teacher is None else partial(_answers_there, teacher, validation.images, seed, device)
    goal = goal_of(train, validation, expected)
    goal.check(module, lambda: answers(module.eval(), validation.images[:1], seed))
    return goal


def _answers_there(teacher: nn.Module, images: Batch, seed: int, device: torch.device) -> Tensor:
    """Return a teacher's outputs for validation images, computed on a device, on the processor."""
    with computing_on(device, ("the teacher, whose outputs are learned", CPU)):
        return moved(answers(placed(teacher, device), images, seed, device), CPU)


def check_measured(goal: Goal, outputs: Tensor, row: EpochMetrics, answered: Tensor | None) -> None:
    """Check that the network that a training ends with is the function that this row of its curve measured.

    Args:
        goal: What outputs should be.
        outputs: What it ends with answers, to all or the first validation examples.
        row: Of the curve.
        answered: What was answered to the same examples when they were measured; None to take the row's loss.

    Raises:
        DecantError: It is not: layers keep something that is neither a parameter nor a buffer of their state.
    """
    goal = goal if answered is None else goal.first(len(answered))
    found, measured = goal.loss(outputs), row["validation_loss"] if answered is None else goal.loss(answered)
    if not abs(found - measured) <= EQUAL * (measured + goal.spread(outputs)):
        raise DecantError(
            f"The network had a validation loss of {measured:.6g} after epoch {row['epoch']:.0f} and has "
            f"{found:.6g} once its weights are put back: a layer keeps something beside parameters and "
            "buffers; make it a buffer of the layer's state"
        )
