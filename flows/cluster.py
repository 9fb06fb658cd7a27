"""Stages in other clones, on the workers of a Dask cluster: python -m flows.cluster tcp://scheduler:8786

The command joins a cluster with the clone that it is called in; `python -m flows.compress --runner dask` is
the coordinator, which alone writes dvc.lock. A worker runs one stage at a time, in a worktree of its clone at
the coordinator's commit. Files go by way of the DVC remote, and everything else by way of Dask.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import distributed
from dask.base import annotate
from prefect import get_run_logger, task
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import task_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed
from prefect_dask.task_runners import DaskTaskRunner, PrefectDaskFuture

from decant.errors import DecantError
from flows import worktrees
from flows.described import CODE
from flows.local import Done, Local, labels
from flows.machine import gpus, wait_policy
from flows.plan import WANTED, Stage
from flows.pool import Hold, Pool, StageError
from flows.session import Session, record_code
from flows.worktrees import git, root_of

PATIENCE = "20s"
"""How long the scheduler may take to answer."""


class Cluster:
    """Runs stages on the workers of a Dask cluster.

    Attributes:
        jobs: How many at once, where nobody says otherwise: one for each worker.
        cores: No bound, for every worker has its own.
        gpus: As many as the workers have together.

    Raises:
        DecantError: There is no scheduler, no worker, no Prefect server that workers reach, or no DVC remote.
    """

    def __init__(self, session: Session, force: bool, done: Done, address: str | None) -> None:
        if not address:
            raise DecantError(
                "--runner dask needs a scheduler: start one in a clone with `python -m dask scheduler`, join"
                " workers with `python -m flows.cluster tcp://HOST:8786` in theirs, name it by --scheduler"
            )
        if not PREFECT_API_URL.value():
            raise DecantError(
                "--runner dask needs a Prefect server that the workers reach too: set PREFECT_API_URL"
            )
        self._session, self._force, self._done = session, force, done
        self._dask = DaskTaskRunner(address=address, client_kwargs={"timeout": PATIENCE})
        self._address, self._topic = address, f"decant-{os.urandom(8).hex()}"
        self._entries: dict[str, dict[str, Any]] = {}
        self._inputs: dict[str, dict[str, str]] = {}
        self._local = Local(session, force, self._offer_what_was_here)
        self._commit = git(session.folder, "rev-parse", "HEAD").strip()
        self.jobs, self.cores, self.gpus = 0, sys.maxsize, list[str]()

    def __enter__(self) -> Self:
        self._dask.__enter__()
        try:
            self._connect()
            self._offer()
        except BaseException:
            self._dask.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *exception: Any) -> None:
        """Let go of all stages that still run: their workers see it and end them."""
        self._dask.__exit__(*exception)

    def begin(
        self, stage: Stage, devices: Sequence[str], running: int, after: Sequence[PrefectFuture[Any]]
    ) -> Any:
        """Have a stage run on some worker; return the future of its Prefect task.

        Args:
            stage: What to run.
            devices: As many GPUs must the worker have.
            running: The threads of all stages that run anywhere; only here they share cores with this one.
            after: The tasks of the stages that it depends on; they have ended, and their files are here.
        """
        limits = stage.limits
        # A worker records its own code. Measured times are no outputs: they stay where they were measured.
        here = stage.name == CODE or (stage.limits.alone and not devices)
        if here or stage.frozen or not stage.command:
            return self._local.begin(stage, devices, running, after)
        remote = task(**labels(stage))(carry_out)
        order = {
            "stage": stage.name,
            "commit": self._commit,
            "inputs": self._inputs[stage.name],
            "threads": stage.threads,
            "upstream": {name: self._entries[name] for name in stage.upstream},
            "force": self._force,
            "timeout": limits.timeout,
            "retry_delay": limits.retry_delay,
            "topic": self._topic,
        }
        self._session.begin(stage.name)
        with annotate(resources={"GPU": len(devices)} if devices else {}):
            future = self._dask.submit(remote, {"order": order})
        threading.Thread(target=self._await, args=(stage.name, future), daemon=True).start()
        return future

    def _connect(self) -> None:
        try:
            client = self._dask.client
        except (OSError, ValueError) as error:
            raise DecantError(f"No Dask scheduler answers at {self._address}: {error}") from None
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        if not workers:
            raise DecantError(
                f"The Dask cluster at {self._address} has no worker: in each clone, run"
                f" `python -m flows.cluster {self._address}`"
            )
        self.jobs = sum(worker["nthreads"] for worker in workers)
        counts = [int(worker["resources"].get("GPU", 0)) for worker in workers]
        self.gpus = [str(index) for index in range(sum(counts))]
        for name in self._session.to_run:
            if (wanted := self._session.plan.stages[name].limits.gpu) > max(counts):
                raise DecantError(
                    f"{name} wants {wanted} GPUs ({WANTED}), and no worker has more than {max(counts)}"
                )
        client.subscribe_topic(self._topic, self._hear)

    def _offer(self) -> None:
        """Put what is up to date here, and needed there, where the workers find it."""
        session = self._session
        self._inputs = session.pool.ask({"do": "inputs", "stages": session.to_run})
        needed = {above for name in session.to_run for above in session.plan.stages[name].upstream}
        for name in sorted(needed.difference(session.to_run)):
            try:
                self._entries[name] = session.pool.ask({"do": "send", "stage": name})
            except StageError as error:
                raise DecantError(f"The workers cannot have what {name} wrote: {error}") from None

    def _offer_what_was_here(self, stage: str) -> None:
        """Send what a stage that no worker can run has left here."""
        result = self._session.results.get(stage)
        if result and result.state != "Failed" and stage not in self._entries:
            try:
                self._entries[stage] = self._session.pool.ask({"do": "send", "stage": stage})
            except StageError as error:
                self._session.end(stage, "Failed", result.seconds, str(error))
        self._done(stage)

    def _hear(self, event: tuple[float, Any]) -> None:
        _, (stage, text, passing) = event
        self._session.line(stage, text, passing)

    def _await(self, stage: str, future: PrefectDaskFuture[Any]) -> None:
        """Take over what a worker has made."""
        session, began = self._session, time.monotonic()
        try:
            self._wait(future)
            answer = future.result()
            session.pool.ask({"do": "adopt", "stage": stage, "entry": answer["entry"]})
        except Exception as error:  # of ours, of Prefect or of Dask: the flow has to tell it
            future.wrapped_future.cancel()  # who has left might come back
            if not session.pool.stopped:
                why = str(error).strip() or type(error).__name__
                if "deserialization of the task graph" in why:
                    why = "the Dask scheduler does not find our code: start it in a clone, with this Python"
                session.end(stage, "Failed", time.monotonic() - began, why)
        else:
            self._entries[stage] = answer["entry"]
            session.end(stage, answer["outcome"], time.monotonic() - began)
        self._done(stage)

    def _wait(self, future: PrefectDaskFuture[Any]) -> None:
        """Wait for a stage as long as there is somebody to run it.

        Raises:
            DecantError: The last worker has left.
        """
        missing = 0
        while not future.wrapped_future.done():
            future.wait(5)
            there = self._dask.client.scheduler_info(n_workers=-1)["workers"]
            missing = 0 if there else missing + 1
            if missing > 2:
                raise DecantError("no worker is left in the cluster")


def carry_out(order: dict[str, Any]) -> State[Any]:
    """Run one stage in this worker's clone.

    Args:
        order: What the coordinator says: the stage, its commit and `threads`, the sums of its `inputs`, the
            entries of the stages `upstream`, `force`, `timeout`, and the `topic` that lines go to.

    Returns:
        A state whose data is the `outcome` and the stage's `entry` of dvc.lock.

    Raises:
        StageError: It failed.
        DecantError: This clone does not have what the coordinator has.
    """
    worker, logger, stage = distributed.get_worker(), get_run_logger(), order["stage"]

    def line(text: str, passing: bool) -> None:
        worker.log_event(order["topic"], [stage, text, passing])
        logger.info(text)

    folder = worktree_at(Path.cwd(), order["commit"])
    line(f"on {socket.gethostname()} in {folder}", False)
    with Pool(folder) as pool, _given_up(worker, pool):
        if (task_run.run_count or 1) > 1:
            pool.pause(order["retry_delay"])  # Prefect's own delay could not be cut short
        try:
            record_code(pool)
            _require_same(order["inputs"], pool.ask({"do": "inputs", "stages": [stage]})[stage], folder)
            pool.ask({"do": "fetch", "entries": order["upstream"]})
            outcome = pool.run(
                stage,
                force=order["force"],
                environment=wait_policy(order["threads"], order["threads"]),
                timeout=order["timeout"],
                pull=True,
                line=line,
            )
            entry = pool.ask({"do": "send", "stage": stage})
        except StageError:
            if pool.stopped:
                raise DecantError("given up: nobody waits for it any more") from None  # and not tried again
            raise
    return Completed(name=outcome, data={"outcome": outcome, "entry": entry})


def worktree_at(clone: Path, commit: str) -> Path:
    """Return the worktree of a clone in which stages run, at a commit; the clone's own files stay untouched.

    Raises:
        DecantError: The clone does not have the commit, even after `git fetch`.
    """
    repository = root_of(clone)
    folder = repository / ".dvc" / "tmp" / "cluster"
    with contextlib.suppress(DecantError):
        if folder.is_dir() and git(folder, "rev-parse", "HEAD").strip() == commit:
            return folder
    try:
        git(repository, "cat-file", "-e", f"{commit}^{{commit}}")
    except DecantError:
        git(repository, "fetch", "--quiet")
    try:
        worktrees.add(repository, folder, commit)
    except DecantError as error:
        raise DecantError(f"{socket.gethostname()} has no commit {commit[:12]}: push it ({error})") from None
    return folder


def _require_same(wanted: dict[str, str], found: dict[str, str], folder: Path) -> None:
    """Raise where this clone would run something else than the coordinator has."""
    other = [path for path in sorted({*wanted, *found}) if wanted.get(path) != found.get(path)]
    if other:
        raise DecantError(
            f"The coordinator has another {', '.join(other)} than the commit in {folder}: commit and push it"
        )


@contextlib.contextmanager
def _given_up(worker: distributed.Worker, pool: Pool) -> Iterator[None]:
    """End the stage when nobody waits for it any more: it was cancelled, or the coordinator is gone."""
    key, ended = worker.get_current_task(), threading.Event()

    def watch() -> None:
        while not ended.is_set():
            known = worker.state.tasks.get(key)
            if known is None or known.state not in ("executing", "long-running"):
                pool.stop()
                return
            ended.wait(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


async def _work(address: str) -> None:
    devices = len(gpus())
    worker = distributed.Worker(
        address, nthreads=1, memory_limit=0, resources={"GPU": devices} if devices else None
    )
    async with worker:
        await worker.finished()


def main(arguments: list[str] | None = None) -> int:
    """Work for a cluster until interrupted; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flows.cluster", description=__doc__.partition("\n")[0])
    parser.add_argument("scheduler", help="address of the Dask scheduler, such as tcp://10.0.0.1:8786")
    address = parser.parse_args(arguments).scheduler
    try:
        hold = Hold(Path.cwd(), "worker")
        asyncio.run(_work(address))
        hold.file.close()
    except KeyboardInterrupt:
        return 0
    except (DecantError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
