"""Integers at their real width, masks as positions, all numbers of a model in two streams: exact both ways.

A name for each tensor would take more bytes than the numbers of a small model of few bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from decant.errors import DecantError

Bytes = npt.NDArray[np.uint8]


WORD = 8
"""Bytes of the word that several codes share where that takes less than whole bits each."""

GAP_BITS = range(2, 9)
"""How wide the gaps between a mask's survivors may be written."""

TYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}
"""The types of tensors that are written, by name."""

TAIL = 1 << 16
"""Most zeros behind a mask's last gap; a longer run is written, so that few bytes never make a large mask."""


def type_name(name: str, tensor: Tensor) -> str:
    """Return the name of a tensor's type.

    Raises:
        DecantError: Tensors of this type are not written; says which one it is.
    """
    found = str(tensor.dtype).removeprefix("torch.")
    if found not in TYPES or tensor.layout != torch.strided:
        raise DecantError(
            f"{name} is a {tensor.layout} tensor of {found}, expected a dense one of {', '.join(TYPES)}; "
            "keep it in one of these: a complex one as torch.view_as_real(…), made complex again in forward"
        )
    return found


def typed(name: str) -> torch.dtype:
    """Return the type of this name.

    Raises:
        ValueError: There is none.
    """
    if name not in TYPES:
        raise ValueError(f"there is no type {name!r}")
    return TYPES[name]


