"""One run of the DAG in one workspace: what it has to do, and what became of each stage."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from decant.errors import DecantError, Message
from decant.schema import did_you_mean
from flows.described import CODE
from flows.plan import Plan
from flows.pool import Pool, StageError
from flows.progress import Progress, Silent
from tasks.pipeline import lockfile

Runner = Literal["local", "dask"]
"""Where stages run: in processes of this machine, or in the clones of a Dask cluster's workers."""

LOGS = Path(".dvc", "tmp", "logs")
"""Where each stage's whole output is kept, a file for each stage, until it runs again."""

TAIL = 20
"""Lines of a failed stage that are shown again at the end."""


@dataclass
class Result:
    """What became of a stage: the name of its state, its seconds, and why."""

    state: str
    seconds: float = 0.0
    why: str = ""


@dataclass
class Session:
    """One run of the DAG in one folder."""

    folder: Path
    pool: Pool
    plan: Plan
    to_run: list[str]
    results: dict[str, Result] = field(default_factory=dict)
    tails: dict[str, deque[str]] = field(default_factory=dict)
    progress: Progress = field(default_factory=Silent)
    running: set[str] = field(default_factory=set)

    def begin(self, stage: str) -> None:
        """Take note that a stage began, or began again."""
        self.results.pop(stage, None)
        self.tails[stage] = deque(maxlen=TAIL)
        self.running.add(stage)
        self._log(stage, "", "w")
        self.progress.started(stage)

    def line(self, stage: str, text: str, passing: bool) -> None:
        """Show a line of a stage, and keep it in case the stage fails."""
        self.progress.line(stage, text, passing)
        if not passing:
            self.tails[stage].append(text)
            self._log(stage, f"{text}\n", "a")

    def end(self, stage: str, state: str, seconds: float = 0.0, why: str = "") -> None:
        """Take note of what became of a stage."""
        self.running.discard(stage)
        self.results[stage] = Result(state, seconds, why)
        self.progress.finished(stage, state, seconds, why)

    def stop(self) -> None:
        """Say so at once, and end all that runs; what had finished is kept."""
        if running := sorted(self.running):
            self.progress.stopping(running)
        self.running.clear()
        self.pool.stop()

    def _log(self, stage: str, text: str, mode: Literal["a", "w"]) -> None:
        with contextlib.suppress(OSError):  # a full disk fails the stage, and says so there
            path = self.folder / log_of(stage)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open(mode, encoding="utf-8", errors="replace") as file:
                file.write(text)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each stage of the plan."""
        return [
            {"stage": name, "state": result.state, "seconds": round(result.seconds, 1), "why": result.why}
            for name in self.plan.stages
            for result in [self.results.get(name, Result("NotRun" if name in self.to_run else "UpToDate"))]
        ]

    def failures(self) -> list[str]:
        """Return for each stage that failed its last lines and the command that repeats it."""
        return [
            _failure(name, result.why, self.tails.get(name, ()), log_of(name))
            for name, result in self.results.items()
            if result.state == "Failed"
        ]


def log_of(stage: str) -> Path:
    """Return the file of a stage's whole output, relative to the workspace."""
    return LOGS / f"{quote(stage, safe='@')}.log"


def _failure(stage: str, why: str, tail: Iterable[str], log: Path | None = None) -> str:
    """Return how a stage failed, its last lines, where all of them are, and the command that repeats it."""
    lines = [f"    {line}" for line in tail]
    whole = [f"  all that it printed: {log}"] if log else []
    repeat = f"  to repeat it: dvc repro --single-item {stage}"
    return "\n".join([f"{stage} failed: {why}", *lines, *whole, repeat])


@contextlib.contextmanager
def opened(folder: Path, targets: list[str], force: bool) -> Iterator[Session]:
    """Take the workspace, record its code, check params.yaml, and plan.

    Raises:
        DecantError: Another flow has the workspace, a target is unknown, params.yaml or dvc.yaml is wrong,
            dvc.lock is broken, or the stage `code` fails.
    """
    with Pool(folder) as pool:
        lockfile.check(folder)
        try:
            results = record_code(pool)
            plan = Plan.read(pool.plan(targets))
        except StageError as error:
            check_params(folder)  # what DVC says of a wrong params.yaml is about its templates
            raise DecantError(f"DVC cannot plan: {error}{_near(pool, folder, targets)}") from None
        to_run = plan.to_run(force)
        if any(plan.stages[name].operation == "validate" for name in to_run):
            check_params(folder)
        yield Session(folder, pool, plan, to_run, results)


def _near(pool: Pool, folder: Path, targets: Iterable[str]) -> Message:
    """Return the stages, or the groups, that may be meant by targets that are neither stages nor files."""
    try:
        names = Plan.read(pool.plan([])).stages
    except StageError:
        return ""
    groups = {name.partition("@")[0] for name in names}
    return "".join(
        did_you_mean(target, names if get_close_matches(target, names) else groups, most=4)
        for target in targets
        if target not in {*names, *groups} and not (folder / target).exists()
    )


def record_code(pool: Pool) -> dict[str, Result]:
    """Bring the stage `code` up to date, if there is one; return what became of it where it was not.

    Only its records say which stages an edit of our code reaches, so it comes before any plan. It takes a
    second.

    Raises:
        StageError: DVC could not tell whether there is one.
        DecantError: It failed.
    """
    if not pool.has(CODE):
        return {}
    tail, began = deque[str](maxlen=TAIL), time.monotonic()
    try:
        outcome = pool.run(CODE, line=lambda text, _: tail.append(text))
    except StageError as error:
        raise DecantError(_failure(CODE, str(error), tail)) from None
    return {} if outcome == "UpToDate" else {CODE: Result(outcome, time.monotonic() - began)}


def check_params(folder: Path) -> None:
    """Check the whole of params.yaml, before any stage runs.

    Raises:
        DecantError: It is not valid; the message tells everything that is wrong with it.
    """
    if not (folder / "tasks" / "validate").is_dir():
        return
    done = subprocess.run(
        [sys.executable, "-m", "tasks.validate"], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise DecantError(done.stderr.strip().removeprefix("error: "))
