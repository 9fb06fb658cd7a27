"""Integers at their real width and masks as positions: pure functions between arrays, exact both ways."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


def pack(codes: Bytes, bits: int) -> Bytes:
    """Return codes [N] of `bits` bits each as ceil(N * bits / 8) bytes, lowest bit first.

    Raises:
        ValueError: `bits` is not in [1, 8], or a code needs more.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"A code takes 1 to 8 bits, got {bits}")
    if codes.size and int(codes.max()) >> bits:
        raise ValueError(f"Code {int(codes.max())} does not fit into {bits} bits")
    spread = np.unpackbits(codes.reshape(-1, 1), axis=1, count=bits, bitorder="little")
    return np.packbits(spread.reshape(-1), bitorder="little")


def unpack(packed: Bytes, bits: int, count: int) -> Bytes:
    """Return the `count` codes that `pack` was given.

    Raises:
        ValueError: The bytes are not as many as `count` codes of `bits` bits take.
    """
    if packed.size != -(-count * bits // 8):
        raise ValueError(
            f"{count} codes of {bits} bits take {-(-count * bits // 8)} bytes, found {packed.size}"
        )
    return _codes(packed, bits, count)


def encode_mask(kept: npt.NDArray[np.bool_]) -> tuple[Bytes, int]:
    """Return the mask [N] in the fewest bytes, and its gap width: 0 for a bitmap, else 2 to 8 bits.

    A bitmap takes one bit a weight, whatever it holds. Gaps take `width` bits for each survivor: the number
    of zeros before it, the largest number meaning `so many zeros and no survivor yet`. Gaps win above about
    75 % of zeros.
    """
    encodings = [(np.packbits(kept, bitorder="little"), 0)]
    encodings += [(_encode_gaps(kept, width), width) for width in range(2, 9)]
    return min(encodings, key=lambda encoding: (encoding[0].size, encoding[1]))


def decode_mask(encoded: Bytes, width: int, survivors: int, count: int) -> npt.NDArray[np.bool_]:
    """Return the mask [count] that `encode_mask` was given.

    Raises:
        ValueError: The bytes do not hold `survivors` survivors among `count` weights.
    """
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
    codes = np.full(int(ends[-1]) if ends.size else 0, escape, np.uint8)
    codes[ends - 1] = gaps % escape
    return pack(codes, width)


def _decode_gaps(encoded: Bytes, width: int, survivors: int, count: int) -> npt.NDArray[np.bool_]:
    escape = (1 << width) - 1
    codes = _codes(encoded, width, encoded.size * 8 // width)
    is_survivor = codes != escape
    ends = np.cumsum(codes.astype(np.int64) + is_survivor)
    # The last byte may be padded with zero bits, which read as survivors of gap 0 behind the last one.
    positions = (ends[is_survivor] - 1)[:survivors]
    if positions.size and positions[-1] >= count:
        raise ValueError(f"The mask points at weight {positions[-1]} of {count}")
    kept = np.zeros(count, bool)
    kept[positions] = True
    return kept


def _codes(packed: Bytes, bits: int, count: int) -> Bytes:
    spread = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    return np.packbits(spread, axis=1, bitorder="little").reshape(-1)
