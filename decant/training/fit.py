"""The one training loop: the teacher, fine-tuning and distilling pass it their loss.

Every random number is a function of the seed and the epoch, also those that layers draw, so that a training
that was interrupted goes on to the same bits as one that was not. What a training ends with is one state that
was measured: weights, buffers and masks of one epoch.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map_only
from tqdm import tqdm

from decant.checkpoints.checkpoint import state
from decant.checkpoints.constraints import Constraints, project_
from decant.errors import DecantError
from decant.examples import Batch, Examples, Rows, arguments, tensors_in
from decant.networks.compiling import compiled, missing_compiler
from decant.networks.devices import (
    CPU,
    autocast,
    computing_on,
    fed,
    find,
    moved,
    placed,
    resident,
    sent,
    training_on,
)
from decant.networks.draws import drawing
from decant.networks.execution import as_rows, predict
from decant.networks.faults import told_in_training, told_of_gradients
from decant.networks.processes import ALONE, Processes, shares, sum_of_bits, together
from decant.networks.record import give_example_, has_example
from decant.networks.structure import compressible, filters
from decant.networks.ties import places
from decant.progress import progress_bar
from decant.row_groups import full, order
from decant.seeds import derive_seed
from decant.targets import Classes
from decant.training.averages import reader
from decant.training.goals import Goal, goal_of
from decant.training.held import Held
from decant.training.layout import laid_out, lay_out_, layout
from decant.training.loading import loaded
from decant.training.recipe import Loss, Training
from decant.training.resume import Scratch, check_form, resume_
from decant.training.scaling import Scaler
from decant.training.spread import Spread
from decant.training.tally import NoNumberError, Tally
from decant.training.teaching import Teaching, listening, of_loss

EpochMetrics = dict[str, float]
"""One epoch of the curve."""

WINDOW = 32
"""How many batches of texts are sorted by length at a time."""

EQUAL = 1e-4
"""How far the loss of what a training ends with may be from what was measured, as a share of it plus the
outputs' spread."""

CHECKED = 500
"""Validation examples that what a training ends with answers once more for that; all of them where they were
answered before an interruption."""

AT_ONCE = 250
"""Validation examples that a process answers at once."""

PROCESSES = "processes"
"""The curve's column of how many processes trained an epoch, where it was not one for all."""

LOOKED_AT = 1000
"""Examples that are compared between processes."""

UNREAD = 32
"""Steps whose losses wait on a GPU before they are read; on the processor reading costs nothing."""


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

    def complete(self, taken: int, steps: int) -> bool:
        """Say whether masks are final, and all that is asked, once `taken` of all `steps` were taken.

        After the last step at the latest they are.
        """

    def content(self) -> dict[str, Any]:
        """Return what an interrupted training is resumed from."""

    def restore_(self, content: dict[str, Any]) -> None:
        """Go on from what `content` returned."""


