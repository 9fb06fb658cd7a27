"""How weights satisfy their constraints in each step of a training.

A mask that stays needs nothing in the forward pass: the weights behind it are zero once, and stay zero as
their gradients are. Other constraints, and masks that change, are projected onto in each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from decant.checkpoints.constraints import FREE, Constraints, project_
from decant.checkpoints.gradients import straight_through


@dataclass
class Held:
    """The constraints of a training's weights.

    Attributes:
        constraints: Those that the weights came with, by name.
        masks: Masks that change beside these, as they were last given.
        dense: Whether gradients reach weights behind masks.
    """

    constraints: Mapping[str, Constraints] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    dense: bool = False
    _narrowed: Mapping[str, Constraints] | None = None
    _zeros: tuple[list[Tensor], list[Tensor]] | None = None

    def change_(self, masks: Mapping[str, Tensor], dense: bool) -> None:
        """Hold these masks from here on, beside the constraints that the weights came with."""
        same = masks.keys() == self.masks.keys() and all(
            mask is self.masks[name] for name, mask in masks.items()
        )
        if not same:
            self.masks, self._narrowed = dict(masks), None
        self.dense = dense

    @property
    def all(self) -> Mapping[str, Constraints]:
        """The constraints now, by the weight's name."""
        if self._narrowed is None:
            self._narrowed = {
                **self.constraints,
                **{name: self.constraints.get(name, FREE).narrow(mask=m) for name, m in self.masks.items()},
            }
        return self._narrowed

    @property
    def _still(self) -> set[str]:
        """The weights that have no more than a mask that stays."""
        if self.masks or self.dense:
            return set()
        return {n for n, each in self.constraints.items() if each.range is None and each.levels is None}

    def begin_(self, module: nn.Module) -> None:
        """Set weights behind masks that stay to zero, in place."""
        project_(module, {name: self.constraints[name] for name in self._still})

    def satisfying(self, module: nn.Module) -> dict[str, Tensor]:
        """Return the weights that stand in for the free ones in a forward pass, by name."""
        still = self._still
        return {
            name: straight_through(module.get_parameter(name), constraint, self.dense)
            for name, constraint in self.all.items()
            if name not in still
        }

    def mask_gradients_(self, module: nn.Module) -> None:
        """Set gradients behind masks that stay to zero, in place."""
        if not (still := self._still):
            return
        if self._zeros is None:
            weights = [module.get_parameter(name) for name in self.constraints if name in still]
            masks = [self.constraints[name].mask for name in self.constraints if name in still]
            pairs = [
                (weight, torch.zeros_like(weight, memory_format=torch.preserve_format).copy_(mask).detach())
                for weight, mask in zip(weights, masks, strict=True)
                if mask is not None and weight.requires_grad
            ]
            self._zeros = [weight for weight, _ in pairs], [mask for _, mask in pairs]
        found = [
            (weight.grad, mask) for weight, mask in zip(*self._zeros, strict=True) if weight.grad is not None
        ]
        if found:
            torch._foreach_mul_([gradient for gradient, _ in found], [mask for _, mask in found])
