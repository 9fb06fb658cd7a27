"""Tensors in pieces that fit a core's cache, for several operations on each before the next comes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from decant.networks.devices import CPU

PIECE = 1 << 17
"""Numbers of a piece; half a megabyte in float32."""


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the numbers of tensors of one shape, piece by piece, as views: of each tensor [M], the same ones.

    What comes of arithmetic number by number is the same to the bit. In one piece, as they are, come tensors
    that are small, lie in memory in different orders or with gaps, are compiled, or are not on the processor.
    """
    first = tensors[0]
    if first.numel() <= PIECE or torch.compiler.is_compiling() or not all(_dense(t, first) for t in tensors):
        yield tensors
        return
    yield from zip(*(t.as_strided((t.numel(),), (1,)).split(PIECE) for t in tensors), strict=True)


def _dense(tensor: Tensor, first: Tensor) -> bool:
    """Say whether a tensor lies on the processor without gaps, in the order of the first."""
    whole = tensor.is_contiguous() or (
        tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    )
    return tensor.device.type == CPU and whole and tensor.stride() == first.stride()
