"""Files that are believed only once proven: a sum over the content, checked before any of it is parsed.

A sealed file is a JSON object whose last entry is the sum of all bytes before it, and of the files that lie
beside it and belong to it. The sum finds damage and mix-ups. It does not say who wrote a file: whoever
changes the content on purpose can compute it anew, so what a file announces is bounded by its reader as well.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

from decant.errors import DecantError, Message
from decant.outputs import write_text

LARGEST_TEXT = 1 << 22
"""Most bytes of a JSON file that is read at all."""

_END = re.compile(rb',\n"sha256":"([0-9a-f]{64})"}\n\Z')
_END_SIZE = len(',\n"sha256":""}\n') + 64


@contextmanager
def reading(path: Path | str, remedy: Message) -> Iterator[None]:
    """Turn whatever goes wrong inside into one DecantError: the file, the fault, and what to do.

    Everything that a damaged, hostile or missing file can raise is meant, whichever library raises it; a
    DecantError passes as it is.

    Args:
        path: The file, or the folder, that is read inside.
        remedy: What to do about it, such as "run `dvc repro`".
    """
    try:
        yield
    except DecantError:
        raise
    except FileNotFoundError as error:
        raise DecantError(f"No {error.filename or path}; {remedy}") from None
    except OSError as error:
        raise DecantError(
            f"{error.filename or path} cannot be read ({one_line(error.strerror or error)}); {remedy}"
        ) from None
    except Exception as error:
        raise DecantError(
            f"{path} does not hold what it should ({type(error).__name__}: {one_line(error)}); {remedy}"
        ) from None


def one_line(error: object) -> Message:
    """Return an error as text for the middle of a sentence: one line of at most 200 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:199]}…"


def read_bytes(path: Path, most: int = LARGEST_TEXT) -> bytes:
    """Return a file's content, whose size is looked at first: one byte more is never asked for.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no plain file (a pipe would be waited for ever), or has more than `most` bytes.
    """
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("no plain file")
    if found.st_size > most:
        raise ValueError(f"{found.st_size:,} bytes, where it can have {most:,}")
    with path.open("rb") as file:
        content = file.read(found.st_size + 1)
    if len(content) != found.st_size:
        raise ValueError("it changes while it is read")
    return content


def seal(content: str, *beside: bytes) -> str:
    """Return the text of a JSON object with a last entry: the sum of all before it, then of `beside`.

    Args:
        content: An object with one entry or more, in any layout; it stays as it is.
        beside: The content of files that belong to this one.
    """
    body = content.rstrip()[:-1].rstrip()
    return f'{body},\n"sha256":"{_sum(body.encode(), *beside)}"}}\n'


def sum_of(sealed: bytes, *beside: bytes) -> str:
    """Return the sum that a sealed text ends with, 64 hexadecimal digits, once it is found to be right.

    Raises:
        ValueError: There is no sum at the end, or it is another content's.
    """
    if not (end := _END.search(sealed, max(0, len(sealed) - _END_SIZE))):
        raise ValueError("it does not end with a sum over the content")
    found, named = _sum(sealed[: end.start()], *beside), end[1].decode()
    if found != named:
        raise ValueError("the content has not the sum that it ends with")
    return named


def unseal(sealed: bytes, *beside: bytes) -> dict[str, Any]:
    """Return the object of a sealed text, without the sum.

    Raises:
        ValueError: As `sum_of`; or it is no JSON object of finite numbers.
    """
    sum_of(sealed, *beside)
    content = parsed(sealed)
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, expected an object")
    del content["sha256"]
    return content


def write_sealed(path: Path, content: dict[str, Any]) -> str:
    """Write an object, which has an entry or more, for people to read and sealed; return its sum.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    text = seal(json.dumps(content, indent=1, allow_nan=False))
    write_text(path, text)
    return sum_of(text.encode())


def parsed(content: bytes) -> Any:
    """Return what a JSON text holds; the standard library alone takes NaN, and the last of two equal keys.

    Raises:
        ValueError: It is no JSON, a number is not finite, or a key stands twice.
    """
    return json.loads(content, parse_constant=_no_number, object_pairs_hook=_once)


def _once(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(entries)
    if len(content) < len(entries):
        raise ValueError("a key stands twice")
    return content


def _sum(*parts: bytes) -> str:
    return sha256(b"".join(parts)).hexdigest()


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no finite number")
