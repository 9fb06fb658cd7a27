"""Names of branches and revisions as types: what Git takes for one, and never an option or a path."""

from __future__ import annotations

import re
import subprocess
from typing import Annotated

from pydantic import AfterValidator

from decant.errors import DecantError

LONGEST_BRANCH = 200
"""In bytes; Git keeps a branch in a file of its name, which can have 255 with Git's own ending."""

LONGEST_REVISION = 1000


def branch_name(name: str) -> str:
    """Return the name of a branch unchanged.

    Raises:
        DecantError: Git would not take it, or would take it for something else, such as `@{-1}` for the last
            branch that was checked out.
    """
    if not name.isprintable() or name.startswith("-") or len(name.encode()) > LONGEST_BRANCH:
        raise _no_branch(name)
    if re.fullmatch("@|[0-9a-f]{40}|[0-9a-f]{64}", name):
        raise _no_branch(name)
    found = subprocess.run(["git", "check-ref-format", "--branch", name], capture_output=True)
    if found.returncode or found.stdout != f"{name}\n".encode():
        raise _no_branch(name)
    return name


def _no_branch(name: str) -> DecantError:
    return DecantError(
        f"Expected the name of a branch, found {name[:100]!r}: Git takes no blanks, no `..`, no leading `-`, "
        f"none of ~ ^ : ? * [ \\, nothing that ends with `.lock` or `/`; and at most {LONGEST_BRANCH} bytes"
    )


def revision_name(name: str) -> str:
    """Return the name of a revision unchanged; whether there is such a one, a repository knows.

    Raises:
        DecantError: It is empty, an option, or no text of one line.
    """
    if not name.strip() or not name.isprintable() or name.startswith("-") or len(name) > LONGEST_REVISION:
        raise DecantError(f"Expected a Git revision such as main, v1, HEAD~3 or a hash, found {name[:100]!r}")
    return name


Branch = Annotated[str, AfterValidator(branch_name)]
Revision = Annotated[str, AfterValidator(revision_name)]
