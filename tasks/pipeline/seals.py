"""A sum over a whole file that stands inside the file, for formats that end with something else.

`decant.sealed` has the sums of JSON files, which end with theirs. A Parquet file ends with its own index.
"""

from __future__ import annotations

import mmap
from hashlib import sha256
from pathlib import Path

MARK = b"decant-sha256:"
DIGITS = 64
BLANK = MARK.decode() + "0" * DIGITS
"""The text that a file has to hold, plainly and near its end, before it is sealed."""

NEAR = 1 << 20
"""Bytes at the end of a file in which the sum is looked for."""


def seal_(path: Path) -> None:
    """Replace the zeros of a file's last `BLANK` by the sum over the file as it is, in place."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        place = content.rfind(BLANK.encode())
        content[place : place + len(BLANK)] = MARK + sha256(content).hexdigest().encode()


def check_seal(content: memoryview) -> None:
    """Check that a sealed file is as it was sealed: it is not parsed, and no copy is made of it.

    Args:
        content: The whole file, as bytes.

    Raises:
        ValueError: It has no sum, or another content's.
    """
    last = bytes(content[-NEAR:])
    found = last.rfind(MARK)
    if found < 0:
        raise ValueError("it has no sum over its content")
    start = len(content) - len(last) + found + len(MARK)
    digest = sha256(content[:start])
    digest.update(b"0" * DIGITS)
    digest.update(content[start + DIGITS :])
    if digest.hexdigest().encode() != content[start : start + DIGITS]:
        raise ValueError("its content has not the sum that it names")
