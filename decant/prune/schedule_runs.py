"""Schedules that train: pruning in rounds, inside a training, or followed by the teacher's own recipe."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from torch import nn

from decant import examples
from decant.checkpoints.checkpoint import Checkpoint, altered, state
from decant.checkpoints.constraints import Constraints, project_
from decant.compression.surgery import composed
from decant.errors import DecantError
from decant.networks.architectures import build, fit_normalization_
from decant.prune.mask_pruning import Once, Pruned
from decant.prune.masks import masked
from decant.prune.params import PruneParams
from decant.prune.schedules import Gradual, Iterative, Rewind, Rigl, Surgery, Trained
from decant.prune.sparsifiers import Growing, Swapping
from decant.training.fit import Row, Sparsifier, fit_
from decant.training.losses import against_teacher
from decant.training.recipe import Loss, Training
from tasks.pipeline import splits
from tasks.pipeline.models import load_model
from tasks.pipeline.step import Step


def fresh(checkpoint: Checkpoint) -> nn.Module:
    """Return the network as it was before the teacher's training, from the recipe in the lineage.

    Raises:
        DecantError: The model does not descend from a network that was trained on labels from fresh weights.
    """
    _, seed = origin(checkpoint)
    module = build(checkpoint.architecture, checkpoint.shape, len(checkpoint.classes), seed)
    fit_normalization_(module, examples.pixels(splits.read(splits.TRAIN).images))
    return module.eval()


def origin(checkpoint: Checkpoint) -> tuple[Training, int]:
    """Return recipe and seed of the training that a model began with, as its lineage has them.

    Raises:
        DecantError: The model does not descend from a network that was trained on labels from fresh weights.
    """
    first = checkpoint.lineage[0] if checkpoint.lineage else {}
    other = any(entry["op"] == "distill" for entry in checkpoint.lineage) or altered(checkpoint)
    try:
        if other:
            raise KeyError("training")
        return Training.model_validate(first["training"]), int(first["seed"])
    except (KeyError, ValidationError):
        raise DecantError(
            "snip and rewind go back to how the teacher began, so the model to prune must descend from it "
            "without distilling and have all its channels; its lineage.json has no such beginning"
        ) from None


def rewound(once: Once, step: Step[PruneParams], schedule: Rewind) -> Pruned:
    """Prune, then train as the teacher was from `epoch` on; with `weights` also from its weights then."""
    training, seed = origin(once.parent)
    if schedule.epoch >= training.epochs:
        raise DecantError(
            f"schedule.epoch: the teacher's recipe has {training.epochs} epochs, so the last that can be "
            f"gone back to is {training.epochs - 1}, got {schedule.epoch}"
        )
    result = once.pruned()
    child = result.model
    if schedule.weights:
        module = once.fresh()
        if schedule.epoch:
            plain = training.model_copy(update={"average": 0.0, "patience": None})
            _fit_(module, plain, plain.hard_loss(), step, seed, {}, "rewind", epochs=(0, schedule.epoch))
        child.module.load_state_dict(state(module), strict=False)
        project_(child.module, child.constraints)
    epochs = (schedule.epoch, training.epochs)
    curve = _fit_(
        child.module, training, training.hard_loss(), step, seed, child.constraints, "train", epochs=epochs
    )
    return replace(result, curve=curve)


def iterated(once: Once, step: Step[PruneParams], schedule: Iterative) -> Pruned:
    """Prune a part and train, round after round; the last round meets the budget."""
    result, curve = Pruned(once.parent), list[Row]()
    for number, budget in enumerate(once.budgets(schedule), start=1):
        block = once.block.model_copy(update={"budget": budget})
        part = replace(once, parent=result.model, block=block).pruned()
        result = replace(part, kept=composed(result.kept, part.kept))
        child = result.model
        title = f"round {number} of {schedule.rounds}"
        rows = _fit_(
            child.module, schedule.training, _loss(schedule), step, step.seed, child.constraints, title
        )
        done = len(curve)
        curve += [row | {"epoch": row["epoch"] + done} for row in rows]
    return replace(result, curve=curve)


def grown(once: Once, step: Step[PruneParams], schedule: Trained, sparsifier: Sparsifier) -> Pruned:
    """Train with masks that change on the way."""
    child = replace(once.parent, module=copy.deepcopy(once.parent.module))
    curve = _fit_(
        child.module,
        schedule.training,
        _loss(schedule),
        step,
        step.seed,
        child.constraints,
        "train",
        sparsifier=sparsifier,
    )
    return Pruned(masked(child, sparsifier.masks), curve=curve)


def run_schedule(once: Once, step: Step[PruneParams]) -> Pruned:
    """Return the pruned model; one shot has no training."""
    schedule = once.block.schedule
    if isinstance(schedule, Rewind):
        return rewound(once, step, schedule)
    if isinstance(schedule, Iterative):
        return iterated(once, step, schedule)
    if isinstance(schedule, Rigl):
        return grown(once, step, schedule, Swapping(once, schedule))
    if isinstance(schedule, Gradual | Surgery):
        return grown(once, step, schedule, Growing(once, schedule))
    return once.pruned()


def _loss(schedule: Trained) -> Loss:
    if schedule.loss is None:
        return schedule.training.hard_loss()
    return against_teacher(schedule.loss, load_model("teacher").module, schedule.training.label_smoothing)


def _fit_(
    module: nn.Module,
    training: Training,
    loss: Loss,
    step: Step[PruneParams],
    seed: int,
    constraints: Mapping[str, Constraints],
    part: str,
    **more: Any,
) -> list[Row]:
    """Train one part of a schedule; each keeps its state apart, so that an interrupted one goes on there."""
    state = step.scratch(step.block.from_, "teacher")
    return fit_(
        module,
        training,
        loss,
        splits.read(splits.TRAIN),
        splits.read(splits.VALIDATION),
        scratch=state.part(part),
        seed=seed,
        constraints=constraints,
        title=f"{step.name}, {part}",
        **more,
    )
