"""Run the DAG of dvc.yaml in parallel, supervised: python -m flows.compress [targets…]

dvc.yaml stays the only DAG and DVC decides what is up to date; Prefect watches, retries, times out, cancels
and schedules. The flow leaves the same dvc.lock and the same bytes as `dvc repro`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from rich.console import Console

from flows import artifacts
from flows.plan import Plan, Schedule, Stage
from flows.pool import Pool, StageError, StageTimeoutError
from flows.progress import Progress, Silent, choose
from tasks.errors import DecantError

TAIL = 20
"""Lines of a failed stage that are shown again at the end."""
POLL = 1.5
"""Seconds between two questions whether someone has cancelled the run in Prefect's UI."""


class StagesFailedError(DecantError):
    """At least one stage failed."""


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

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each stage of the plan."""
        return [
            {"stage": name, "state": result.state, "seconds": round(result.seconds, 1), "why": result.why}
            for name in self.plan.stages
            for result in [self.results.get(name, Result("UpToDate"))]
        ]

    def failures(self) -> list[str]:
        """Return for each stage that failed its last lines and the command that repeats it."""
        return [
            "\n".join(
                [
                    f"{name} failed: {result.why}",
                    *(f"    {line}" for line in self.tails.get(name, ())),
                    f"  to repeat it: dvc repro --single-item {name}",
                ]
            )
            for name, result in self.results.items()
            if result.state == "Failed"
        ]


@contextlib.contextmanager
def opened(folder: Path, targets: list[str], force: bool) -> Iterator[Session]:
    """Take the workspace, check params.yaml, and plan.

    Raises:
        DecantError: Another flow has the workspace, a target is unknown, or params.yaml or dvc.yaml is wrong.
    """
    with Pool(folder) as pool:
        try:
            plan = Plan.read(pool.plan(targets))
        except StageError as error:
            check_params(folder)  # DVC's words about a wrong params.yaml are about its templates
            raise DecantError(f"DVC cannot plan: {error}") from None
        to_run = plan.to_run(force)
        if any(plan.stages[name].operation == "validate" for name in to_run):
            check_params(folder)
        yield Session(folder, pool, plan, to_run)


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


RUNNER: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=256)  # Schedule bounds what runs at once
_prepared: dict[Path, Session] = {}
"""What the command line has planned already, for the flow that it starts next."""


@flow(name="compress", validate_parameters=True, task_runner=RUNNER)
def compress(
    targets: list[str] | None = None,
    jobs: int | None = None,
    keep_going: bool = True,
    force: bool = False,
    dry_run: bool = False,
    folder: Path = Path(),
    base: str = "HEAD",
) -> State[Any]:
    """Bring stages up to date, those that do not depend on each other at the same time.

    Args:
        targets: Stages, or files that stages write; none for all.
        jobs: Stages at once; as many as there are cores where not given. The threads of all that run at the
            same time stay within the cores, or within `jobs` where that is more.
        keep_going: After a failure, run what does not depend on it; else begin nothing more.
        force: Run what is up to date too.
        dry_run: Say what would run, and why.
        folder: The workspace, with its dvc.yaml.
        base: The Git revision that the metrics are compared with in the UI.

    Raises:
        StagesFailedError: A stage failed.
        DecantError: The run could not begin.
    """
    folder, logger = folder.resolve(), get_run_logger()
    prepared = _prepared.pop(folder, None)
    with contextlib.nullcontext(prepared) if prepared else opened(folder, targets or [], force) as session:
        for name in session.to_run:
            logger.info("%s: %s", name, "forced" if force else session.plan.reason(name))
        if dry_run:
            return Completed(message=f"{len(session.to_run)} stages would run")
        cancelled = _run_all(session, jobs, keep_going, force)
        session.progress.close()
        if cancelled:
            return Cancelled(
                message="Cancelled; what had finished is kept, and the next run goes on from there"
            )
        for missing in artifacts.publish(folder, session.rows(), base):
            logger.warning("Not shown: %s", missing)
        if failures := session.failures():
            raise StagesFailedError("\n".join(failures))
        return Completed(message=f"{len(session.results)} stages, all well")


def _run_all(session: Session, jobs: int | None, keep_going: bool, force: bool) -> bool:
    """Run what must run; say whether the run was cancelled.

    However this is left, no process that it started is left behind.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = jobs or cores
    schedule = Schedule(session.plan, session.to_run, jobs, max(cores, jobs), gpus())
    futures: dict[str, PrefectFuture[Any]] = {}
    done: queue.SimpleQueue[str] = queue.SimpleQueue()

    def submit(stage: Stage, devices: tuple[str, ...] = (), because: str = "") -> None:
        waits = [futures[above] for above in stage.upstream if above in futures]
        future = _task(session, stage, devices, because, force).submit(wait_for=None if because else waits)
        futures[stage.name] = future
        future.add_done_callback(lambda _: done.put(stage.name))

    with _cancellations() as cancelled:
        try:
            while not schedule.finished:
                for stage, devices in schedule.start():
                    submit(stage, devices)
                while True:
                    with contextlib.suppress(queue.Empty):
                        name = done.get(timeout=0.2)
                        break
                    if cancelled.is_set():
                        session.pool.stop()
                        return True
                result = session.results.get(name)
                if result is None:  # neither well nor failed: a mistake of ours
                    futures[name].result()
                    raise RuntimeError(f"{name} ended without a result")
                if result.state == "Skipped":
                    continue
                if result.state != "Failed":
                    schedule.done(name)
                    continue
                for stage, because in schedule.failed(name, keep_going):
                    session.results[stage.name] = Result("Skipped", why=f"because of {because}")
                    submit(stage, because=because)
        except BaseException:
            session.pool.stop()
            raise
    for future in futures.values():
        future.wait()
    return False


