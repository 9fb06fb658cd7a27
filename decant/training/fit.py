"""The one training loop: the teacher, fine-tuning and distilling pass it their loss.

Every random number is a function of the seed and the epoch, also those that layers draw, so that a training
that was interrupted goes on to the same bits as one that was not. What a training ends with is one state that
was measured: weights, buffers and masks of one epoch.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from decant.checkpoints.checkpoint import state
from decant.checkpoints.constraints import FREE, Constraints, project_
from decant.checkpoints.gradients import straight_through
from decant.errors import DecantError
from decant.examples import Batch, Examples, Rows, arguments, tensors_in
from decant.networks.devices import CPU, autocast, fed, find, moved, resident, training_on
from decant.networks.draws import drawing
from decant.networks.execution import as_rows, predict
from decant.networks.record import give_example_, has_example
from decant.networks.structure import compressible, filters
from decant.progress import progress_bar
from decant.seeds import derive_seed
from decant.targets import Classes
from decant.training.goals import Goal, goal_of
from decant.training.layout import laid_out, lay_out_, layout
from decant.training.recipe import Loss, Training
from decant.training.resume import Scratch, check_form, resume_
from decant.training.teaching import Teaching, listening, of_loss

EpochMetrics = dict[str, float]
"""One epoch of the curve."""

EQUAL = 1e-4
"""How far the loss of what a training ends with may be from what was measured, as a share of it plus the
outputs' spread."""


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
        device: Where all of it lies; what is resumed from is on the processor.
        teaching: The loss, where it is one on a teacher's answers.
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
    device: torch.device = field(default_factory=lambda: torch.device(CPU))
    teaching: Teaching | None = None

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

    @cached_property
    def fractions(self) -> list[str]:
        """What is averaged, by name: fractions, but tables that hold infinities, as masks do."""
        return [n for n, t in self.averaged.items() if t.is_floating_point() and bool(t.isfinite().all())]

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

    def end_(self, training: Training) -> None:
        """Set the module, and the masks, to what the training ends with; in eval mode."""
        tensors = self.final(training)
        if training.patience:
            tensors = self.best["tensors"]
            if self.sparsifier is not None:
                self.sparsifier.masks = self.best["masks"]
        self.module.load_state_dict(tensors, strict=False)
        project_(self.module, self.held)
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
        return moved(content, CPU)

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
        if self.sparsifier is not None:
            self.sparsifier.restore_(moved(content["sparsifier"], self.device))
        if self.teaching is not None:
            self.teaching.restore_(content.get("beside", {}))

    def _check(self, content: dict[str, Any]) -> None:
        """Refuse a state of another form, or of other numbers than this training's can be."""
        check_form(content, own := self.content())
        for number, row in enumerate(content["curve"], start=self.epochs[0] + 1):
            check_form(row, dict.fromkeys(self.columns, 0.0) | {"epoch": number})
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
    if not has_example(module):
        give_example_(module, arguments(train.images[:1]))
    goal = _goal(module, train, validation, teacher, seed)
    lay_out_(module, memory := layout(module))
    with (
        training_on(module, there, training.batch_size),
        listening(loss, module, train, seed) as beside,
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
            goal.columns,
            there,
            of_loss(loss),
        )
        train, validation = (resident(each, _size(each), there) for each in (train, validation))
        _train_(progress, training, loss, train, validation, moved(goal, there), scratch, seed, title)
    lay_out_(module, torch.contiguous_format)
    return progress.curve


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
    steps = _steps(train, training)
    if training.patience and sparsifier is not None:
        _check_choice(sparsifier, steps, end - first)
    if scratch is not None:
        resume_(progress, scratch)
    with _bar(title, end - first, training, train, done=len(progress.curve)) as bar:
        rows = progress.competing(steps, end - first)
        while (epoch := first + len(progress.curve)) < end and not _exhausted(rows, training.patience):
            with drawing(derive_seed(seed, f"layers in epoch {epoch}"), place):
                row = _epoch(progress, training, loss, train, seed, epoch, (first, end), bar)
            progress.curve.append(row | _validate(progress, training, validation, goal, seed, epoch + 1))
            rows = progress.competing(steps, end - first)
            if training.patience and rows and progress.curve[-1] is _best(rows):
                progress.keep(training)
            if scratch is not None:
                scratch.write(progress.content())
    progress.end_(training)
    measured = _best(rows) if training.patience else progress.curve[-1]
    _check_measured(goal, _answers(progress.module, validation.images, seed, place), measured)


