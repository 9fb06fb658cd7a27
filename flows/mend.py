"""Mend what a kill, a full disk or a merge has left of dvc.lock: python -m flows.mend

What is whole in it stays; what is lost is taken from Git's version. What ran since that, and is in neither,
is in DVC's run cache: the next `dvc repro` takes it from there. Processes that are gone are struck from DVC's
list of readers and writers, which may say "busy" for ever else.
"""

from __future__ import annotations

import sys
from pathlib import Path

from decant.errors import DecantError
from flows.pool import Hold
from flows.watchdog import release
from tasks.pipeline import lockfile


def main() -> int:
    """Mend the workspace of the current folder; return the exit status."""
    try:
        hold = Hold(Path())
        print(mend(Path()))
        hold.file.close()
    except (DecantError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def mend(folder: Path) -> str:
    """Mend a workspace; return what was done, as a sentence.

    Raises:
        DecantError: There is nothing to mend it with.
    """
    release(folder / ".dvc" / "tmp" / "rwlock")
    if not (damage := lockfile.damage(folder)):
        return "dvc.lock is whole"
    text, taken = lockfile.mended(folder)
    if text == lockfile.HEAD:
        raise DecantError(
            f"dvc.lock {damage}, nothing of it is left, and Git has none: remove it, and `dvc repro` takes"
            " what it can from the run cache"
        )
    lockfile.replace(folder / lockfile.LOCK, text, folder / ".dvc" / "tmp")
    of_git = f", of which {len(taken)} are Git's: {', '.join(taken)}" if taken else ""
    return f"dvc.lock {damage}: now it has {len(lockfile.entries(text) or {})} entries{of_git}"


if __name__ == "__main__":
    sys.exit(main())
