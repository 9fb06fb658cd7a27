"""Run the DAG in a clone of its own and leave the result on a branch of its own: what schedules start.

Nobody's working tree is touched, see flows/worktrees.py.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from decant.errors import DecantError
from flows import worktrees
from flows.compare import compare, markdown
from flows.compress import Runner, compress
from flows.worktrees import git, root_of


class GateFailedError(DecantError):
    """A metric became worse than its gate allows."""


@flow(name="scheduled")
def scheduled(
    base: str = "main",
    branch: str = "nightly",
    targets: list[str] | None = None,
    jobs: int | None = None,
    force: bool = False,
    gate: bool = True,
    repository: Path = Path(),
    runner: Runner = "local",
    scheduler: str | None = None,
) -> State[Any]:
    """Bring the DAG up to date as `base` has it, commit the result to `branch`, and judge it.

    `branch` is moved to one commit on top of `base`, so `dvc metrics diff <base> <branch>` tells what this
    run has changed. It is moved when all stages are well, whatever the gates say afterwards.

    Args:
        base: The Git revision whose code and params are taken, and that the metrics are compared with.
        branch: The branch of the result; it must not be checked out anywhere.
        targets: Stages, or files that stages write; none for all.
        jobs: Stages at once; as many as there are cores where not given.
        force: Run what is up to date too.
        gate: Fail where a gate of params.yaml does.
        repository: The Git repository.
        runner: Where stages run, as in `compress`.
        scheduler: The address of the Dask scheduler, as in `compress`.

    Raises:
        GateFailedError: A gate failed.
        StagesFailedError: A stage failed; the branch is left as it was.
        DecantError: The run could not begin, or the result cannot be compared with `base`.
    """
    logger, repository = get_run_logger(), root_of(repository)
    start = commit_of(repository, base)  # once: the name may stand for something else when the run ends
    with clone(repository, start, branch) as folder:
        logger.info("Working on %s (%s) in %s", base, start, folder)
        compress(targets, jobs, force=force, folder=folder, base=start, runner=runner, scheduler=scheduler)
        commit = keep(folder, branch, f"Rebuilt {', '.join(targets) if targets else 'everything'} on {base}")
        message = (
            f"{branch} is now {commit}" if commit else f"Nothing changed: {branch} is now the same as {base}"
        )
        logger.info("%s; see: dvc metrics diff %s %s", message, base, branch)
        try:
            comparison = compare(folder, start)
        except DecantError as error:
            if gate:
                raise
            logger.warning("Not compared with %s: %s", base, error)
        else:
            create_markdown_artifact(key="gates", markdown=markdown(comparison))
            if gate and not comparison.passed:
                raise GateFailedError(
                    f"{message}, and a gate failed against {base}; see the artifact `gates`"
                )
        return Completed(message=message)


def commit_of(repository: Path, base: str) -> str:
    """Return the short hash of a revision; what belongs to a remote, such as origin/main, is fetched first.

    Raises:
        DecantError: There is no such revision, or the remote does not answer.
    """
    full = git(repository, "rev-parse", "--symbolic-full-name", "--verify", base).strip()
    if full.startswith("refs/remotes/"):
        git(repository, "fetch", "--quiet", full.split("/")[2])
    return git(repository, "rev-parse", "--short", "--verify", f"{base}^{{commit}}").strip()


@contextlib.contextmanager
def clone(repository: Path, base: str, branch: str) -> Iterator[Path]:
    """Yield a worktree at `base` that shares the DVC cache and the downloads; it is removed at the end.

    One that a killed run has left is removed at the beginning.

    Raises:
        DecantError: There is no such revision, the branch cannot be moved, or Git fails otherwise.
    """
    folder = repository / ".dvc" / "tmp" / "scheduled" / branch.replace("/", "-")
    checked_out = git(repository, "worktree", "list", "--porcelain").splitlines()
    if f"branch refs/heads/{branch}" in checked_out:
        raise DecantError(
            f"The branch {branch} is checked out: switch to another one, or name another `branch`"
        )
    worktrees.add(repository, folder, base)
    try:
        yield folder
    finally:
        worktrees.remove(repository, folder)


def keep(folder: Path, branch: str, message: str) -> str | None:
    """Commit what changed in the clone and move the branch there; return the commit, if there is one."""
    git(folder, "add", "--all")
    changed = bool(git(folder, "status", "--porcelain"))
    if changed:
        git(folder, *identity(folder), "commit", "--quiet", "--no-verify", "--message", message)
    git(folder, "branch", "--force", branch)
    return git(folder, "rev-parse", "--short", "HEAD").strip() if changed else None


def identity(folder: Path) -> list[str]:
    """Return options that name an author where Git knows none."""
    known = (
        subprocess.run(["git", "var", "GIT_COMMITTER_IDENT"], cwd=folder, capture_output=True).returncode == 0
    )
    return [] if known else ["-c", "user.name=Decant", "-c", "user.email=decant@localhost"]
