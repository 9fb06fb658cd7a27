"""A network in training, with all that changes beside it: what an interrupted training is resumed from."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from decant.checkpoints.checkpoint import state
from decant.checkpoints.constraints import Constraints, project_
from decant.networks.compiling import compiled
from decant.networks.devices import CPU, moved
from decant.networks.ties import places
from decant.training.averages import reader
from decant.training.held import Held
from decant.training.recipe import Training
from decant.training.resume import check_form
from decant.training.scaling import Scaler
from decant.training.spread import Spread
from decant.training.teaching import Teaching

EpochMetrics = dict[str, float]
"""One epoch of the curve."""

PROCESSES = "processes"
"""The curve's column of how many processes trained an epoch, where it was not one for all."""


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
class Trainee:
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

    @property
    def fractions(self) -> list[str]:
        """What is averaged, by name."""
        return self.averages[0]

    @cached_property
    def averages(self) -> tuple[list[str], list[str]]:
        """Names of what is averaged, fractions but no tables that hold infinities; and of the rest."""
        fit = {n: t.is_floating_point() and bool(t.isfinite().all()) for n, t in self.averaged.items()}
        return [name for name, yes in fit.items() if yes], [name for name, yes in fit.items() if not yes]

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
        self.best = {"tensors": copied(self.final(training)), "masks": copied(masks)}
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


def _copied(outputs: Any) -> Any:
    """Return what a network returned in memory of its own, with its gradients."""
    return tree_map_only(Tensor, torch.clone, outputs)


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors, by name, in memory of their own and without gradients."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