def packed_size(count: int, levels: int) -> int:
    """Return the bytes of `count` codes of `levels` values: the fewer of the two ways to pack them.

    Raises:
        ValueError: `levels` is not in [2, 256].
    """
    if not 2 <= levels <= 256:
        raise ValueError(f"Codes are of 2 to 256 levels, got {levels}")
    bits = _bits(levels)
    return min(-(-count * bits // 8), _words(count, levels))


def pack(codes: Bytes, levels: int) -> Bytes:
    """Return codes [N] below `levels` as bytes, in whole bits each or as digits of 64-bit words.

    In whole bits, lowest first, a code of three levels takes 2; as digits of base 3, of which 40 fit into a
    word, it takes 1.6, where the least is 1.585. Words are written to their end, lowest byte first, but the
    last one only as far as its digits reach.

    Raises:
        ValueError: `levels` is not in [2, 256], or a code is no level.
    """
    size = packed_size(codes.size, levels)
    if codes.size and int(codes.max()) >= levels:
        raise ValueError(f"Code {int(codes.max())} is none of {levels} levels")
    if size < -(-codes.size * _bits(levels) // 8):
        return _pack_words(codes, levels)
    spread = np.unpackbits(codes.reshape(-1, 1), axis=1, count=_bits(levels), bitorder="little")
    return np.packbits(spread.reshape(-1), bitorder="little")


def unpack(packed: Bytes, levels: int, count: int) -> Bytes:
    """Return the `count` codes that `pack` was given.

    Raises:
        ValueError: The bytes are not as many as `count` codes take, or hold a code that is no level.
    """
    if packed.size != packed_size(count, levels):
        raise ValueError(
            f"{count} codes of {levels} levels take {packed_size(count, levels)} bytes, found {packed.size}"
        )
    if _words(count, levels) < -(-count * _bits(levels) // 8):
        return _unpack_words(packed, levels, count)
    codes = _codes(packed, _bits(levels), count)
    if codes.size and int(codes.max()) >= levels:
        raise ValueError(f"Code {int(codes.max())} is none of {levels} levels")
    return codes


def _bits(levels: int) -> int:
    return max(1, (levels - 1).bit_length())


def _digits(levels: int) -> int:
    """Return how many codes fit into one word."""
    digits, reached = 0, 1
    while (reached := reached * levels) <= 2 ** (8 * WORD):
        digits += 1
    return digits


def _words(count: int, levels: int) -> int:
    """Return the bytes of `count` codes in words, the last one cut where its digits end."""
    whole, rest = divmod(count, _digits(levels))
    return whole * WORD + -(-(levels**rest - 1).bit_length() // 8)


def _pack_words(codes: Bytes, levels: int) -> Bytes:
    digits = _digits(levels)
    padded = np.zeros(-(-codes.size // digits) * digits, np.uint64)
    padded[: codes.size] = codes
    words = np.zeros(padded.size // digits, np.uint64)
    for column in reversed(padded.reshape(-1, digits).T):
        words = words * np.uint64(levels) + column
    return words.astype("<u8").view(np.uint8)[: _words(codes.size, levels)]


def _unpack_words(packed: Bytes, levels: int, count: int) -> Bytes:
    digits = _digits(levels)
    padded = np.zeros(-(-count // digits) * WORD, np.uint8)
    padded[: packed.size] = packed
    words = padded.view("<u8").astype(np.uint64)
    codes = np.empty((words.size, digits), np.uint8)
    for place in range(digits):
        words, codes[:, place] = np.divmod(words, np.uint64(levels))
    return codes.reshape(-1)[:count]


def encode_mask(kept: npt.NDArray[np.bool_]) -> tuple[Bytes, int]:
    """Return the mask [N] in the fewest bytes, and its gap width: 0 for a bitmap, else 2 to 8 bits.

    A bitmap takes one bit a weight, whatever it holds. Gaps take `width` bits for each survivor: the number
    of zeros before it, the largest number meaning `so many zeros and no survivor yet`. The last `TAIL` zeros
    need no gap. Gaps win above about 75 % of zeros.
    """
    encodings = [(np.packbits(kept, bitorder="little"), 0)]
    encodings += [(_encode_gaps(kept, width), width) for width in GAP_BITS]
    return min(encodings, key=lambda encoding: (encoding[0].size, encoding[1]))


def decode_mask(encoded: Bytes, width: int, survivors: int, count: int) -> npt.NDArray[np.bool_]:
    """Return the mask [count] that `encode_mask` was given.

    Raises:
        ValueError: The bytes do not hold `survivors` survivors among `count` weights; or there is no such
            width.
    """
    if width not in (0, *GAP_BITS):
        raise ValueError(f"Gaps of a mask take 2 to 8 bits, or 0 for a bitmap, got {width}")
    if width == 0 and encoded.size != -(-count // 8):
        raise ValueError(f"A bitmap of {count} weights takes {-(-count // 8)} bytes, found {encoded.size}")
    if width == 0:
        kept = np.unpackbits(encoded, count=count, bitorder="little").astype(bool)
    else:
        kept = _decode_gaps(encoded, width, survivors, count)
    if int(kept.sum()) != survivors:
        raise ValueError(f"The mask holds {int(kept.sum())} survivors, expected {survivors}")
    return kept


def _encode_gaps(kept: npt.NDArray[np.bool_], width: int) -> Bytes:
    escape = (1 << width) - 1
    gaps = np.diff(np.flatnonzero(kept), prepend=-1) - 1
    ends = np.cumsum(gaps // escape + 1)
    written = int(ends[-1]) if ends.size else 0
    behind = kept.size - (int(gaps.sum()) + gaps.size)
    codes = np.full(written + max(0, -(-(behind - TAIL) // escape)), escape, np.uint8)
    codes[ends - 1] = gaps % escape
    return pack(codes, 1 << width)


def _decode_gaps(encoded: Bytes, width: int, survivors: int, count: int) -> npt.NDArray[np.bool_]:
    escape = (1 << width) - 1
    codes = _codes(encoded, width, encoded.size * 8 // width)
    is_survivor = codes != escape
    ends = np.cumsum(codes.astype(np.int64) + is_survivor)
    # The last byte may be padded with zero bits, which read as survivors of gap 0 behind the last one.
    positions = (ends[is_survivor] - 1)[:survivors]
    if positions.size and positions[-1] >= count:
        raise ValueError(f"The mask points at weight {positions[-1]} of {count}")
    if (reached := int(ends[-1]) if ends.size else 0) + TAIL < count:
        raise ValueError(f"The mask ends at weight {reached} of {count}")
    kept = np.zeros(count, bool)
    kept[positions] = True
    return kept


def _codes(packed: Bytes, bits: int, count: int) -> Bytes:
    spread = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    return np.packbits(spread, axis=1, bitorder="little").reshape(-1)


class Parts:
    """The numbers of a model in the order in which they are written, and read again: floats, and bytes."""

    def __init__(self) -> None:
        self._floats: list[Tensor] = []
        self._packed: list[Tensor] = []

    def add_floats(self, tensor: Tensor) -> None:
        """Append numbers of any shape, in float32."""
        self._floats.append(tensor.detach().float().flatten())

    def add(self, tensor: Tensor) -> None:
        """Append numbers of any shape in their own type: float32 to the floats, others as bytes."""
        if tensor.dtype == torch.float32:
            self.add_floats(tensor)
        else:
            self._packed.append(tensor.detach().contiguous().reshape(-1).view(torch.uint8))

    def add_packed(self, packed: Bytes) -> None:
        """Append bytes."""
        self._packed.append(torch.from_numpy(packed))

    def tensors(self) -> dict[str, Tensor]:
        """Return the two streams by name; one that is empty is left out."""
        streams = {"floats": self._floats, "packed": self._packed}
        return {name: torch.cat(parts) for name, parts in streams.items() if parts}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Parts:
        """Return what `tensors` came from, to be read from the front.

        Raises:
            ValueError: There is another stream, or one of another type or shape.
        """
        types = {"floats": torch.float32, "packed": torch.uint8}
        found = {name: tensor.dtype for name, tensor in tensors.items()}
        if not found.items() <= types.items():
            raise ValueError(f"expected streams of {types}, found {found}")
        if any(tensor.dim() != 1 for tensor in tensors.values()):
            raise ValueError("a stream is of more than one dimension")
        parts = cls()
        parts._floats = [tensors.get("floats", torch.zeros(0))]
        parts._packed = [tensors.get("packed", torch.zeros(0, dtype=torch.uint8))]
        return parts

    def floats(self, shape: Sequence[int]) -> Tensor:
        """Take the next numbers, of this shape.

        Raises:
            ValueError: There are not as many.
        """
        return _take(self._floats, math.prod(shape), "numbers").reshape(tuple(shape))

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Take the next numbers, of this shape and type.

        Raises:
            ValueError: There are not as many, or a byte is no truth value.
        """
        if dtype == torch.float32:
            return self.floats(shape)
        found = _take(self._packed, math.prod(shape) * dtype.itemsize, "bytes")
        if dtype == torch.bool and bool((found > 1).any()):
            raise ValueError("a truth value is neither 0 nor 1")
        return found.view(dtype).reshape(tuple(shape))

    def packed(self, count: int) -> Bytes:
        """Take the next bytes.

        Raises:
            ValueError: There are not as many.
        """
        return _take(self._packed, count, "bytes").numpy()

    def check_empty(self) -> None:
        """Check that all was read.

        Raises:
            ValueError: Something is left.
        """
        left = len(self._floats[0]), len(self._packed[0])
        if any(left):
            raise ValueError(f"{left[0]} numbers and {left[1]} bytes are too many")


def _take(stream: list[Tensor], count: int, what: str) -> Tensor:
    if not 0 <= count <= len(stream[0]):
        raise ValueError(f"{count} {what} expected, {len(stream[0])} are left")
    taken, stream[0] = stream[0][:count].clone(), stream[0][count:]
    return taken
