"""Clones of a repository that flows work in: Git worktrees below .dvc/tmp, which Git and DVC ignore.

So nobody's working tree is touched, and the DVC cache is shared: what is known already is not built again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from decant.errors import DecantError
from flows.names import revision_name


def add(repository: Path, folder: Path, revision: str) -> None:
    """Make a worktree at a revision, in the place of one that may be there.

    Raises:
        DecantError: There is no such revision, or Git fails otherwise.
    """
    commit = resolve(repository, revision)
    remove(repository, folder)
    git(repository, "worktree", "add", "--quiet", "--detach", "--", str(folder), commit)
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
    from configobj import ConfigObj  # as DVC reads it; written in UTF-8, in which DVC does not write it

    local = Path(".dvc") / "config.local"
    text = (repository / local).read_text(encoding="utf-8") if (repository / local).exists() else ""
    settings = ConfigObj(text.splitlines(), encoding="utf-8")
    cache = (repository / dvc(repository, "cache", "dir").strip()).resolve()
    settings.setdefault("cache", {})["dir"] = os.path.relpath(cache, (folder / local).parent)
    with (folder / local).open("wb") as file:
        settings.write(file)
    if (downloads := repository / "data" / "raw").is_dir():
        shutil.copytree(downloads, folder / "data" / "raw", dirs_exist_ok=True)
    with contextlib.suppress(DecantError):  # what is missing will be built
        dvc(folder, "checkout", "--quiet")


def root_of(folder: Path) -> Path:
    """Return the top of the Git repository that a folder lies in."""
    return Path(git(folder, "rev-parse", "--show-toplevel").removesuffix("\n"))


def resolve(repository: Path, revision: str) -> str:
    """Return the full hash of a revision's commit.

    Raises:
        DecantError: There is no such revision.
    """
    name = f"{revision_name(revision)}^{{commit}}"
    return git(repository, "rev-parse", "--verify", "--end-of-options", name).strip()


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
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, encoding="utf-8", errors="surrogateescape"
        )
    except OSError as error:
        raise DecantError(f"Cannot run {command[0]} in {folder}: {error}") from None
    if done.returncode:
        raise DecantError(f"{' '.join(command)} in {folder} failed: {done.stderr.strip()}")
    return done.stdout