def _size(examples: Examples) -> int:
    """Return how many bytes the inputs of examples take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(examples.images))


def _check_choice(sparsifier: Sparsifier, steps: int, epochs: int) -> None:
    """Refuse a patience that has nothing to choose from, as the masks are final too late for that."""
    if epochs > 1 and not sparsifier.complete((epochs - 1) * steps, epochs * steps):
        raise DecantError(
            f"training.patience: masks are final after the last of {epochs} epochs alone, so there is no "
            "best one to end with; leave patience out, lower the schedule's end, or train for more epochs"
        )


def epochs_run(training: Training, curve: Sequence[EpochMetrics]) -> dict[str, int]:
    """Return what the lineage says of a training that its recipe alone does not: where it stopped early."""
    return {"epochs_run": len(curve)} if training.patience else {}


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
    losses, hits, seen, rate = 0.0, 0, 0, 0.0
    told = train.labels is not None and isinstance(train.target, Classes)
    progress.module.train()
    steps, drawn = _steps(train, training), derive_seed(seed, f"epoch {epoch}")
    size, order = min(training.batch_size, len(train)), _order(train, torch.Generator().manual_seed(drawn))
    before, whole = (epoch - epochs[0]) * steps, (epochs[1] - epochs[0]) * steps
    for step, (images, labels) in enumerate(batches(train, training, drawn, progress.device)):
        # In the middle of the step, so that neither the first nor the last one has a rate of zero.
        at = (epoch + (step + 0.5) / steps) / training.epochs
        rate = _set_rate_(progress.optimizer, training, at)
        if progress.teaching is not None:
            rows = order[step * size : (step + 1) * size].to(progress.device)
            progress.teaching.begin_(at, rows, derive_seed(drawn, f"others in step {step}"))
        inputs = tuple(laid_out(each, progress.layout) for each in arguments(images))
        if progress.sparsifier is not None:
            progress.sparsifier.before_(progress.module, before + step, whole)
        value, logits = _step_(progress, training, loss, inputs, labels)
        if not math.isfinite(value):
            culprit = "" if progress.teaching is None else progress.teaching.culprit()
            raise DecantError(
                f"The loss became {value} in epoch {epoch + 1}, step {step + 1} of {steps}{culprit}; lower "
                f"the learning rate, {rate:g} there (weights are those before this step)"
            )
        _average_(progress, training.average, before + step)
        losses += value * len(images)
        hits += int((logits.argmax(1) == labels).sum()) if told and labels is not None else 0
        seen += len(images)
        means = {"loss": losses / seen} | ({"accuracy": hits / seen} if told else {})
        bar.set_postfix({key: f"{value:.3f}" for key, value in means.items()}, refresh=False)
        bar.update(len(images))
    return {"epoch": epoch + 1, **means, "learning_rate": rate}


def batches(
    train: Examples, training: Training, seed: int, device: torch.device
) -> Iterator[tuple[Batch, Tensor | None]]:
    """Yield augmented batches, on a device, in a random order; the last is left out where it is not full."""
    generator = torch.Generator().manual_seed(seed)
    order = moved(_order(train, generator), tensors_in(train.images)[0].device)
    size = min(training.batch_size, len(train))
    for chosen in order[: _steps(train, training) * size].split(size):
        labels = None if train.labels is None else train.labels[chosen]
        images, labels = moved((train.images[chosen], labels), device)
        if not isinstance(images, Rows):
            images = training.augmentation.apply(images, generator)
        yield images, labels


def _order(train: Examples, generator: torch.Generator) -> Tensor:
    """Return the examples of an epoch in a random order, [N], on the processor."""
    return torch.randperm(len(train), generator=generator)


def _steps(train: Examples, training: Training) -> int:
    """Return the number of full batches in an epoch; at least one, of all there is."""
    return max(1, len(train) // training.batch_size)


def _step_(
    progress: _Progress,
    training: Training,
    loss: Loss,
    inputs: tuple[Tensor, ...],
    labels: Tensor | None,
) -> tuple[float, Tensor]:
    """Take one step of the optimizer; return the loss and the logits."""
    module, sparsifier = progress.module, progress.sparsifier
    dense = sparsifier is not None and sparsifier.dense
    satisfying = {
        name: straight_through(module.get_parameter(name), constraint, dense)
        for name, constraint in progress.held.items()
    }
    with autocast(progress.device, training.precision):
        logits = _forward(module, satisfying, inputs)
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
    if not math.isfinite(found := value.item()):
        return found, logits.detach()  # before the step, so that the weights stay numbers
    if sparsifier is not None:
        sparsifier.after_(module)
    progress.optimizer.step()
    return found, logits.detach()


def _forward(module: nn.Module, satisfying: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
    """Return the logits of a batch with the weights that satisfy their constraints.

    Raises:
        DecantError: A batch norm has one number for each channel alone, of which there is no variance.
    """
    try:
        outputs = functional_call(module, satisfying, inputs) if satisfying else module(*inputs)
    except ValueError as error:
        if len(inputs[0]) > 1:
            raise
        raise DecantError(f"A batch of one image cannot be trained on ({error}); raise batch_size") from None
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
    final, held = progress.final(training), progress.held
    for name, tensor in final.items():
        wrong = ~torch.isfinite(tensor) if name in progress.fractions else torch.isnan(tensor)
        if bool(wrong.any()):
            raise DecantError(f"{name} held NaN or infinity after epoch {epoch}; lower the learning rate")
    tensors = {name: held[name].project(t) if name in held else t for name, t in final.items()}
    module = progress.module.eval()
    logits = _answers(
        lambda *inputs: functional_call(module, tensors, inputs), validation.images, seed, progress.device
    )
    if not torch.isfinite(logits).all():
        raise DecantError(
            f"Logits of validation images were NaN or infinite after epoch {epoch}; lower the learning rate"
        )
    return goal.measures(logits)


def _answers(
    network: Callable[..., Any], images: Batch, seed: int, device: torch.device | None = None
) -> Tensor:
    """Return the outputs for validation images; what draws in eval mode too draws the same each time."""
    place = device or torch.device(CPU)
    with drawing(derive_seed(seed, "validation"), place):
        return predict(fed(network, place), images)


def _goal(
    module: nn.Module, train: Examples, validation: Examples, teacher: nn.Module | None, seed: int
) -> Goal:
    """Return what the curve is measured by, once the network's outputs are of the form for it."""
    expected = None if teacher is None else partial(_answers, teacher, validation.images, seed)
    goal = goal_of(train, validation, expected)
    goal.check(module, lambda: _answers(module.eval(), validation.images[:1], seed))
    return goal


def _check_measured(goal: Goal, outputs: Tensor, row: EpochMetrics) -> None:
    """Check that the network that a training ends with is the function that this row of its curve measured.

    Raises:
        DecantError: It is not: layers keep something that is neither a parameter nor a buffer of their state.
    """
    found, measured = goal.loss(outputs), row["validation_loss"]
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
    now = state(progress.module)
    fractions = progress.fractions
    with torch.no_grad():
        torch._foreach_lerp_([progress.averaged[n] for n in fractions], [now[n] for n in fractions], share)
        for name in now.keys() - fractions:
            progress.averaged[name].copy_(now[name])


def _set_rate_(optimizer: torch.optim.Optimizer, training: Training, at: float) -> float:
    rate = training.optimizer.learning_rate * training.schedule.factor(at)
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


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _bar(title: str, epochs: int, training: Training, train: Examples, done: int) -> tqdm[Any]:
    """Return the bar over all epochs' images, which is there at once and stays."""
    whole = _steps(train, training) * min(training.batch_size, len(train))
    total, initial = epochs * whole, done * whole
    return progress_bar(
        None, title, "images", total=total, initial=initial, unit_scale=True, delay=0, leave=True
    )
