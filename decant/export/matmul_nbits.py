"""Weights as MatMulNBits, ONNX Runtime's product of float32 inputs and weights of four bits, takes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from decant.checkpoints.constraints import Constraints, Levels
from decant.lowering.integers import by_channel, steps_of, whole_numbers

BLOCKS = (16, 32, 64, 128, 256)
"""How many weights in a row can share a scale in MatMulNBits."""

WIDTH = 4
"""Bits of a code in MatMulNBits. With inputs in float32 its kernels for 2 and for 8 bits unpack the whole
weight at each run: 15 to 50 times as slow as float32 weights for one image, in ONNX Runtime 1.32."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A linear layer's weight as MatMulNBits takes it: `(code - zero_point) * scale` in blocks of each row.

    Attributes:
        codes: [O, B, block / 2], uint8, two codes of 4 bits in a byte, the first in the lower half.
        scale: [O, B], float32.
        zero_points: [O, ceil(B / 2)], uint8, packed alike; None where all are 8.
        block: Weights in a block; the last one's places beyond the row stand for zeros.
    """

    codes: Tensor
    scale: Tensor
    zero_points: Tensor | None
    block: int


def packed(weight: Tensor, held: Constraints) -> Packed | None:
    """Return a linear layer's weight [O, I] in blocks of 4-bit codes, or None where it has no such form.

    It has one where its levels are whole numbers that 4 bits hold, with a scale for the tensor, for each
    output channel, or for groups of 16, 32, 64, 128 or 256. Fewer bits are widened: the kernel knows four.
    Where groups leave the choice, the blocks are those that take the fewest bytes.
    """
    levels = held.levels
    if levels is None or weight.dim() != 2 or not whole_numbers(levels) or not by_channel(levels, weight):
        return None
    if levels.group is not None and levels.group not in BLOCKS:
        return None
    steps = steps_of(weight, held, levels)
    middle = 2 ** (WIDTH - 1)
    zero_point = torch.full(levels.scale.shape, middle) if levels.zero_point is None else levels.zero_point
    codes = steps + levels.spread(zero_point.long(), weight.shape)
    if not 0 <= int(codes.min()) <= int(codes.max()) < 2**WIDTH:
        return None
    rows, width = weight.shape
    block = levels.group or min(BLOCKS, key=lambda size: -(-width // size) * (size * WIDTH // 8 + 4))
    count = -(-width // block)
    each = [_blocks(numbers, rows, count, levels) for numbers in (levels.scale, zero_point.long())]
    spare = each[1][:, -1:].expand(rows, count * block - width)
    filled = torch.cat([codes, spare], 1).reshape(rows, count, block)
    return Packed(_halves(filled), each[0], None if levels.zero_point is None else _halves(each[1]), block)


def _blocks(numbers: Tensor, rows: int, count: int, levels: Levels) -> Tensor:
    """Return one number for each block [O, B], of numbers by tensor, channel or group."""
    return numbers if levels.group is not None else numbers.reshape(-1, 1).expand(rows, count).contiguous()


def _halves(codes: Tensor) -> Tensor:
    """Return codes of 4 bits [..., n] in bytes [..., ceil(n / 2)], the first in the lower half."""
    even = torch.cat([codes, codes.new_zeros(*codes.shape[:-1], codes.shape[-1] % 2)], -1)
    return (even[..., ::2] + even[..., 1::2] * 16).to(torch.uint8)
