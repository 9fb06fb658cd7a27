"""Run the DAG in a clone of its own and leave the result on a branch of its own: what schedules start.

Nobody's working tree is touched, see flows/worktrees.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from decant.errors import DecantError
from flows import worktrees
from flows.compare import compare, markdown
from flows.dag import compress
from flows.names import Branch, Revision, branch_name, revision_name
from flows.session import Runner
from flows.worktrees import git, resolve, root_of


class GateFailedError(DecantError):
    """A metric became worse than its gate allows, or the numbers are no base for a verdict."""


@flow(name="scheduled")
def scheduled(
    base: Revision = "main",
    branch: Branch = "nightly",
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
    with clone(repository, base, branch) as folder:
        start = commit_of(folder, "HEAD")  # the name of the base may stand for another when the run ends
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
                why = "a gate failed" if comparison.code == 1 else "some of its numbers are out of date"
                raise GateFailedError(f"{message}, and {why} against {base}; see the artifact `gates`")
        return Completed(message=message)


def commit_of(repository: Path, base: str) -> str:
    """Return the short hash of a revision; what belongs to a remote, such as origin/main, is fetched first.

    Raises:
        DecantError: There is no such revision, or the remote does not answer.
    """
    name = revision_name(base)
    full = git(repository, "rev-parse", "--symbolic-full-name", "--verify", "--end-of-options", name).strip()
    for remote in git(repository, "remote").split():
        if full.startswith(f"refs/remotes/{remote}/"):
            git(repository, "fetch", "--quiet", "--", remote)
    return git(repository, "rev-parse", "--short", "--verify", resolve(repository, base)).strip()


@contextlib.contextmanager
def clone(repository: Path, base: str, branch: str) -> Iterator[Path]:
    """Yield a worktree at `base` that shares the DVC cache and the downloads; it is removed at the end.

    One that a killed run has left is removed at the beginning. Nothing is touched before the names are
    found to be right and the branch to be free.

    Raises:
        DecantError: There is no such revision, the branch cannot be moved, a run for it works already, or
            Git fails otherwise.
    """
    branch_name(branch)
    _require_not_checked_out(repository, branch)
    commit = commit_of(repository, base)
    _require_movable(repository, branch, commit)
    folder = folder_of(repository, branch)
    with _claimed(folder.with_suffix(".lock"), branch):
        worktrees.add(repository, folder, commit)
        try:
            yield folder
        finally:
            worktrees.remove(repository, folder)


def folder_of(repository: Path, branch: str) -> Path:
    """Return where a branch's runs work: named by a hash, so that no name leads elsewhere or to another's."""
    return repository / ".dvc" / "tmp" / "scheduled" / sha256(branch.encode()).hexdigest()[:16]


@contextlib.contextmanager
def _claimed(path: Path, branch: str) -> Iterator[None]:
    """Hold a branch's folder, for as long as this process lives at most.

    Raises:
        DecantError: Another run holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DecantError(
                f"Another run works for the branch {branch} in {path.with_suffix('')}: wait for its end, or "
                "name another `branch`"
            ) from None
        yield


def _require_not_checked_out(repository: Path, branch: str) -> None:
    checked_out = git(repository, "worktree", "list", "--porcelain").splitlines()
    if f"branch refs/heads/{branch}" in checked_out:
        raise DecantError(
            f"The branch {branch} is checked out: switch to another one, or name another `branch`"
        )


def _require_movable(repository: Path, branch: str, commit: str) -> None:
    """Move the branch in a transaction that is given up: what Git refuses, such as a/b beside a, it says."""
    steps = f"start\nupdate refs/heads/{branch} {resolve(repository, commit)}\nprepare\nabort\n"
    tried = subprocess.run(
        ["git", "update-ref", "--stdin"], cwd=repository, input=steps.encode(), capture_output=True
    )
    if tried.returncode:
        why = tried.stderr.decode(errors="replace").strip().removeprefix("fatal: ")
        raise DecantError(f"The branch {branch} could not be moved at the end of the run: {why}")


def keep(folder: Path, branch: str, message: str) -> str | None:
    """Commit what changed in the clone and move the branch there; return the commit, if there is one.

    Raises:
        DecantError: The branch cannot be moved any more; the message has the commit, which is kept.
    """
    git(folder, "add", "--all")
    changed = bool(git(folder, "status", "--porcelain"))
    if changed:
        git(folder, *identity(folder), "commit", "--quiet", "--no-verify", "--message", message)
    commit = git(folder, "rev-parse", "--short", "HEAD").strip()
    try:
        git(folder, "branch", "--force", "--", branch)
    except DecantError as error:
        raise DecantError(f"{error}; the result is the commit {commit}: git branch other {commit}") from None
    return commit if changed else None


def identity(folder: Path) -> list[str]:
    """Return options that name an author where Git knows none."""
    known = (
        subprocess.run(["git", "var", "GIT_COMMITTER_IDENT"], cwd=folder, capture_output=True).returncode == 0
    )
    return [] if known else ["-c", "user.name=Decant", "-c", "user.email=decant@localhost"]
