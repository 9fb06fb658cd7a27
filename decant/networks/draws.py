"""What a training draws comes from its recipe, also where layers know the global generators alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from decant.networks.devices import draw_from_, drawn_by, drawn_so_far


@contextmanager
def drawing(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Let everything inside that draws from a global generator draw as this seed says.

    These are torch's on the CPU, NumPy's and Python's. Afterwards they stand where they stood: what ran
    before does not change what is drawn, nor that what runs after.

    Args:
        seed: In [0, 2^63).
        device: Whose own generator draws as the seed says too.
    """
    of_torch, of_numpy, of_python = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        with drawn_by(device or torch.device("cpu"), seed):
            yield
    finally:
        torch.set_rng_state(of_torch)
        np.random.set_state(of_numpy)
        random.setstate(of_python)


class Stream:
    """What is drawn here and there, from a state of its own, as if it were drawn in one go.

    Args:
        seed: In [0, 2^63).
        device: Whose own generator has such a state too.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        with drawing(seed, device):
            self._states = self._now()

    def _now(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return torch.get_rng_state(), drawn_so_far(self._device)

    def _put(self, states: tuple[torch.Tensor, torch.Tensor | None]) -> None:
        torch.set_rng_state(states[0])
        draw_from_(self._device, states[1])

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Let torch's generators go on from where this stream stands; afterwards they are where they were."""
        before = self._now()
        self._put(self._states)
        try:
            yield
        finally:
            self._states = self._now()
            self._put(before)