def _task(session: Session, stage: Stage, devices: tuple[str, ...], because: str, force: bool) -> Any:
    """Return the Prefect task of one stage. Its cache is off: DVC decides what is up to date."""

    def retry(_: Any, __: Any, state: State[Any]) -> bool:
        error = state.result(raise_on_failure=False)
        return not session.pool.stopped and not isinstance(error, StageTimeoutError)

    limits = stage.limits
    settings: dict[str, Any] = {"retry_condition_fn": retry} if limits.retries else {}

    @task(
        name=stage.operation,
        task_run_name=stage.name,
        version=stage.code or None,
        tags={f"operation:{stage.operation}", *([f"model:{stage.model}"] if stage.model else [])},
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=limits.retries,
        retry_delay_seconds=limits.retry_delay,
        **settings,
    )
    def run() -> State[Any]:
        return _run_stage(session, stage, devices, because, force)

    return run


def _run_stage(
    session: Session, stage: Stage, devices: tuple[str, ...], because: str, force: bool
) -> State[Any]:
    """Run one stage in a worker and return its state."""
    if because:
        session.progress.finished(stage.name, "Skipped", 0.0, f"because of {because}")
        return Cancelled(name="Skipped", message=f"because of {because}")
    logger, began = get_run_logger(), time.monotonic()
    tail = session.tails[stage.name] = deque(maxlen=TAIL)

    def line(text: str, passing: bool) -> None:
        session.progress.line(stage.name, text, passing)
        logger.info(text)
        if not passing:
            tail.append(text)

    session.progress.started(stage.name)
    environment = {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {}
    try:
        outcome = session.pool.run(
            stage.name, force=force, environment=environment, timeout=stage.limits.timeout, line=line
        )
    except StageError as error:
        seconds = time.monotonic() - began
        if session.pool.stopped:
            return Cancelled(message="stopped")
        session.results[stage.name] = Result("Failed", seconds, str(error))
        session.progress.finished(stage.name, "Failed", seconds, str(error))
        raise
    seconds = time.monotonic() - began
    session.results[stage.name] = Result(outcome, seconds)
    session.progress.finished(stage.name, outcome, seconds)
    return Completed(name=outcome, message=f"{seconds:.1f} s")


@contextlib.contextmanager
def _cancellations() -> Iterator[threading.Event]:
    """Yield an event that is set when someone cancels this run in Prefect's UI or by its command."""
    cancelled, ended, run = threading.Event(), threading.Event(), flow_run.id

    def watch() -> None:
        with get_client(sync_client=True) as client:
            while not ended.wait(POLL):
                with contextlib.suppress(Exception):  # a server that does not answer cancels nothing
                    state = client.read_flow_run(run).state
                    if state and (state.is_cancelling() or state.is_cancelled()):
                        cancelled.set()
                        return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield cancelled
    finally:
        ended.set()


def gpus() -> list[str]:
    """Return the GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [device for device in visible.split(",") if device]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [str(index) for index, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status: 0 well, 1 not, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m flows.compress", description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", help="stages, or files that stages write; none for all")
    parser.add_argument(
        "--jobs", type=int, help="stages at once (default: as their threads fit on the cores)"
    )
    parser.add_argument(
        "--keep-going",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="after a failure, run what does not depend on it",
    )
    parser.add_argument("--force", action="store_true", help="run what is up to date too")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and why")
    parser.add_argument("--base", default="HEAD", help="what the metrics are compared with in Prefect's UI")
    chosen = parser.parse_args(arguments)
    if chosen.jobs is not None and chosen.jobs < 1:
        parser.error(f"argument --jobs: expected 1 or more, found {chosen.jobs}")
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, _terminate)  # where it was started in the background it would be ignored
    console, folder = Console(soft_wrap=True), Path.cwd()
    try:
        with opened(folder, chosen.targets, chosen.force) as session:
            return _command(session, chosen, console)
    except KeyboardInterrupt:
        console.print("Interrupted. What had finished is kept; the same command goes on from there.")
        return 130
    except DecantError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", markup=False, highlight=False)
        return 1


def _command(session: Session, chosen: argparse.Namespace, console: Console) -> int:
    if not session.to_run:
        console.print(f"All {len(session.plan.stages)} stages are up to date.")
        return 0
    if chosen.dry_run:
        for name in session.to_run:
            reason = "forced" if chosen.force else session.plan.reason(name)
            console.print(f"{name}: {reason}", markup=False, highlight=False)
        return 0
    if not os.environ.get("PREFECT_API_URL"):
        console.print("Starting a Prefect server for this run, up to a minute (PREFECT_API_URL names none)")
    _quiet()
    session.progress, began = choose(len(session.to_run)), time.monotonic()
    _prepared[session.folder] = session
    try:
        state = compress(
            chosen.targets,
            chosen.jobs,
            chosen.keep_going,
            chosen.force,
            folder=session.folder,
            base=chosen.base,
            return_state=True,
        )
    finally:
        session.progress.close()
    for text in session.failures():
        console.print(text, markup=False, highlight=False)
    counts: dict[str, int] = {}
    for row in session.rows():
        counts[row["state"]] = counts.get(row["state"], 0) + 1
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    console.print(f"{told} in {time.monotonic() - began:.0f} s", highlight=False)
    if not state.is_completed() and not session.failures():
        console.print(f"{state.name}: {state.message}", markup=False, highlight=False)
    return 0 if state.is_completed() else 1


def _quiet() -> None:
    """Take Prefect's lines off the terminal, where our own view is; its server still gets them."""
    for name in ("prefect", "prefect.flow_runs", "prefect.task_runs", ""):
        logger = logging.getLogger(name)
        logger.handlers = [one for one in logger.handlers if type(one).__name__ != "PrefectConsoleHandler"]


def _terminate(*_: object) -> NoReturn:
    """Leave as on Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
