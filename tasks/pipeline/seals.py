"""A sum over a whole file that stands inside the file, for formats that end with something else.

`decant.sealed` has the sums of JSON files, which end with theirs. A Parquet file ends with its own index.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from decant.progress import progress_bar

MARK = b"decant-sha256:"
DIGITS = 64
BLANK = MARK.decode() + "0" * DIGITS
"""The text that a file has to hold, plainly and near its end, before it is sealed."""

NEAR = 1 << 20
"""Bytes at the end of a file in which the sum is looked for, where its index does not reach further."""

LONGEST = 1 << 28
"""Most bytes of an index: it holds the words that codes stand for, of which there may be many."""

STEP = 1 << 25
"""Bytes that are summed up at a time, between which progress is shown."""


def seal_(path: Path) -> None:
    """Replace the zeros of a file's last `BLANK` by the sum over the file as it is, in place."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        place = content.rfind(BLANK.encode())
        with memoryview(content) as view:
            found = _sum(view)
        content[place : place + len(BLANK)] = MARK + found.encode()


def check_seal(content: memoryview) -> None:
    """Check that a sealed file is as it was sealed: it is not parsed, and no copy is made of it.

    Args:
        content: The whole file, as bytes.

    Raises:
        ValueError: It has no sum, or another content's.
    """
    last = bytes(content[-_reach(content) :])
    found = last.rfind(MARK)
    if found < 0:
        raise ValueError("it has no sum over its content")
    start = len(content) - len(last) + found + len(MARK)
    named = bytes(content[start : start + DIGITS]).decode("ascii", "replace")
    if _sum(content[:start], b"0" * DIGITS, content[start + DIGITS :]) != named:
        raise ValueError("its content has not the sum that it names")


def _reach(content: memoryview) -> int:
    """Return how far from the end the sum may be: as far as a Parquet file's index, whose length ends it."""
    length, mark = int.from_bytes(content[-8:-4], "little"), bytes(content[-4:])
    return max(NEAR, min(length + 8, LONGEST)) if mark == b"PAR1" else NEAR


def _sum(*parts: memoryview | bytes) -> str:
    """Return the sum over bytes that follow each other; of what is mapped, no copy is made."""
    digest = sha256()
    with progress_bar(None, "summing", "B", total=sum(map(len, parts)), unit_scale=True) as bar:
        for piece in _pieces(parts):
            digest.update(piece)
            bar.update(len(piece))
    return digest.hexdigest()


def _pieces(parts: tuple[memoryview | bytes, ...]) -> Iterator[memoryview | bytes]:
    for part in parts:
        yield from (part[at : at + STEP] for at in range(0, len(part), STEP))