@dataclass
class _Progress:
    """All that changes while a network is trained; what an interrupted training is resumed from.

    Attributes:
        averaged: The moving average of the free weights and buffers.
        best: Weights, buffers and masks after the best epoch; empty before there is one, or without patience.
        epochs: The first and the last but one.
        columns: Of the curve.
        width: How many numbers the network gives for a row where it is not trained; None before it is known.
        device: Where all of it lies; what is resumed from is on the processor.
        scaler: Of a training in float16.
        teaching: The loss, where it is one on a teacher's answers.
        spread: The processes that train it together.
        trained_call: What is called in the place of `call_with` in a training; None where it is the same.
        answered: What was answered to the first `CHECKED` validation examples after the last epoch; None
            where that was before an interruption.
        best_answered: The like after the best one.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    layout: torch.memory_format
    averaged: dict[str, Tensor]
    curve: list[EpochMetrics]
    best: dict[str, dict[str, Tensor]]
    constraints: Mapping[str, Constraints] = field(default_factory=dict)
    sparsifier: Sparsifier | None = None
    epochs: tuple[int, int] = (0, 0)
    columns: tuple[str, ...] = ()
    width: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device(CPU))
    scaler: Scaler = field(default_factory=Scaler)
    teaching: Teaching | None = None
    spread: Spread = field(default_factory=Spread)
    trained_call: Callable[..., Any] | None = None
    answered: Tensor | None = None
    best_answered: Tensor | None = None

    @cached_property
    def _held(self) -> Held:
        return Held(self.constraints)

    @cached_property
    def trained(self) -> list[nn.Parameter]:
        """All that is trained: the network's parameters, and what a loss learns beside them."""
        beside = [] if self.teaching is None else self.teaching.learners.parameters()
        return [*self.module.parameters(), *beside]

    @property
    def held(self) -> Held:
        """The constraints on weights now: those they came with, and the masks of this step."""
        if self.sparsifier is not None:
            self._held.change_(self.sparsifier.masks, self.sparsifier.dense)
        return self._held

    @cached_property
    def now(self) -> Callable[[], Mapping[str, Tensor]]:
        """What gives the free weights and buffers as they are, by name."""
        return reader(self.module)

    @cached_property
    def fractions(self) -> list[str]:
        """What is averaged, by name: fractions, but tables that hold infinities, as masks do."""
        return [n for n, t in self.averaged.items() if t.is_floating_point() and bool(t.isfinite().all())]

    @cached_property
    def places(self) -> Mapping[str, Sequence[str]]:
        """Where each tensor lies, by the first of its names."""
        return places(self.module)

    def compile_(self, graphs: bool, any_length: bool) -> None:
        """Compile the passes of the training from here on; those of the validation stay as they are."""
        call = compiled(self.call_with, graphs=graphs, any_length=any_length)
        self.trained_call = call if not graphs else lambda *given: _copied(call(*given))

    def call_with(self, tensors: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> Any:
        """Return what the network answers with these tensors, by first names, in the place of its own."""
        if not tensors:
            return self.module(*inputs)
        placed = {place: tensor for name, tensor in tensors.items() for place in self.places[name]}
        return functional_call(self.module, placed, inputs, tie_weights=False)

    def final(self, training: Training) -> dict[str, Tensor]:
        """Return the free weights and buffers that the training would end with now."""
        return self.averaged if training.average else state(self.module)

    def competing(self, steps: int, epochs: int) -> list[EpochMetrics]:
        """Return the rows of the epochs that may be the best one: those whose masks are all that is asked.

        Args:
            steps: In an epoch.
            epochs: In all.
        """
        rows, sparsifier = enumerate(self.curve, start=1), self.sparsifier
        return [
            row
            for done, row in rows
            if sparsifier is None or sparsifier.complete(done * steps, epochs * steps)
        ]

    def keep(self, training: Training) -> None:
        """Keep this state as the best one."""
        masks = {} if self.sparsifier is None else self.sparsifier.masks
        self.best = {"tensors": _copy(self.final(training)), "masks": _copy(masks)}
        self.best_answered = self.answered

    def end_(self, training: Training) -> None:
        """Set the module, and the masks, to what the training ends with; in eval mode."""
        tensors = self.final(training)
        if training.patience:
            tensors = self.best["tensors"]
            if self.sparsifier is not None:
                self.sparsifier.masks = self.best["masks"]
        self.module.load_state_dict(tensors, strict=False)
        project_(self.module, self.held.all)
        self.module.eval()

    def content(self) -> dict[str, Any]:
        """Return what an interrupted training is resumed from."""
        content = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": self.averaged,
            "curve": self.curve,
            "best": self.best,
        }
        if self.sparsifier is not None:
            content |= {"sparsifier": self.sparsifier.content()}
        if self.teaching is not None and (learned := self.teaching.content()):
            content |= {"beside": learned}
        return moved(content | self.scaler.content(), CPU)

    def restore_(self, content: dict[str, Any]) -> None:
        """Go on from what `content` returned.

        Raises:
            ValueError: It is no state of this training.
        """
        self._check(content)
        self.module.load_state_dict(content["module"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.averaged, self.best = moved((content["averaged"], content["best"]), self.device)
        self.curve = content["curve"]
        self._alike_(bool(content["curve"]) and PROCESSES in content["curve"][0])
        if self.sparsifier is not None:
            self.sparsifier.restore_(moved(content["sparsifier"], self.device))
        self.scaler.restore_(content)
        if self.teaching is not None:
            self.teaching.restore_(content.get("beside", {}))

    def add_(self, row: EpochMetrics) -> None:
        """Add an epoch to the curve, with its number of processes where that is told."""
        told = self.spread.several or bool(self.curve and PROCESSES in self.curve[0])
        self.curve.append(row | ({PROCESSES: float(self.spread.processes.count)} if told else {}))

    def _alike_(self, told: bool) -> None:
        """Let all rows of the curve tell how many processes there were, in place, where one does."""
        if told or self.spread.several:
            for row in self.curve:
                row.setdefault(PROCESSES, 1.0)

    def _check(self, content: dict[str, Any]) -> None:
        """Refuse a state of another form, or of other numbers than this training's can be."""
        check_form(content, own := self.content())
        for number, row in enumerate(content["curve"], start=self.epochs[0] + 1):
            known = dict.fromkeys(self.columns, 0.0) | {"epoch": number}
            check_form(row, known | ({PROCESSES: 0.0} if PROCESSES in row else {}))
            if row["epoch"] != number or number > self.epochs[1]:
                raise ValueError(f"its curve has the epoch {row['epoch']}, expected {number}")
        shapes = {name: tensor.shape for name, tensor in self.module.named_parameters()}
        by_name = list((content.get("sparsifier") or {}).values())
        if content["best"]:
            check_form(content["best"]["tensors"], own["averaged"], "the best epoch")
            by_name.append(content["best"]["masks"])
        for name, tensor in (pair for tensors in by_name for pair in tensors.items()):
            if tensor.shape != shapes[name]:
                raise ValueError(f"{name} has a mask or score of the shape {[*tensor.shape]}")
        self._check_optimizer(content["optimizer"])

    def _check_optimizer(self, content: dict[str, Any]) -> None:
        """Refuse an optimizer's state of other settings or shapes; rates change with every step."""
        own = self.optimizer.state_dict()["param_groups"]
        if [group | {"lr": 0} for group in content["param_groups"]] != [group | {"lr": 0} for group in own]:
            raise ValueError("the optimizer has other settings")
        parameters = [
            tensor.detach().cpu() for group in self.optimizer.param_groups for tensor in group["params"]
        ]
        kept = _kept(self.optimizer)
        for number, found in content["state"].items():
            own = {name: parameters[number] if value.dim() else value for name, value in kept.items()}
            check_form(found, own, "the optimizer")


def _kept(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what an optimizer keeps for a parameter [1] once it has taken a step."""
    probe = torch.zeros(1, requires_grad=True)
    probe.grad = torch.zeros(1)
    again = copy.copy(optimizer)  # shares no more than the settings
    again.param_groups, again.state = [], defaultdict(dict)
    again.add_param_group({"params": [probe]})
    again.step()
    return dict(again.state[probe])


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
        title: What the progress bar says.
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
    goal = _goal(module, train, validation, teacher, seed, there)
    scaler = Scaler(on=training.precision == "float16")
    spread = Spread(together(training.processes, there))
    lay_out_(module, memory := layout(module))
    with (
        training_on(module, there, training.batch_size, training.accumulate, training.precision),
        listening(loss, module, train, seed, spread) as beside,
    ):
        progress = _Progress(
            module,
            training.optimizer.build([*_groups(module, training.weight_decay), *beside]),
            memory,
            _copy(state(module)),
            [],
            {},
            moved(dict(constraints), there),
            sparsifier,
            epochs,
            (*goal.columns, *scaler.columns),
            _width(module, train.images, seed, there),
            there,
            scaler,
            of_loss(loss),
            spread,
        )
        if training.compile:
            progress.compile_(training.graphs, _lengths(train.images) is not None)
        train, validation = (resident(each, each.nbytes, there) for each in (train, validation))
        _train_(progress, training, loss, train, validation, moved(goal, there), scratch, seed, title)
    lay_out_(module, torch.contiguous_format)
    return progress.curve


def _check_there(train: Examples, validation: Examples) -> None:
    """Refuse to train on nothing, or to measure on nothing."""
    for split, examples in (("training", train), ("validation", validation)):
        if not len(examples):
            raise DecantError(f"There are no {split} examples; give one or more")


def _train_(
    progress: _Progress,
    training: Training,
    loss: Loss,
    train: Examples,
    validation: Examples,
    goal: Goal,
    scratch: Scratch | None,
    seed: int,
    title: str,
) -> None:
    """Train from where the progress stands to the end, in place."""
    (first, end), sparsifier, place = progress.epochs, progress.sparsifier, progress.device
    steps, processes = _steps(train, training), progress.spread.processes
    _check_shares(train, training, processes)
    if training.patience and sparsifier is not None:
        _check_choice(sparsifier, steps, end - first)
    if scratch is not None:
        resume_(progress, scratch)
    if processes.count > 1:
        _check_begun_alike(progress, train)
    progress.held.begin_(progress.module)
    done, hidden = len(progress.curve), not processes.first
    with _bar(title, end - first, training, train, done, hidden) as bar:
        rows = progress.competing(steps, end - first)
        while (epoch := first + len(progress.curve)) < end and not _exhausted(rows, training.patience):
            with progress.spread.drawing(derive_seed(seed, f"layers in epoch {epoch}"), place):
                row = _epoch(progress, training, loss, train, seed, epoch, (first, end), bar)
            row |= _validate(progress, training, validation, goal, seed, epoch + 1)
            progress.add_(row | progress.scaler.row_())
            rows = progress.competing(steps, end - first)
            if training.patience and rows and progress.curve[-1] is _best(rows):
                progress.keep(training)
            if scratch is not None and processes.first:
                scratch.write(progress.content())
    progress.end_(training)
    measured = _best(rows) if training.patience else progress.curve[-1]
    answered = progress.best_answered if training.patience else progress.answered
    again = validation.images if answered is None else validation.images[: len(answered)]
    ending = _answers(goal.reduced(progress.module), again, seed, place, processes)
    _check_measured(goal, ending, measured, answered)


def _width(module: nn.Module, images: Batch, seed: int, device: torch.device) -> int | None:
    """Return how many numbers a network gives for a row; None of texts, which are cut to their lengths."""
    if _lengths(images) is not None:
        return None
    return _answers(module.eval(), images[:1], seed, device).shape[1]


def _check_shares(train: Examples, training: Training, processes: Processes) -> None:
    """Refuse a batch of which a process would have nothing.

    Raises:
        DecantError: There is one.
    """
    taken = _taken(train, training)
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
    progress: _Progress,
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
    tally, rate = Tally(told, 1 if progress.device.type == CPU else UNREAD), 0.0
    progress.module.train()
    steps, drawn = _steps(train, training), derive_seed(seed, f"epoch {epoch}")
    before, whole = (epoch - epochs[0]) * steps, (epochs[1] - epochs[0]) * steps
    told_rows = _told_rows(progress.teaching, train, training, drawn)
    fed_in = zip(batches(train, training, drawn, progress.device, progress.spread), told_rows, strict=False)
    taken = _taken(train, training)
    for step, ((images, labels), rows) in enumerate(fed_in):
        # In the middle of the step, so that neither the first nor the last one has a rate of zero.
        at = _at(training, epoch, step, steps)
        rate = _set_rate_(progress.optimizer, training, at)
        if progress.teaching is not None:
            progress.teaching.begin_(
                at, moved(rows, progress.device), derive_seed(drawn, f"others in step {step}")
            )
        if progress.sparsifier is not None:
            progress.sparsifier.before_(progress.module, before + step, whole)
        with _finite(progress, training, epoch, steps):
            tally.add(*_step_(progress, training, loss, images, labels, taken), labels)
        _average_(progress, training.average, before + step)
        if tally.seen and not tally.waiting:
            bar.set_postfix({key: f"{value:.3f}" for key, value in tally.means().items()}, refresh=False)
        bar.update(taken)
    with _finite(progress, training, epoch, steps):
        tally.read()
    return {"epoch": epoch + 1, **tally.means(), "learning_rate": rate}


def _at(training: Training, epoch: int, step: int, steps: int) -> float:
    """Return the middle of a step of an epoch, as a share of the whole recipe."""
    return (epoch + (step + 0.5) / steps) / training.epochs


@contextmanager
def _finite(progress: _Progress, training: Training, epoch: int, steps: int) -> Iterator[None]:
    """End a training whose loss is no number; say in which step, which part of it, and what to do."""
    try:
        yield
    except NoNumberError as error:
        at_once, culprit = progress.device.type == CPU, ""
        if at_once and progress.teaching is not None:
            culprit = progress.teaching.culprit()
        rate = _rate(training, _at(training, epoch, error.step, steps))
        todo = progress.scaler.remedy(f"lower the learning rate, {rate:g} there")
        kept = "; weights are those before this step" if at_once else ""
        raise DecantError(
            f"The loss became {error} in epoch {epoch + 1}, step {error.step + 1} of {steps}{culprit}; "
            f"{todo}{kept}"
        ) from None


def batches(
    train: Examples, training: Training, seed: int, device: torch.device, spread: Spread | None = None
) -> Iterator[tuple[Batch, Tensor | None]]:
    """Yield augmented batches, on a device, in a random order; the last is left out where it is not full.

    A batch of texts has as many places as the longest of its own, and holds texts of like lengths. Of several
    processes each has its share of the examples, and all labels.
    """
    generator, spread = torch.Generator().manual_seed(seed), spread or Spread()
    place = tensors_in(train.images)[0].device
    chosen = (moved(rows, place) for rows in _chosen(train, training, generator))
    mine = _mine(spread, _taken(train, training), training.batch_size)
    for images, labels in loaded(train, chosen, partial(spread.rows, size=training.batch_size)):
        images, labels = sent((images, labels), device)
        if isinstance(images, Tensor):
            images = training.augmentation.apply(images, generator, mine)
        elif isinstance(images, Rows) and (own := images.lengths) is not None:
            longest = max(1, int(spread.processes.stacked(own.max()).max()))
            images, labels = images.cut(longest), _first_places(labels, longest)
        yield images, labels


def _mine(spread: Spread, taken: int, size: int) -> Tensor | None:
    """Return which examples of a step [N] a process has, as bool; None where it has all of them."""
    if not spread.several:
        return None
    found = torch.zeros(taken, dtype=torch.bool)
    found[spread.rows(torch.arange(taken), size)] = True
    return found


def _chosen(train: Examples, training: Training, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield which examples each step of an epoch takes [B], on the processor, as the generator says."""
    size = _taken(train, training)
    windows = full(order(len(train), train.width, generator), size)
    if (lengths := _lengths(train.images)) is not None:
        windows = (bucketed(rows, lengths.cpu(), size, generator) for rows in windows)
    return (rows for window in windows for rows in window.split(size))


def _told_rows(
    teaching: Teaching | None, train: Examples, training: Training, seed: int
) -> Iterator[Tensor | None]:
    """Yield which examples the batches of the same seed have, where a loss has to know; else None."""
    if teaching is None or not teaching.needs_rows:
        return itertools.repeat(None)
    return _chosen(train, training, torch.Generator().manual_seed(seed))


def _lengths(images: Batch) -> Tensor | None:
    """Return how many tokens each text has [N]; None of what is no text of free length."""
    return images.lengths if isinstance(images, Rows) else None


def bucketed(order: Tensor, lengths: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return rows in an order in which those of a batch are of like lengths, batches in random order.

    `WINDOW` batches are sorted at a time, so that a text meets others in each epoch.

    Args:
        order: Rows in random order [M], M a multiple of `size`.
        lengths: Of all rows [N].
        size: Of a batch.
        generator: Draws the order of the batches.
    """
    windows = [rows[lengths[rows].argsort(stable=True)] for rows in order.split(WINDOW * size)]
    batched = torch.cat(windows).reshape(-1, size)
    return batched[torch.randperm(len(batched), generator=generator)].flatten()


def _first_places(labels: Tensor | None, length: int) -> Tensor | None:
    """Return the labels of the first places where each place has one, a token, and others as they are."""
    if labels is None or labels.dim() == 1 or labels.is_floating_point():
        return labels
    return labels[:, :length]


def _check_begun_alike(progress: _Progress, train: Examples) -> None:
    """Check that all processes begin with the same state, and learn from the same examples.

    Gradients are summed, weights are not: those that began otherwise would stay so, unseen.

    Raises:
        DecantError: They do not.
    """
    processes, place = progress.spread.processes, progress.device
    processes.check_alike("the epochs they go on from", len(progress.curve), place)
    rows = torch.arange(0, len(train), math.ceil(len(train) / LOOKED_AT))
    sample = [*tensors_in(train.images[rows]), *(() if train.labels is None else (train.labels[rows],))]
    facts = {
        "the number of examples": len(train),
        "the examples (a sum of their bits)": sum_of_bits(sample),
        "the weights that they begin with (a sum of their bits)": sum_of_bits(
            state(progress.module).values()
        ),
    }
    for what, value in facts.items():
        processes.check_alike(what, value, place)


def _steps(train: Examples, training: Training) -> int:
    """Return the number of full steps in an epoch; at least one, of all there is."""
    return len(train) // _taken(train, training)


def _taken(train: Examples, training: Training) -> int:
    """Return the number of images of a step."""
    return min(training.batch_size * training.accumulate, len(train))


def _step_(
    progress: _Progress,
    training: Training,
    loss: Loss,
    images: Batch,
    labels: Tensor | None,
    taken: int,
) -> tuple[Tensor, Tensor]:
    """Take one step of the optimizer; return the loss [] and the logits, which nobody has waited for.

    Args:
        progress: What is trained.
        training: Its recipe.
        loss: What is minimized.
        images: This process's share of the step.
        labels: Of the whole step.
        taken: How many examples the step has, in all processes together.
    """
    module = progress.module
    progress.optimizer.zero_grad()
    parts = list(_parts(progress.spread, images, labels, taken, training.batch_size))
    passes = [_gradients_(progress, training, loss, part, taken, part is parts[-1]) for part in parts]
    progress.spread.sum_gradients_(progress.trained)
    if progress.scaler.usable_(progress.trained) and _may_step(passes, progress.device):
        progress.held.mask_gradients_(module)
        if progress.sparsifier is not None:
            progress.sparsifier.after_(module)
        if training.clip_gradients is not None:
            nn.utils.clip_grad_norm_(progress.trained, training.clip_gradients)
        progress.optimizer.step()
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
    progress: _Progress,
    training: Training,
    loss: Loss,
    part: _Part,
    taken: int,
    last: bool,
) -> tuple[Tensor, Tensor]:
    """Add gradients of a batch, a share of its step; return so much of the step's loss [], and the logits.

    What the recipe adds to the loss comes with the last one.
    """
    module, share, spread = progress.module, part.size / taken, progress.spread
    spread.batch = part.size
    inputs = tuple(laid_out(each, progress.layout) for each in arguments(part.images))
    with autocast(progress.device, training.precision):
        logits = _forward(progress, progress.held.satisfying(module), inputs)
    if progress.width not in (None, logits.shape[1]):
        raise DecantError(
            f"In a training the network returns {logits.shape[1]} numbers for a row, and {progress.width} "
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
        progress.scaler.scaled(spread.share(total)).backward()
    return value.detach(), logits.detach()


def _forward(progress: _Progress, satisfying: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
    """Return the logits of a batch with the weights that satisfy their constraints.

    Raises:
        DecantError: A batch norm has one number for each channel alone, of which there is no variance; or the
            network fails in training mode.
    """
    with told_in_training():
        try:
            outputs = (progress.trained_call or progress.call_with)(satisfying, inputs)
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


def _validate(
    progress: _Progress, training: Training, validation: Examples, goal: Goal, seed: int, epoch: int
) -> EpochMetrics:
    """Return what the network, as it would end after this epoch, has on the validation examples."""
    final, held = progress.final(training), progress.held.all
    for name, tensor in final.items():
        wrong = ~torch.isfinite(tensor) if name in progress.fractions else torch.isnan(tensor)
        if bool(wrong.any()):
            raise DecantError(f"{name} held NaN or infinity after epoch {epoch}; lower the learning rate")
    tensors = {name: held[name].project(t) if name in held else t for name, t in final.items()}
    progress.module.eval()
    network = goal.reduced(lambda *inputs: progress.call_with(tensors, inputs))
    logits = _answers(network, validation.images, seed, progress.device, progress.spread.processes)
    if not torch.isfinite(logits).all():
        raise DecantError(
            f"Logits of validation images were NaN or infinite after epoch {epoch}; lower the learning rate"
        )
    progress.answered = logits[:CHECKED].clone()
    return goal.measures(logits)


def _answers(
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


def _goal(
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
    goal.check(module, lambda: _answers(module.eval(), validation.images[:1], seed))
    return goal


def _answers_there(teacher: nn.Module, images: Batch, seed: int, device: torch.device) -> Tensor:
    """Return a teacher's outputs for validation images, computed on a device, on the processor."""
    with computing_on(device, ("the teacher, whose outputs are learned", CPU)):
        return moved(_answers(placed(teacher, device), images, seed, device), CPU)


def _check_measured(goal: Goal, outputs: Tensor, row: EpochMetrics, answered: Tensor | None) -> None:
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


def _average_(progress: _Progress, decay: float, step: int) -> None:
    """Move the average towards the network, faster in the first steps, when there is little to average."""
    if decay == 0:
        return
    share = 1 - min(decay, (step + 1) / (step + 10))
    now = progress.now()
    fractions = progress.fractions
    with torch.no_grad():
        torch._foreach_lerp_([progress.averaged[n] for n in fractions], [now[n] for n in fractions], share)
        for name in now.keys() - fractions:
            progress.averaged[name].copy_(now[name])


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


def _copied(outputs: Any) -> Any:
    """Return what a network returned in memory of its own, with its gradients."""
    return tree_map_only(Tensor, torch.clone, outputs)


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _bar(title: str, epochs: int, training: Training, train: Examples, done: int, hidden: bool) -> tqdm[Any]:
    """Return the bar over all epochs' images, which is there at once and stays."""
    whole = _steps(train, training) * _taken(train, training)
    total, initial = epochs * whole, done * whole
    settings = {"total": total, "initial": initial, "unit_scale": True, "delay": 0, "leave": True}
    return progress_bar(None, title, "images", **settings, disable=hidden)
