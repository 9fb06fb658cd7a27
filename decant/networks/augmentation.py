"""Random changes of pictures that leave what they show as it is."""

from __future__ import annotations

from functools import cache
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
        drawn, moves = self._draws(len(images) if of is None else len(of), generator)
        if not (self.flip or self.shift):  # it draws, as what is drawn after it has to be the same
            return images
        flips, shifts = sent((drawn, moves) if of is None else (drawn[of], moves[:, of]), images.device)
        padded = torch.nn.functional.pad(images, [self.shift] * 4).contiguous()
        # Numbers of 32 bits where these suffice: what they take to be read is what all of it costs.
        kind = torch.int64 if padded.numel() > torch.iinfo(torch.int32).max else torch.int32
        first = torch.arange(0, padded.numel(), padded[0].numel(), device=images.device)
        starts = (first + shifts[1] * padded.shape[-1] + shifts[0]).to(kind)
        places = _places(tuple(images.shape[1:]), tuple(padded.shape[2:]), kind, images.device)
        wanted = places.index_select(0, flips.int()).add_(starts[:, None])
        return padded.view(-1).index_select(0, wanted.view(-1)).view(images.shape)

    def _draws(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return which images are flipped [N], and their first columns and rows in padded ones, [2, N]."""
        drawn = torch.rand(count, generator=generator) < (0.5 if self.flip else 0.0)
        moves = torch.randint(-self.shift, self.shift + 1, (2, count, 1), generator=generator) + self.shift
        return drawn, moves[..., 0]


@cache
def _places(
    shape: tuple[int, ...], padded: tuple[int, ...], kind: torch.dtype, device: torch.device
) -> Tensor:
    """Return where an image's numbers lie in one that is padded, [2, C H W]; row 1 is for it mirrored.

    Args:
        shape: C, H and W of the image.
        padded: Rows and columns of the other one.
        kind: Of the result.
        device: Where it is wanted.
    """
    channels, rows, columns = (torch.arange(size, device=device) for size in shape)
    lines = (channels[:, None] * padded[0] + rows)[..., None] * padded[1]
    return torch.stack([lines + columns, lines + columns.flip(0)]).to(kind).flatten(1)
