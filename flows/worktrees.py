"""Clones of a repository that flows work in: Git worktrees below .dvc/tmp, which Git and DVC ignore.

So nobody's working tree is touched, and the DVC cache is shared: what is known already is not built again.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

from decant.errors import DecantError


def add(repository: Path, folder: Path, revision: str) -> None:
    """Make a worktree at a revision, in the place of one that may be there.

    Raises:
        DecantError: There is no such revision, or Git fails otherwise.
    """
    remove(repository, folder)
    git(repository, "worktree", "add", "--quiet", "--detach", str(folder), revision)
    try:
        _share(repository, folder)
    except BaseException:
        remove(repository, folder)
        raise


def remove(repository: Path, folder: Path) -> None:
    """Remove a worktree, if there is one."""
    shutil.rmtree(folder, ignore_errors=True)
    git(repository, "worktree", "prune")


def _share(repository: Path, folder: Path) -> None:
    """Give the clone the DVC cache, the user's settings, the downloads, and its outputs out of the cache."""
    settings = repository / ".dvc" / "config.local"
    if settings.exists():
        shutil.copy2(settings, folder / ".dvc" / "config.local")
    cache = dvc(repository, "cache", "dir").strip()
    dvc(folder, "cache", "dir", "--local", str((repository / cache).resolve()))
    if (downloads := repository / "data" / "raw").is_dir():
        shutil.copytree(downloads, folder / "data" / "raw", dirs_exist_ok=True)
    with contextlib.suppress(DecantError):  # what is missing will be built
        dvc(folder, "checkout", "--quiet")


def root_of(folder: Path) -> Path:
    """Return the top of the Git repository that a folder lies in."""
    return Path(git(folder, "rev-parse", "--show-toplevel").strip())


def git(folder: Path, *arguments: str) -> str:
    """Return what `git …` prints.

    Raises:
        DecantError: It failed.
    """
    return _run(folder, ["git", *arguments])


def dvc(folder: Path, *arguments: str) -> str:
    """Return what `dvc …` prints.

    Raises:
        DecantError: It failed.
    """
    return _run(folder, [sys.executable, "-m", "dvc", *arguments])


def _run(folder: Path, command: list[str]) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise DecantError(f"{' '.join(command)} in {folder} failed: {done.stderr.strip()}")
    return done.stdout
