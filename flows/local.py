"""Stages on this machine: each is a Prefect task that follows a worker process of ours."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Self

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed

from flows.machine import cores, gpus, wait_policy
from flows.plan import Stage
from flows.pool import StageError, StageTimeoutError
from flows.session import Session

Done = Callable[[str], None]
"""Receives the name of a stage that ended, well or not; perhaps more than once."""


class Local:
    """Runs stages in worker processes.

    Attributes:
        jobs: How many at once, where nobody says otherwise.
        cores: How many threads all that run at once may have together.
        gpus: The devices that stages may have to themselves.
    """

    def __init__(self, session: Session, force: bool, done: Done) -> None:
        self._session, self._force, self._done = session, force, done
        self.jobs = self.cores = cores()
        self.gpus = gpus()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the workers to the pool."""

    def begin(
        self, stage: Stage, devices: Sequence[str], running: int, after: Sequence[PrefectFuture[Any]]
    ) -> Any:
        """Begin a stage here and now; return the future of its Prefect task.

        Args:
            stage: What to run.
            devices: The GPUs that it has to itself.
            running: The threads of all stages that run, this one included.
            after: The tasks of the stages that it depends on; they have ended.
        """

        environment = {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {}

        def attempt() -> Attempt:
            variables = environment | wait_policy(stage.threads, running)
            return Attempt(self._session, stage, variables, self._force, self._done)

        limits, tries = stage.limits, [attempt()]

        def run() -> State[Any]:
            if not tries:
                self._session.pool.pause(limits.retry_delay)  # Prefect's own could not be cut short
                tries.append(attempt())
            return tries.pop().follow()

        followed: Any = task(**labels(stage))(run)
        future = followed.submit(wait_for=after)
        future.add_done_callback(lambda _: self._done(stage.name))
        return future


class Attempt:
    """One try at a stage. It begins at once; Prefect's task run follows as fast as its server lets it.

    So neither a slow server nor the bookkeeping of many small stages delays the work.
    """

    def __init__(
        self, session: Session, stage: Stage, environment: dict[str, str], force: bool, done: Done
    ) -> None:
        self._session, self._stage, self._done = session, stage, done
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._outcome: Future[str | None] = Future()
        threading.Thread(target=self._run, args=(force, environment), daemon=True).start()

    def follow(self) -> State[Any]:
        """Log the stage's lines in Prefect as they come, and return the state in the end.

        Raises:
            StageError: The stage failed.
        """
        logger = get_run_logger()
        while (line := self._lines.get()) is not None:
            logger.info(line)
        outcome = self._outcome.result()
        if outcome is None:
            return Cancelled(message="stopped")
        seconds = self._session.results[self._stage.name].seconds
        # Not made by the attempt: of two states Prefect keeps the younger, and this task began later.
        return Completed(name=outcome, message=f"{seconds:.1f} s")

    def _run(self, force: bool, environment: dict[str, str]) -> None:
        try:
            self._outcome.set_result(self._try(force, environment))
        except BaseException as error:  # whoever follows gets it; it may be tried again, so it is not done
            self._outcome.set_exception(error)
        else:
            self._done(self._stage.name)
        finally:
            self._lines.put(None)

    def _try(self, force: bool, environment: dict[str, str]) -> str | None:
        """Return what became of the stage, or nothing where the pool was stopped."""
        session, name, began = self._session, self._stage.name, time.monotonic()

        def line(text: str, passing: bool) -> None:
            session.line(name, text, passing)
            self._lines.put(text)

        session.begin(name)
        timeout = self._stage.limits.timeout
        try:
            outcome = session.pool.run(name, force=force, environment=environment, timeout=timeout, line=line)
        except StageError as error:
            if session.pool.stopped:
                return None
            session.end(name, "Failed", time.monotonic() - began, str(error))
            raise
        session.end(name, outcome, time.monotonic() - began)
        return outcome


def skipped(stage: Stage, because: str) -> Any:
    """Return the Prefect task of a stage that does not run."""

    @task(**labels(stage))
    def run() -> State[Any]:
        return Cancelled(name="Skipped", message=f"because of {because}")

    return run


def labels(stage: Stage) -> dict[str, Any]:
    """Return how Prefect knows a stage. Its cache is off: DVC decides what is up to date."""
    tags = {f"operation:{stage.operation}", *([f"model:{stage.model}"] if stage.model else [])}
    return {
        "name": stage.operation,
        "task_run_name": stage.name,
        "version": stage.code or None,
        "tags": tags,
        "cache_policy": NO_CACHE,
        "persist_result": False,
        "retries": stage.limits.retries,
        "retry_condition_fn": _again,
    }


def _again(_: Any, __: Any, state: State[Any]) -> bool:
    """Say whether a failed stage is worth another try: what took too long once does so again."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageError) and not isinstance(error, StageTimeoutError)
