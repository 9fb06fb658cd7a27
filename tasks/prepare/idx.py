"""The IDX format of MNIST's files: four bytes of magic, the sizes in big-endian 32 bits, the values."""

from __future__ import annotations

import math
import struct

import numpy as np
from numpy.typing import NDArray

from decant.errors import DecantError

UNSIGNED_BYTES = 8


def decode(content: bytes, dimensions: int, origin: object) -> NDArray[np.uint8]:
    """Return the values of an IDX file, without a copy and so read-only.

    Args:
        content: The whole file, decompressed.
        dimensions: How many the file must have: 3 for images [N, H, W], 1 for labels [N].
        origin: What to call the file in an error.

    Raises:
        DecantError: It is another kind of file, or holds fewer or more values than its header says.

    References:
        LeCun et al., The MNIST database of handwritten digits, "the IDX file format".
        http://yann.lecun.com/exdb/mnist/
    """
    start = 4 + 4 * dimensions
    magic = bytes([0, 0, UNSIGNED_BYTES, dimensions])
    if content[:4] != magic or len(content) < start:
        raise DecantError(
            f"{origin} is not an IDX file of unsigned bytes in {dimensions} dimension(s): it has "
            f"{len(content)} bytes and begins with {content[:4].hex(' ') or 'nothing'}, not "
            f"{magic.hex(' ')}; replace it"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    found, expected = len(content) - start, math.prod(shape)
    if found != expected:
        raise DecantError(
            f"{origin} holds {found // max(1, math.prod(shape[1:]))} of the {shape[0]} entries that its "
            f"header announces ({found} bytes of values, not {expected}); replace it with a whole copy"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
