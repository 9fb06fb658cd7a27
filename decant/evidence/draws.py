"""Random numbers that belong to an example: a function of its index and a purpose, whatever else is drawn."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from decant.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""The odd number by which the states of a stream lie apart: 2^64 over the golden ratio."""


def uniforms(indices: Tensor, count: int, purpose: str) -> Tensor:
    """Return `count` numbers in (0, 1) for each example, [N, count], float64.

    A row depends on its index and the purpose alone. Each is a stream of SplitMix64 that begins where the
    hash of both says; the upper 53 bits of each of its numbers are used.

    Args:
        indices: Of the examples [N], int64.
        count: How many numbers each gets.
        purpose: What they are for; another one gives others.

    References:
        Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014, OOPSLA.
    """
    key = np.frombuffer(sha256(purpose.encode()).digest()[:8], "<u8").astype(np.uint64)
    rows = indices.numpy().astype(np.uint64)
    begins = _mixed(key ^ _mixed((rows + np.uint64(1)) * GAMMA))
    states = begins[:, None] + np.arange(1, count + 1, dtype=np.uint64) * GAMMA
    found = ((_mixed(states) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return torch.from_numpy(found)


def normals(indices: Tensor, count: int, purpose: str) -> Tensor:
    """Return numbers of mean 0 and deviation 1 as `uniforms` does, [N, count], float64: by inversion."""
    return torch.special.ndtri(uniforms(indices, count, purpose))


def _mixed(states: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return what SplitMix64 makes of each state."""
    found = (states ^ (states >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return found ^ (found >> np.uint64(31))
