"""Running networks: with the same bits every time, and without gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from decant.examples import pixels
from decant.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def predict(module: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 250) -> Tensor:
    """Return logits [N, K] of uint8 images [N, C, H, W], without gradients; the caller sets eval mode.

    The batch size is fixed because the last bits of a sum depend on it.
    """
    with torch.no_grad():
        return torch.cat([module(pixels(batch)) for batch in images.split(batch_size)])


def make_deterministic(threads: int) -> None:
    """Set the process up so that it gives the same bits every time.

    Args:
        threads: How many every sum is split over; the order of a sum decides its last bits.
    """
    torch.set_num_threads(threads)
    # The same as use_deterministic_algorithms(True), which also imports torch's compiler: a second per stage.
    torch.set_deterministic_debug_mode("error")
    # It also fills fresh memory with NaN, to show who reads it too early; a training slows down by a tenth.
    # (The attribute is a property that torch hangs onto the module at run time, which mypy cannot see.)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
