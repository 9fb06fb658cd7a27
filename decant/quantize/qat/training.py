"""A checkpoint that is trained while its weights and inputs are rounded, and ends on its levels."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from decant.checkpoints.activations import Grid, InputGrid, attach_
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import FREE
from decant.errors import DecantError
from decant.examples import Batch, Examples
from decant.networks.devices import CPU
from decant.networks.execution import predict
from decant.networks.structure import check_called
from decant.quantize.qat.learners import Decaying, InputClip, InputLearner, WeightLearner, insert_, take_out_
from decant.quantize.qat.trainers import Pact, Train
from decant.quantize.quantizable import quantizable, rounded_layers
from decant.quantize.schemes import Scheme
from decant.training.fit import fit_
from decant.training.recipe import Loss
from decant.training.run import Run
from decant.training.teaching import Added
from decant.training.trainee import EpochMetrics
from decant.training.validation import CHECKED

EQUAL = 1e-3
"""How far logits may move on the average, as a share of their spread, where the function stays the same."""


def train_rounded(
    start: Checkpoint,
    schemes: Mapping[str, Scheme],
    grids: Mapping[str, Grid],
    train: Train,
    *,
    loss: Loss,
    examples: Examples,
    validation: Examples,
    run: Run,
    teacher: nn.Module | None = None,
    device: str = CPU,
) -> tuple[Checkpoint, list[EpochMetrics]]:
    """Train a copy of `start` whose named weights and inputs are rounded in every pass; return its curve too.

    Masks, ranges and clamps hold; weights that have levels already keep them. The training can be interrupted
    as any other, and goes on to the same bits.

    Args:
        start: Float weights, and batch norms that are not folded: they keep the training steady.
        schemes: By the weight's name.
        grids: By the layer's name, beside those that `start` has; a static one at a layer with weights is
            learned where the trainer learns grids, any other stays.
        train: How weights and grids learn.
        loss: What is minimized, beside what the trainer adds.
        examples: To learn from.
        validation: For the curve and for early stopping.
        run: Its name, its seed, and where an interrupted training is resumed from.
        teacher: What the curve is measured by where examples have no labels.
        device: Where it is trained.

    Returns:
        The model, in eval mode, with its weights on the levels of its constraints, and with
        the grids as learned; and the curve.

    Raises:
        DecantError: A weight has levels already, or a scheme finds none for it; names the weight. Or the
            loss became NaN or infinite, or the network without learners is another one than with them.
    """
    module = copy.deepcopy(start.module)
    weights = _weight_learners(start, schemes, train)
    layers = set(rounded_layers(module).values())
    inputs = {
        name: learner
        for name, grid in grids.items()
        if name in layers and isinstance(grid, InputGrid) and (learner := train.inputs(grid)) is not None
    }
    check_called(module, grids)
    kept = {name: grid for name, grid in {**start.grids, **grids}.items() if name not in inputs}
    attach_(module, kept, start.clamps)
    insert_(module, weights, inputs)
    try:
        curve = fit_(
            module,
            train.training,
            _with_decay(loss, train, inputs),
            examples,
            validation,
            scratch=run.scratch,
            seed=run.seed,
            constraints={name: held for name, held in start.constraints.items() if name not in schemes},
            title=run.name,
            sparsifier=_Clock(),
            teacher=teacher,
            device=device,
        )
        watched = validation.at_most(CHECKED).images
        measured = predict(module, watched)
    finally:
        take_out_(module)
    learned = {name: learner.grid() for name, learner in inputs.items()}
    trained = replace(start, module=module, grids={**start.grids, **grids, **learned})
    hardened = _hardened(trained, weights)
    if not close(measured, predict(hardened.module, watched)):
        raise DecantError(
            "The trained network answers otherwise without what rounded its weights in the training: a layer "
            "reads its weight in another place than its parameters; leave `train` out, or skip the layer"
        )
    return hardened, curve


def same_answers(before: nn.Module, after: nn.Module, images: Batch) -> bool:
    """Say whether two forms of one network answer uint8 images [N, C, H, W] alike, but for rounding."""
    return close(predict(before, images), predict(after, images))


def close(expected: Tensor, found: Tensor) -> bool:
    """Say whether logits [N, K] differ by rounding alone: on the average, as single ones may be a step off.

    Where inputs are rounded, sums in another order bring some of them to the next point of their grid.
    """
    return bool((found - expected).abs().mean() <= EQUAL * expected.std())


def _weight_learners(
    start: Checkpoint, schemes: Mapping[str, Scheme], train: Train
) -> dict[str, WeightLearner]:
    learners, found = {}, quantizable(start.module)
    for name, scheme in schemes.items():
        held, (weight, axis) = start.constraints.get(name, FREE), found[name]
        if held.levels is not None:
            raise DecantError(f"{name} is quantized already; quantize an ancestor instead")
        if not torch.isfinite(weight).all():
            raise DecantError(f"{name} holds NaN or infinity; there are no levels to find for it")
        try:
            learners[name] = train.weights(scheme, weight.detach(), held, axis)
        except ValueError as error:
            raise DecantError(f"{name}: {error}") from None
    return learners


def _hardened(trained: Checkpoint, learners: Mapping[str, WeightLearner]) -> Checkpoint:
    """Return the checkpoint with the learned levels as constraints and each weight on them."""
    changes = {}
    with torch.no_grad():
        for name, learner in learners.items():
            weight = trained.module.get_parameter(name)
            changes[name] = learner.held.narrow(levels=learner.levels(weight))
            weight.copy_(learner(weight))
    return trained.narrowed(changes)


def _with_decay(loss: Loss, train: Train, inputs: Mapping[str, InputLearner]) -> Loss:
    """Return the loss with the L2 term of the learned clips."""
    clips = [learner.clip for learner in inputs.values() if isinstance(learner, InputClip)]
    if not (isinstance(train, Pact) and clips):
        return loss
    decay = train.decay / 2
    return Added(loss, lambda: decay * torch.stack([clip().square() for clip in clips]).sum())


@dataclass
class _Clock:
    """Tells learners how far the training is; removes nothing."""

    masks: dict[str, Tensor] = field(default_factory=dict)
    dense: bool = False

    def before_(self, module: nn.Module, step: int, steps: int) -> None:
        for layer in module.modules():
            if isinstance(layer, Decaying):
                layer.progress = step / steps

    def after_(self, module: nn.Module) -> None:
        return

    def complete(self, taken: int, steps: int) -> bool:
        return True

    def content(self) -> dict[str, Any]:
        return {}

    def restore_(self, content: dict[str, Any]) -> None:
        return
