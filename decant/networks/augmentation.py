"""Random changes of pictures that leave what they show as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decant.lazy import torch
from decant.networks.devices import sent
from decant.schema import Index, Section

if TYPE_CHECKING:
    from torch import Tensor


class Augmentation(Section):
    """Random changes of every training image: mirrored half of the time, shifted in both directions.

    A flip does not help where left and right have a meaning, as in digits.
    """

    flip: bool = False
    shift: Index = 0

    def apply(self, images: Tensor, generator: torch.Generator, of: Tensor | None = None) -> Tensor:
        """Return images [N, C, H, W], each flipped and shifted by its own draw; what shifts in is zero.

        Args:
            images: Some of a batch.
            generator: Draws, on the processor, for the whole batch.
            of: Which images of the batch [M] these are, True in N places; None where they are all.
        """
        (count, _, height, width), device = images.shape, images.device
        drawn, moves = self._draws(count if of is None else len(of), generator)
        flips, shifts = sent((drawn, moves) if of is None else (drawn[of], moves[:, of]), device)
        columns = torch.arange(width, device=device).expand(count, -1)
        columns = torch.where(flips[:, None], columns.flip(1), columns) + shifts[0]
        rows = torch.arange(height, device=device) + shifts[1]
        padded = torch.nn.functional.pad(images, [self.shift] * 4)
        # Rows as they lie, then their columns: one look for each number would take twice as long.
        picked = padded.transpose(1, 2)[torch.arange(count, device=device)[:, None], rows]
        wanted = columns[:, None, None].expand(count, height, images.shape[1], width)
        return picked.gather(3, wanted).transpose(1, 2)

    def _draws(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return which images are flipped [N], and how far each is moved down and to the right, [2, N, 1]."""
        drawn = torch.rand(count, generator=generator) < (0.5 if self.flip else 0.0)
        moves = torch.randint(-self.shift, self.shift + 1, (2, count, 1), generator=generator) + self.shift
        return drawn, moves
