"""DVC in forks of a process that has imported it: a second less for each worker of a flow, and each `dvc …`.

Whoever imports this module has the workers of its flows so. Processes of their own are there still: in flows
that tests start as a person does.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flows import pool, worker, worktrees
from tests.warm import DVC, Forked, completed, kept

VARIABLE = "WARM_DVC"
"""Tells the address to processes that tests start."""

LOCALE = os.environ.get("LC_ALL")
LOCK = threading.Lock()


def address() -> str:
    """Return where to ask for DVC."""
    with LOCK:
        return os.environ.get(VARIABLE) or kept(*DVC)


def dvc(folder: Path, *words: str, environment: Mapping[str, str] | None = None) -> str:
    """Return what `dvc …` prints to standard output.

    Raises:
        RuntimeError: It failed; the message holds what it printed.
    """
    done = completed(address(), ["dvc", *words], folder, environment or os.environ)
    if done.returncode:
        raise RuntimeError(f"dvc {' '.join(words)} exited with {done.returncode}:\n{done.stderr.decode()}")
    return done.stdout.decode()


def _popen(command: list[str], **settings: Any) -> Any:
    if command[-1] != worker.__file__ or is_foreign():
        return subprocess.Popen(command, **settings)
    return Forked(address(), command[-1:], settings["cwd"], settings["env"], is_led=True)


def _run(command: list[str], *, cwd: Path, **settings: Any) -> Any:
    if command[:3] != [sys.executable, "-m", "dvc"] or is_foreign():
        return subprocess.run(command, cwd=cwd, **settings)
    done = completed(address(), command[2:], cwd, os.environ)
    out, err = (stream.decode(errors="surrogateescape") for stream in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(command, done.returncode, out, err)


def is_foreign() -> bool:
    """Say whether a test has changed what a process reads when it begins."""
    return os.environ.get("LC_ALL") != LOCALE


pool.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": _popen})  # type: ignore[assignment]
worktrees.subprocess = SimpleNamespace(**vars(subprocess) | {"run": _run})  # type: ignore[assignment]
