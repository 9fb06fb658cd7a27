"""Where the bytes of a model lie: tensor by tensor, as they are packed on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decant.checkpoints.checkpoint import Checkpoint, state
from decant.checkpoints.constraints import FREE, Constraints
from decant.checkpoints.packing import encode_mask, packed_size

FLOAT = 4
"""Bytes of a number in float32, as scales, levels and unconstrained weights are written."""


@dataclass(frozen=True)
class Layer:
    """One tensor of a model, by its name.

    Attributes:
        name: Such as `stages.0.conv1.weight`.
        shape: Such as `64, 32, 3, 3`.
        count: Its elements.
        zeros: How many of them are zero.
        bytes: What it takes in model.safetensors: codes, scales and mask, or numbers as they are.
        holds: The constraints on it; empty where there are none.
        untouched: Why the last step left it alone; empty where it did not.
        changed: How many elements the last step changed; None where the ledger does not say.
    """

    name: str
    shape: str
    count: int
    zeros: int
    bytes: int
    holds: str
    untouched: str
    changed: int | None

    @property
    def bits(self) -> float:
        """Bits for each element, zeros included."""
        return 8 * self.bytes / self.count if self.count else 0.0

    @property
    def sparsity(self) -> float:
        """The share of zeros, in [0, 1]."""
        return self.zeros / self.count if self.count else 0.0


def layers_of(model: Checkpoint, ledger: Mapping[str, Mapping[str, Any]]) -> list[Layer]:
    """Return every tensor that model.safetensors holds, in its order.

    Args:
        model: As it was read.
        ledger: The entries of ledger.json by the parameter's name; without them nothing is said of changes.
    """
    return [_layer(name, tensor, model, ledger.get(name, {})) for name, tensor in state(model.module).items()]


def stored_bytes(weight: Tensor, constraints: Constraints) -> int:
    """Return the bytes that a tensor takes in model.safetensors: as `decant.checkpoints.files` writes it."""
    count, mask, levels = weight.numel(), constraints.mask, constraints.levels
    bounds = constraints.range.low if constraints.range and constraints.range.per_channel else None
    size = 2 * FLOAT * bounds.numel() if isinstance(bounds, Tensor) else 0
    if mask is not None:
        size, count = size + len(encode_mask(mask.flatten().numpy())[0]), int(mask.sum())
    if levels is None:
        return size + count * weight.element_size()
    size += packed_size(count, len(levels.values)) + FLOAT * levels.scale.numel()
    size += levels.zero_point.numel() if levels.zero_point is not None else 0
    return size + (FLOAT * len(levels.values) if levels.integers is None else 0)


def _layer(name: str, tensor: Tensor, model: Checkpoint, entry: Mapping[str, Any]) -> Layer:
    constraints = model.constraints.get(name, FREE)
    return Layer(
        name=name,
        shape=", ".join(map(str, tensor.shape)) or "1",
        count=tensor.numel(),
        zeros=tensor.numel() - int(torch.count_nonzero(tensor)),
        bytes=stored_bytes(tensor, constraints),
        holds=str(entry.get("holds", "")) or constraints.describe(),
        untouched=str(entry.get("untouched", "")),
        changed=entry.get("changed"),
    )
