"""Masks that change inside a training: ever more of them, or always as many in other places."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from decant.checkpoints.constraints import project_
from decant.errors import DecantError
from decant.networks.devices import CPU, device_of, moved, place_
from decant.prune.mask_pruning import MaskPruning
from decant.prune.masks import Masks, masked, masks_of, ranked
from decant.prune.schedules import Gradual, Rigl, Surgery
from decant.prune.structures import lowest


class GradualSparsifier:
    """Masks that grow by the cubic; with `surgery`, and where movement is scored, weights may come back.

    Attributes:
        masks: By weight; True survives.
        dense: Whether values live on behind the masks.
    """

    def __init__(self, pruning: MaskPruning, schedule: Gradual | Surgery) -> None:
        self._once, self._schedule, self._removed = pruning, schedule, pruning.zeros
        self._moves = pruning.block.criterion.accumulates
        self._moved: Masks = {}
        self.masks: Masks = {}
        self.dense = self._moves or isinstance(schedule, Surgery)

    def before_(self, module: nn.Module, step: int, steps: int) -> None:
        """Change the masks where it is time.

        Raises:
            DecantError: They are final before the first step, and the criterion scores steps.
        """
        if self._moves and self._schedule.complete(1, steps):
            raise DecantError(
                f"schedule.end: {self._schedule.end:g} of {steps} steps is before the first one, and "
                f"{self._once.block.criterion.kind} scores steps; raise it, or train for more epochs"
            )
        if self._schedule.due(step, steps) and (part := self._schedule.ramp(step, steps)) > 0:
            candidates = self._once.candidates(self._scores(module))
            counts = candidates.reaching(round(part * self._removed))
            if self._once.block.budget is None:
                counts = {name: math.ceil(part * count) for name, count in counts.items()}
            candidates.check(counts)
            self.masks = moved(candidates.masks(counts), device_of(module))

    def after_(self, module: nn.Module) -> None:
        """Add up how far each weight moves away from zero."""
        if self._moves:
            for name in self._once.names:
                weight = module.get_parameter(name)
                assert weight.grad is not None
                moved = -(weight.detach() * weight.grad).contiguous()
                self._moved[name] = self._moved[name] + moved if name in self._moved else moved

    def complete(self, taken: int, steps: int) -> bool:
        """Say whether the masks are final, once `taken` of all `steps` were taken."""
        return self._schedule.complete(taken, steps)

    def content(self) -> dict[str, Any]:
        """Return what an interrupted training is resumed from."""
        return {"masks": self.masks, "moved": self._moved}

    def restore_(self, content: dict[str, Any]) -> None:
        """Go on from what `content` returned."""
        self.masks, self._moved = content["masks"], content["moved"]

    def _scores(self, module: nn.Module) -> Masks:
        if self._moves:
            return ranked(moved(self._moved, CPU), masks_of(self._once.parent))
        masks = moved(self.masks, CPU)
        scores = self._once.scores(_standing(module, {} if self.dense else masks, self._once))
        for name, mask in masks.items():
            behind = scores[name] / (1 + self._schedule.lead) if isinstance(self._schedule, Surgery) else None
            scores[name] = torch.where(mask, scores[name], -math.inf if behind is None else behind)
        return scores


class RiglSparsifier:
    """Masks of constant sparsity: the smallest weights make way for those of the largest gradient (RigL).

    Attributes:
        masks: By weight; True survives.
        dense: Whether gradients reach masked weights: before a change they do, to be compared.
    """

    def __init__(self, pruning: MaskPruning, schedule: Rigl) -> None:
        self._once, self._schedule = pruning, schedule
        self._gradients: Masks = {}
        candidates = pruning.candidates(pruning.scores())
        candidates.check(counts := candidates.reaching(pruning.zeros))
        self.masks = candidates.masks(counts)
        self.dense = False

    def before_(self, module: nn.Module, step: int, steps: int) -> None:
        """Swap where it is time, and say whether the next step's gradients are wanted."""
        self.masks = moved(self.masks, device_of(module))
        if self._gradients and self._schedule.due(step, steps):  # none where float16 skipped the step
            share = self._schedule.share * (1 + math.cos(math.pi * step / (self._schedule.end * steps))) / 2
            for name, mask in self.masks.items():
                self.masks[name] = self._swapped_(module.get_parameter(name), name, mask, share)
        self.dense = self._schedule.due(step + 1, steps)

    def after_(self, module: nn.Module) -> None:
        """Keep the gradients that the next change compares."""
        if self.dense:
            for name in self.masks:
                gradient = module.get_parameter(name).grad
                assert gradient is not None
                self._gradients[name] = gradient.detach().clone(memory_format=torch.contiguous_format)

    def complete(self, taken: int, steps: int) -> bool:
        """Say whether the masks are final, once `taken` of all `steps` were taken."""
        return self._schedule.complete(taken, steps)

    def content(self) -> dict[str, Any]:
        """Return what an interrupted training is resumed from."""
        return {"masks": self.masks, "gradients": self._gradients}

    def restore_(self, content: dict[str, Any]) -> None:
        """Go on from what `content` returned."""
        self.masks, self._gradients = content["masks"], content["gradients"]

    def _swapped_(self, weight: Tensor, name: str, mask: Tensor, share: float) -> Tensor:
        """Return the mask with a share of the survivors elsewhere; these begin at zero, in place."""
        earlier = moved(masks_of(self._once.parent).get(name, torch.ones_like(mask)), mask.device)
        room = earlier & ~mask
        count = min(int(share * int(mask.sum())), int(room.sum()))
        sizes = torch.where(mask, weight.detach().abs(), math.inf).flatten()
        grown = torch.where(room, -self._gradients[name].abs(), math.inf).flatten()
        leaving, coming = lowest(sizes, count).reshape(mask.shape), lowest(grown, count).reshape(mask.shape)
        with torch.no_grad():
            weight[coming] = 0.0
        return (mask & ~leaving) | coming


def _standing(module: nn.Module, masks: Masks, pruning: MaskPruning) -> nn.Module:
    """Return a copy to score on the processor: in eval mode, contiguous, and with these masks held."""
    copied = place_(copy.deepcopy(module).eval(), CPU)
    for parameter in copied.parameters():
        parameter.data = parameter.data.contiguous()
        parameter.grad = None
    held = masked(pruning.parent, masks).constraints if masks else pruning.parent.constraints
    project_(copied, held)
    return copied
