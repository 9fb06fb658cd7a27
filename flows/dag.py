"""The Prefect flow `compress`: the DAG of dvc.yaml in parallel, supervised.

dvc.yaml stays the only DAG and DVC decides what is up to date; Prefect watches, retries, times out, cancels
and schedules. The flow leaves the same entries of dvc.lock and the same bytes as `dvc repro`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from decant.errors import DecantError
from flows import artifacts
from flows.local import Done, Local, skipped
from flows.plan import Schedule, Stage
from flows.session import Runner, Session, opened

POLL = 1.5
"""Seconds between two questions whether someone has cancelled the run in Prefect's UI."""


class Place(Protocol):
    """Where stages run.

    Attributes:
        jobs: How many at once, where nobody says otherwise.
        cores: How many threads all that run at once may have together.
        gpus: The devices that stages may have to themselves.
    """

    jobs: int
    cores: int
    gpus: list[str]

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def begin(
        self, stage: Stage, devices: Sequence[str], running: int, after: Sequence[PrefectFuture[Any]]
    ) -> Any:
        """Begin a stage whose upstream is done, as one of `running` threads; return its Prefect future."""


class StagesFailedError(DecantError):
    """At least one stage failed."""


THREADS: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=256)  # Schedule bounds what runs at once
PREPARED: dict[Path, Session] = {}
"""What the command line has planned already, for the flow that it starts next."""


@flow(name="compress", validate_parameters=True, task_runner=THREADS)
def compress(
    targets: list[str] | None = None,
    jobs: int | None = None,
    keep_going: bool = True,
    force: bool = False,
    dry_run: bool = False,
    folder: Path = Path(),
    base: str = "HEAD",
    runner: Runner = "local",
    scheduler: str | None = None,
) -> State[Any]:
    """Bring stages up to date, those that do not depend on each other at the same time.

    Args:
        targets: Stages, or files that stages write; none for all.
        jobs: Stages at once; as many as there are cores where not given. However many are allowed, the
            threads of those that run at the same time stay within the cores.
        keep_going: After a failure, run what does not depend on it; else begin nothing more.
        force: Run what is up to date too.
        dry_run: Say what would run, and why.
        folder: The workspace, with its dvc.yaml.
        base: The Git revision that the metrics are compared with in the UI.
        runner: Where stages run: `local`, or `dask` for the clones that `python -m flows.cluster` has joined.
        scheduler: The address of the Dask scheduler, such as tcp://10.0.0.1:8786.

    Raises:
        StagesFailedError: A stage failed.
        DecantError: The run could not begin.
    """
    folder, logger = folder.resolve(), get_run_logger()
    prepared = PREPARED.pop(folder, None)
    with contextlib.nullcontext(prepared) if prepared else opened(folder, targets or [], force) as session:
        for name, result in session.results.items():
            logger.info("%s: %s in %.1f s, to plan by its records", name, result.state, result.seconds)
        for name in session.to_run:
            logger.info("%s: %s", name, "forced" if force else session.plan.reason(name))
        if dry_run:
            return Completed(message=f"{len(session.to_run)} stages would run")
        done: queue.SimpleQueue[str] = queue.SimpleQueue()
        with _place(session, force, done.put, runner, scheduler) as place:
            cancelled = _run_all(session, place, done, jobs, keep_going)
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


def _place(session: Session, force: bool, done: Done, runner: Runner, scheduler: str | None) -> Place:
    """Return where stages run."""
    if runner == "local":
        return Local(session, force, done)
    try:
        from flows.cluster import Cluster
    except ModuleNotFoundError as missing:
        raise DecantError(f"--runner dask needs {missing.name}: pip install 'prefect-dask'") from None
    return Cluster(session, force, done, scheduler)


def _run_all(
    session: Session,
    place: Place,
    done: queue.SimpleQueue[str],
    jobs: int | None,
    keep_going: bool,
) -> bool:
    """Run what must run; say whether the run was cancelled.

    However this is left, no process that it started is left behind.
    """
    jobs = jobs or place.jobs
    schedule = Schedule(session.plan, session.to_run, jobs, place.cores, place.gpus)
    futures: dict[str, PrefectFuture[Any]] = {}
    with _cancellations() as cancelled:
        try:
            while not schedule.finished:
                for stage, devices in schedule.start():
                    after = [futures[above] for above in stage.upstream if above in futures]
                    futures[stage.name] = place.begin(stage, devices, schedule.threads, after)
                while True:
                    with contextlib.suppress(queue.Empty):
                        name = done.get(timeout=0.2)
                        break
                    if cancelled.is_set():
                        session.stop()
                        return True
                    _require_watchdog(session)
                if not schedule.runs(name):
                    continue  # heard twice: by the stage that went well, and by Prefect
                result = session.results.get(name)
                if result is None:  # neither well nor failed: ended with all others, or a mistake of ours
                    _require_watchdog(session)
                    futures[name].result()
                    raise RuntimeError(f"{name} ended without a result")
                if result.state != "Failed":
                    schedule.done(name)
                    continue
                for stage, because in schedule.failed(name, keep_going):
                    session.end(stage.name, "Skipped", why=f"because of {because}")
                    futures[stage.name] = skipped(stage, because).submit()
            for future in futures.values():
                future.wait()
        except BaseException:
            session.stop()
            raise
    return False


def _require_watchdog(session: Session) -> None:
    """Raise where all stages were ended because nobody is left to end them later."""
    if session.pool.lost:
        raise DecantError(
            "the process that ends all stages was ended by somebody, and so they are too;"
            " what had finished is kept"
        )


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
