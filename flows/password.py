"""The password of the server that `make serve` starts: made once, kept in a file for its owner alone.

It keeps out what a browser would send there for any web page, also for one whose name was made to stand for
this machine (DNS rebinding). Whoever has it can have commands run here.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from decant.errors import DecantError


def place() -> Path:
    """Return where the password is kept: beside the server's database, in Prefect's own folder."""
    return Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect").expanduser() / "decant-password"


def make() -> tuple[str, bool]:
    """Return `user:password` for Prefect's settings, and whether it was made just now.

    Raises:
        DecantError: The file cannot be written, or as `read`.
    """
    path = place()
    if path.exists() or path.is_symlink():
        return read(path), False
    password = f"decant:{secrets.token_urlsafe(24)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:  # of mode 600
            file.write(f"{password}\n")
            file.flush()
            os.link(file.name, path)
    except FileExistsError:  # another one was as quick
        return read(path), False
    except OSError as error:
        raise DecantError(
            f"The server's password cannot be kept in {path} ({error.strerror}); name another folder in "
            "PREFECT_HOME, or set PREFECT_SERVER_API_AUTH_STRING=user:password"
        ) from None
    return password, True


def read(path: Path) -> str:
    """Return the password that a file holds.

    Raises:
        DecantError: It cannot be read, others can read it, or it holds no `user:password`.
    """
    try:
        with path.open("rb") as file:
            mode, text = os.fstat(file.fileno()).st_mode, file.read(1000).decode("ascii", "replace").strip()
    except OSError as error:
        raise DecantError(f"The server's password cannot be read from {path} ({error.strerror})") from None
    if not stat.S_ISREG(mode) or mode & 0o077:
        raise DecantError(
            f"{path} holds a password, and others may read it: `rm {path}`, and the next `make serve` makes "
            "another"
        )
    if not re.fullmatch("[!-9;-~]+:[!-~]{8,}", text):
        raise DecantError(
            f"{path} must hold one line, `user:password`, with eight characters or more after the colon: "
            f"`rm {path}`, and the next `make serve` makes another"
        )
    return text


def known(url: str | None) -> str | None:
    """Return the password for a server's address, if it is on this machine and there is one."""
    try:
        here = urlsplit(url or "").hostname in ("127.0.0.1", "localhost")
        return read(place()) if here and place().exists() else None
    except (DecantError, ValueError, OSError):  # `make serve` says what is wrong with it
        return None
