"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from decant.errors import DecantError, Message

_FULL = re.compile("no space left on device|disk quota exceeded|os error 28|disk is full", re.IGNORECASE)
_CUT = re.compile("PytorchStreamWriter failed|unexpected pos")
_UNNAMED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SCARCE = 16e6
"""Bytes: with fewer left, a file that torch could not write was too large for the disk."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there on success, remove it on any failure.

    Works for files and folders. Whoever looks at `path` finds the old content, nothing, or the new content,
    never half of it.

    Raises:
        DecantError: A file is to be written where a folder is, which stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.partial"):
        if not _is_running(left):  # a process that was killed had no time to tidy up
            _remove(left)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f"Nothing was written to {temporary}, which was to become {path}")
        if path.is_dir():
            if not temporary.is_dir():
                raise DecantError(
                    f"{path} is a folder, and a file was to be written; name a file, or move it"
                )
            shutil.rmtree(path)
        temporary.replace(path)
    except OSError as error:
        if error.errno in _UNNAMED and error.filename is None:  # as Arrow raises them
            error.filename = str(path)
        raise
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _is_running(partial: Path) -> bool:
    """Say whether another process is still writing this temporary file; its number stands in the name."""
    number = partial.name.split(".")[-2]
    if not number.isdigit() or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write a small text file, whole or not at all.

    Raises:
        DecantError: Nothing can be written there; says why. A full disk is left to `telling_full_disks`.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        if lacks_room(sys.exception()):
            raise
        raise DecantError(f"Cannot write {path}: {error.strerror or error}; name another place") from None


def json_text(content: Any) -> str:
    """Return JSON that is the same text for the same content: keys in the given order, no time stamp, no NaN.

    Raises:
        ValueError: A number is NaN or infinite; strict JSON cannot hold them.
    """
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write `json_text` of the content, whole or not at all."""
    write_text(path, json_text(content))


def file_name(words: str) -> str:
    """Return words as the name of a file: in lower case, a hyphen for whatever is no letter or digit."""
    return re.sub("[^a-z0-9]+", "-", words.lower()).strip("-")


@contextmanager
def telling_full_disks() -> Iterator[None]:
    """Turn whatever says that a disk is full, or a file as large as files may be, into one sentence.

    Raises:
        DecantError: It is; with the folder or the file, and what is left there.
    """
    try:
        yield
    except Exception:
        if is_full(sys.exception()):
            raise DecantError(no_space(sys.exception())) from None
        if (name := _too_large(sys.exception())) is not None:
            raise DecantError(
                f"{name or 'a file'} grew as large as a file may be here; raise the limit (`ulimit -f`), or "
                "take a disk of larger files, and run again: what had finished is kept"
            ) from None
        raise


def lacks_room(error: BaseException | None) -> bool:
    """Say whether an error is that nothing more can be written: a full disk, or a file that may not grow."""
    return is_full(error) or _too_large(error) is not None


def _too_large(error: BaseException | None) -> str | None:
    """Return the name of a file that may not grow, empty where it has none; None of any other error."""
    while error is not None:
        if getattr(error, "errno", None) == errno.EFBIG:
            return str(getattr(error, "filename", None) or "")
        error = error.__cause__ or error.__context__
    return None


def is_full(error: BaseException | None) -> bool:
    """Say whether an error, or one behind it, is that a disk is full: the system's, SQLite's or torch's."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _FULL.search(str(error)):
            return True
        if _CUT.search(str(error)) and _fullest(error)[0] < _SCARCE:
            return True
        error = error.__cause__ or error.__context__
    return False


def no_space(error: BaseException | None) -> Message:
    """Return the sentence for an error that says that a disk is full."""
    free, folder = _fullest(error)
    name = getattr(error, "filename", None)
    return (
        f"no space left on the disk of {folder}: {free / 1e6:.0f} MB free; make room and run again, "
        f"what had finished is kept{f', {name} is as it was' if name else ''}"
    )


def _fullest(error: BaseException | None) -> tuple[int, Path]:
    """Return the least that is left of the disks that may be meant, in bytes, and a folder there."""
    folders = [Path.cwd(), Path(tempfile.gettempdir())]
    if isinstance(name := getattr(error, "filename", None), (str, os.PathLike)):
        folders.insert(0, Path(os.fspath(name)).absolute().parent)
    return min((shutil.disk_usage(folder).free, folder) for folder in folders if folder.is_dir())
