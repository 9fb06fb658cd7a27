"""Mend what a kill, a full disk or a merge has left of dvc.lock: python -m flows.mend [--check]

What is whole in it stays; what is lost is taken from Git's version. What ran since that, and is in neither,
is in DVC's run cache: the next `dvc repro` takes it from there. Processes that are gone are struck from DVC's
list of readers and writers, which may say "busy" for ever else: a power cut ends whoever would have done so.

With --check, dvc.lock stays as it is, and it is said what is wrong with it: `make repro` begins so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from decant.errors import DecantError
from flows.pool import Hold
from flows.watchdog import release
from tasks.pipeline import lockfile

RWLOCK = Path(".dvc", "tmp", "rwlock")
"""DVC's list of readers and writers, in a workspace."""


def main() -> int:
    """Mend the workspace of the current folder, or check it; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flows.mend", description=__doc__.partition(":")[0])
    parser.add_argument("--check", action="store_true", help="leave dvc.lock as it is, and say what is wrong")
    try:
        if parser.parse_args().check:
            release(RWLOCK)
            lockfile.check()
            return 0
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
    release(folder / RWLOCK)
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
