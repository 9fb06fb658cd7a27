"""The scaler of a training in float16, by which gradients that are too small for it become larger."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decant.errors import DecantError, Message

FIRST = 2.0**16
"""The scale of the first step."""

LARGEST = 2.0**24

GROWTH = 2000
"""Steps in a row without infinity after which the scale is doubled."""


@dataclass
class Scaler:
    """The factor that the loss is multiplied by, and its gradients divided by, in products of float16.

    The largest power of two that keeps gradients finite: it is halved after a step whose gradients are NaN or
    infinite, which is skipped, and doubled after `GROWTH` steps in a row without one. All of it is a function
    of the gradients, so a training repeats it. Off, the gradients are left as they come.

    Attributes:
        on: Whether products are of float16.
        scale: The factor; a power of two, so that nothing is rounded by it.
        steady: Steps since it changed.
        skipped: Steps that were skipped, since the training began.
        counted: Of these, those that rows of the curve have.

    References:
        Micikevicius et al., Mixed Precision Training, 2017, section 3.2. https://arxiv.org/abs/1710.03740
    """

    on: bool = False
    scale: float = FIRST
    steady: int = 0
    skipped: int = 0
    counted: int = 0

    def scaled(self, loss: Tensor) -> Tensor:
        """Return what gradients are taken of; shape []."""
        return loss * self.scale if self.on else loss

    def usable_(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Divide the gradients of all that is trained by the scale, in place; say whether they are of use.

        Raises:
            DecantError: They are NaN or infinite at a scale of 1.
        """
        if not self.on:
            return True
        gradients = [each.grad for each in parameters if each.grad is not None]
        torch._foreach_mul_(gradients, 1 / self.scale)
        finite = _finite(gradients)
        self._adapt(finite)
        return finite

    def _adapt(self, finite: bool) -> None:
        self.steady = self.steady + 1 if finite else 0
        self.skipped += not finite
        if not finite and self.scale <= 1:
            raise DecantError(
                f"In float16 gradients are NaN or infinite at a scale of 1 too ({self.told}); "
                "take precision: bfloat16, or lower the learning rate"
            )
        if not finite:
            self.scale /= 2
        elif self.steady >= GROWTH and self.scale < LARGEST:
            self.scale, self.steady = self.scale * 2, 0

    @property
    def told(self) -> Message:
        """What a sentence says of it."""
        steps = "1 step" if self.skipped == 1 else f"{self.skipped:,} steps"
        return f"the scaler skipped {steps} and stands at {self.scale:g}"

    def remedy(self, otherwise: Message) -> Message:
        """Return what to do about numbers that are NaN or infinite."""
        return f"take precision: bfloat16, or {otherwise} ({self.told})" if self.on else otherwise

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it adds to the curve."""
        return ("skipped_steps",) if self.on else ()

    def row_(self) -> dict[str, float]:
        """Return what the curve says of it, an epoch at a time: the steps skipped since the last row."""
        before, self.counted = self.counted, self.skipped
        return dict.fromkeys(self.columns, float(self.skipped - before))

    def content(self) -> dict[str, Any]:
        """Return what an interrupted training is resumed from; nothing where it is off."""
        if not self.on:
            return {}
        return {"scaler": {"scale": self.scale, "steady": self.steady, "skipped": self.skipped}}

    def restore_(self, content: dict[str, Any]) -> None:
        """Go on from what `content` returned.

        Raises:
            ValueError: It is no state of a scaler.
        """
        if not self.on:
            return
        found = content["scaler"]
        if not 1 <= found["scale"] <= LARGEST or min(found["steady"], found["skipped"]) < 0:
            raise ValueError(f"its scaler stands at {found}")
        self.scale, self.steady, self.skipped = found["scale"], found["steady"], found["skipped"]
        self.counted = self.skipped


def _finite(gradients: Iterable[Tensor]) -> bool:
    """Say whether all gradients are finite: they are where the norm of each is."""
    norms = torch._foreach_norm(list(gradients))
    return bool(torch.stack([norm.float() for norm in norms]).isfinite().all())
