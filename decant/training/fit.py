"""The one training loop: the teacher, fine-tuning and distilling pass it their loss.

Every random number is a function of the seed and the epoch, also those that layers draw, so that a training
that was interrupted goes on to the same bits as one that was not. What a training ends with is one state that
was measured: weights, buffers and masks of one epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from decant.checkpoints.checkpoint import state
from decant.checkpoints.constraints import Constraints
from decant.errors import DecantError
from decant.examples import Examples, arguments, tensors_in
from decant.networks.compiling import missing_compiler
from decant.networks.devices import CPU, find, moved, resident, training_on
from decant.networks.processes import Processes, sum_of_bits, together
from decant.networks.record import give_example_, has_example
from decant.networks.structure import compressible
from decant.progress import progress_bar
from decant.seeds import derive_seed
from decant.targets import Classes
from decant.training.batches import batches, lengths_in, steps_in, taken_in, told_rows
from decant.training.goals import Goal
from decant.training.layout import lay_out_, layout
from decant.training.recipe import Loss, Training
from decant.training.resume import DivergedError, Scratch, resume_, telling_what_is_kept
from decant.training.scaling import Scaler
from decant.training.spread import Spread
from decant.training.steps import average_, step_
from decant.training.tally import NoNumberError, Tally
from decant.training.teaching import listening, of_loss
from decant.training.trainee import PROCESSES, EpochMetrics, Sparsifier, Trainee, copied
from decant.training.validation import answers, check_measured, measured_by, validate, width_of

LOOKED_AT = 1000
"""Examples that are compared between processes."""

UNREAD = 32
"""Steps whose losses wait on a GPU before they are read; on the processor reading costs nothing."""


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
    teacher: nn.Module | None = None,
    device: str = CPU,
) -> list[EpochMetrics]:
    """Train `module` in place and return its curve, one row an epoch.

    Weights satisfy their constraints in every forward pass; what is trained is the free weight behind each
    (straight through), and the module ends with the constrained ones. With `average`, it ends with the moving
    average. With `patience`, it ends with the whole state, masks too, after the epoch of the lowest
    validation loss, the first of equal ones; epochs after which a sparsifier's masks are not final neither
    compete nor count. A training that was interrupted goes on from its last whole epoch, to the same bits.

    Each epoch ends with one pass over the validation examples. No step has computed any of it: they are not
    trained on, and with `average` it is of other weights than those that are. At the end `CHECKED` of them
    are answered once more, by the network as it is handed out.

    Args:
        module: The network; ends in eval mode.
        training: Epochs, optimizer, schedule, augmentation and the rest.
        loss: What is minimized, beside the L1 term of the recipe.
        train: Examples to learn from.
        validation: Examples for the curve and for early stopping; never the test split.
        scratch: Where the state is kept while the training runs; None keeps none.
        seed: Decides the order of the images, their augmentation, and what layers such as dropout draw.
        constraints: By the weights' names.
        title: What the trainee bar says.
        sparsifier: Masks that change from step to step; at the end they are those of the state that was kept.
        epochs: The first and the last but one, where only a part of the recipe's epochs is trained; learning
            rates and the order of images are those of these epochs.
        teacher: In eval mode: where examples have no labels, its outputs are what the curve is measured by.
        device: Where it is trained; the module is on the processor before and after.

    Raises:
        DecantError: The device is not there, or has too little memory. With `patience`, masks are final after
            the last of several epochs alone; before any step. A loss, a weight or a validation image's logit
            became NaN or infinite; nothing of such an epoch is kept. Or the network does not answer as it did
            when it was measured, does not answer with a number for each class or as many as the teacher, or
            there are neither labels nor a teacher.
    """
    there, epochs = find(device), epochs or (0, training.epochs)
    if wrong := training.unsuited(device):
        raise DecantError(wrong)
    if training.compile and (wrong := missing_compiler(device)):
        raise DecantError(wrong)
    if not has_example(module):
        give_example_(module, arguments(train.images[:1]))
    _check_there(train, validation)
    goal = measured_by(module, train, validation, teacher, seed, there)
    scaler = Scaler(on=training.precision == "float16")
    spread = Spread(together(training.processes, there))
    lay_out_(module, memory := layout(module))
    with (
        training_on(
            module,
            there,
            min(training.batch_size, taken_in(train, training)),
            training.accumulate,
            training.precision,
            training.processes,
        ),
        listening(loss, module, train, seed, spread) as beside,
    ):
        trainee = Trainee(
            module,
            training.optimizer.build([*_groups(module, training.weight_decay), *beside]),
            memory,
            copied(state(module)),
            [],
            {},
            moved(dict(constraints), there),
            sparsifier,
            epochs,
            (*goal.columns, *scaler.columns),
            width_of(module, train.images, seed, there),
            there,
            scaler,
            of_loss(loss),
            spread,
        )
        if training.compile:
            trainee.compile_(training.graphs, lengths_in(train.images) is not None)
        train, validation = (resident(each, each.nbytes, there) for each in (train, validation))
        _train_(trainee, training, loss, train, validation, moved(goal, there), scratch, seed, title)
    lay_out_(module, torch.contiguous_format)
    return trainee.curve


def _check_there(train: Examples, validation: Examples) -> None:
    """Refuse to train on nothing, or to measure on nothing."""
    for split, examples in (("training", train), ("validation", validation)):
        if not len(examples):
            raise DecantError(f"There are no {split} examples; give one or more")


def _train_(
    trainee: Trainee,
    training: Training,
    loss: Loss,
    train: Examples,
    validation: Examples,
    goal: Goal,
    scratch: Scratch | None,
    seed: int,
    title: str,
) -> None:
    """Train from where the trainee stands to the end, in place."""
    (first, end), sparsifier, place = trainee.epochs, trainee.sparsifier, trainee.device
    steps, processes = steps_in(train, training), trainee.spread.processes
    _check_shares(train, training, processes)
    if training.patience and sparsifier is not None:
        _check_choice(sparsifier, steps, end - first)
    if scratch is not None:
        resume_(trainee, scratch)
    if processes.count > 1:
        _check_begun_alike(trainee, train)
    trainee.held.begin_(trainee.module)
    done, hidden = len(trainee.curve), not processes.first
    with _bar(title, end - first, training, train, done, hidden) as bar:
        rows = trainee.competing(steps, end - first)
        while (epoch := first + len(trainee.curve)) < end and not _exhausted(rows, training.patience):
            with telling_what_is_kept(scratch, trainee.curve):
                with trainee.spread.drawing(derive_seed(seed, f"layers in epoch {epoch}"), place):
                    row = _epoch(trainee, training, loss, train, seed, epoch, (first, end), bar)
                row |= validate(trainee, training, validation, goal, seed, epoch + 1)
            trainee.add_(row | trainee.scaler.row_())
            rows = trainee.competing(steps, end - first)
            if training.patience and rows and trainee.curve[-1] is _best(rows):
                trainee.keep(training)
            if scratch is not None and processes.first:
                scratch.write(trainee.content())
    trainee.end_(training)
    measured = _best(rows) if training.patience else trainee.curve[-1]
    answered = trainee.best_answered if training.patience else trainee.answered
    again = validation.images if answered is None else validation.images[: len(answered)]
    ending = answers(goal.reduced(trainee.module), again, seed, place, processes)
    check_measured(goal, ending, measured, answered)


def _check_shares(train: Examples, training: Training, processes: Processes) -> None:
    """Refuse a batch of which a process would have nothing.

    Raises:
        DecantError: There is one.
    """
    taken = taken_in(train, training)
    least = min(min(training.batch_size, taken), taken % training.batch_size or training.batch_size)
    if least < processes.count:
        raise DecantError(
            f"training.processes: a batch of {least} has no share for each of {processes.count}; take fewer, "
            "or larger batches"
        )


def _check_choice(sparsifier: Sparsifier, steps: int, epochs: int) -> None:
    """Refuse a patience that has nothing to choose from, as the masks are final too late for that."""
    if epochs > 1 and not sparsifier.complete((epochs - 1) * steps, epochs * steps):
        raise DecantError(
            f"training.patience: masks are final after the last of {epochs} epochs alone, so there is no "
            "best one to end with; leave patience out, lower the schedule's end, or train for more epochs"
        )


def epochs_run(training: Training, curve: Sequence[EpochMetrics]) -> dict[str, int]:
    """Return what the lineage says of a training that its recipe alone does not.

    That is where it stopped early, how many steps of float16 were skipped, and how many epochs it was trained
    by another number of processes, before it was interrupted.
    """
    facts = {"epochs_run": len(curve)} if training.patience else {}
    if training.precision == "float16":
        facts["skipped_steps"] = int(sum(row["skipped_steps"] for row in curve))
    if others := sum(row.get(PROCESSES, 1) != training.processes for row in curve):
        facts["epochs_of_other_processes"] = others
    return facts


def _epoch(
    trainee: Trainee,
    training: Training,
    loss: Loss,
    train: Examples,
    seed: int,
    epoch: int,
    epochs: tuple[int, int],
    bar: tqdm[Any],
) -> EpochMetrics:
    """Take one pass over the training images; return its mean loss, accuracy, and last learning rate."""
    told = train.labels is not None and isinstance(train.target, Classes)
    tally, rate = Tally(told, 1 if trainee.device.type == CPU else UNREAD), 0.0
    trainee.module.train()
    steps, drawn = steps_in(train, training), derive_seed(seed, f"epoch {epoch}")
    before, whole = (epoch - epochs[0]) * steps, (epochs[1] - epochs[0]) * steps
    rows_told = told_rows(trainee.teaching, train, training, drawn)
    fed_in = zip(batches(train, training, drawn, trainee.device, trainee.spread), rows_told, strict=False)
    taken = taken_in(train, training)
    for step, ((images, labels), rows) in enumerate(fed_in):
        # In the middle of the step, so that neither the first nor the last one has a rate of zero.
        at = _at(training, epoch, step, steps)
        rate = _set_rate_(trainee.optimizer, training, at)
        if trainee.teaching is not None:
            trainee.teaching.begin_(
                at, moved(rows, trainee.device), derive_seed(drawn, f"others in step {step}")
            )
        if trainee.sparsifier is not None:
            trainee.sparsifier.before_(trainee.module, before + step, whole)
        with _finite(trainee, training, epoch, steps):
            tally.add(*step_(trainee, training, loss, images, labels, taken), labels)
        average_(trainee, training.average, before + step)
        if tally.seen and not tally.waiting:
            bar.set_postfix({key: f"{value:.3f}" for key, value in tally.means().items()}, refresh=False)
        bar.update(taken)
    with _finite(trainee, training, epoch, steps):
        tally.read()
    return {"epoch": epoch + 1, **tally.means(), "learning_rate": rate}


def _at(training: Training, epoch: int, step: int, steps: int) -> float:
    """Return the middle of a step of an epoch, as a share of the whole recipe."""
    return (epoch + (step + 0.5) / steps) / training.epochs


@contextmanager
def _finite(trainee: Trainee, training: Training, epoch: int, steps: int) -> Iterator[None]:
    """End a training whose loss is no number; say in which step, which part of it, and what to do."""
    try:
        yield
    except NoNumberError as error:
        at_once, culprit = trainee.device.type == CPU, ""
        if at_once and trainee.teaching is not None:
            culprit = trainee.teaching.culprit()
        rate = _rate(training, _at(training, epoch, error.step, steps))
        todo = trainee.scaler.remedy(f"lower the learning rate, {rate:g} there")
        kept = "; weights are those before this step" if at_once else ""
        raise DivergedError(
            f"The loss became {error} in epoch {epoch + 1}, step {error.step + 1} of {steps}{culprit}; "
            f"{todo}{kept}"
        ) from None


def _check_begun_alike(trainee: Trainee, train: Examples) -> None:
    """Check that all processes begin with the same state, and learn from the same examples.

    Gradients are summed, weights are not: those that began otherwise would stay so, unseen.

    Raises:
        DecantError: They do not.
    """
    processes, place = trainee.spread.processes, trainee.device
    processes.check_alike("the epochs they go on from", len(trainee.curve), place)
    rows = torch.arange(0, len(train), math.ceil(len(train) / LOOKED_AT))
    sample = [*tensors_in(train.images[rows]), *(() if train.labels is None else (train.labels[rows],))]
    facts = {
        "the number of examples": len(train),
        "the examples (a sum of their bits)": sum_of_bits(sample),
        "the weights that they begin with (a sum of their bits)": sum_of_bits(state(trainee.module).values()),
    }
    for what, value in facts.items():
        processes.check_alike(what, value, place)


def _rate(training: Training, at: float) -> float:
    return training.optimizer.learning_rate * training.schedule.factor(at)


def _set_rate_(optimizer: torch.optim.Optimizer, training: Training, at: float) -> float:
    rate = _rate(training, at)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def _groups(module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Return parameter groups: weight decay pulls at what multiplies, not at biases, norms and embeddings."""
    decayed = {id(weight) for weight in compressible(module).values()}
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": decay},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]


def _best(rows: Sequence[EpochMetrics]) -> EpochMetrics:
    """Return the row of the lowest validation loss, the first of equal ones."""
    return min(rows, key=lambda row: row["validation_loss"])


def _exhausted(rows: Sequence[EpochMetrics], patience: int | None) -> bool:
    if patience is None or not rows:
        return False
    return len(rows) - rows.index(_best(rows)) > patience


def _bar(title: str, epochs: int, training: Training, train: Examples, done: int, hidden: bool) -> tqdm[Any]:
    """Return the bar over all epochs' images, which is there at once and stays."""
    whole = steps_in(train, training) * taken_in(train, training)
    total, initial = epochs * whole, done * whole
    settings = {"total": total, "initial": initial, "unit_scale": True, "delay": 0, "leave": True}
    return progress_bar(None, title, "images", **settings, disable=hidden)
