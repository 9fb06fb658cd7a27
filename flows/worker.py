"""The process that talks to DVC, for a flow.

It reads requests from standard input, one line of JSON each, and answers on standard output with a line that
begins with MARK; what a stage prints comes between. One process runs one stage at a time, so DVC's locks,
which count processes, tell two of them apart. DVC is imported once, not once a stage.

DVC promises nothing of what is used here, so tests/test_pool.py holds it: `Repo(_wait_for_lock=True)` with
`lock`, `index`, `stage.collect` and `find_outs_by_path`; `Stage.status`, `Stage.changed`, `Stage.reproduce`,
`Stage.run`; where the cache keeps a file (`oid_to_path`); and two messages of its log.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

    from flows.described import Outputs

MARK = "\x1e"
"""Begins the line of an answer (ASCII's record separator): no program prints it by chance."""

ORPHAN = 5.0
"""Seconds after the end of the flow, and of whatever should end this process, in which it ends itself."""


class Turn:
    """DVC's lock of the workspace with a queue before it.

    Whoever finds DVC's lock taken sleeps half a second and tries again; our own workers wait here for as
    long as it takes and no longer. Other DVC commands are waited for in DVC's way.

    Who has it hashes, copies and writes what a stage has made: an interruption waits until it is recorded.
    """

    def __init__(self, lock: Any, path: Path) -> None:
        self._lock, self._file = lock, path.open("a")
        self._held, self._interrupted = False, False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)

    def lock(self) -> None:
        """Wait for both."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._lock.lock()
        self._held = True

    def unlock(self) -> None:
        """Let go of both."""
        try:
            if self._lock.is_locked:  # else it was interrupted before it had it
                self._lock.unlock()
        finally:
            self._held = False
            fcntl.flock(self._file, fcntl.LOCK_UN)
        if self._interrupted:
            raise KeyboardInterrupt

    def _interrupt(self, *_: object) -> None:
        self._interrupted = True
        if not self._held:
            raise KeyboardInterrupt

    def __enter__(self) -> Turn:
        self.lock()
        return self

    def __exit__(self, *_: object) -> None:
        self.unlock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)


class OutcomeHandler(logging.Handler):
    """Which way DVC took for the stage, by its log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.outcome = "UpToDate"

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of a message."""
        message = record.getMessage()
        if "is cached - skipping run" in message:
            self.outcome = "RestoredFromRunCache"
        elif message.startswith("Running stage '"):
            self.outcome = "Ran"


def main() -> None:
    """Answer requests until the input ends."""
    # Ours, and last: this file runs in the workspace of whatever project, by its path.
    sys.path.append(str(Path(__file__).parents[1]))
    from decant.outputs import is_full, no_space
    from flows.entries import remember_params

    remember_params()
    workspace = Workspace()
    for line in _requests():
        request = json.loads(line)
        try:
            answer = {"ok": getattr(workspace, request.pop("do"))(**request)}
        except Exception as error:  # whatever it is, the flow has to tell it
            answer = {"error": no_space(error) if is_full(error) else _messages(error)}
        _answer(answer)


def _requests() -> Iterator[str]:
    """Yield the lines of standard input; soon after its end, end this process group, whatever it does."""
    stream, lines = os.fdopen(os.dup(0)), queue.SimpleQueue[str]()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a stage that reads its input must not read requests

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put("")
        time.sleep(ORPHAN)  # the flow's watchdog ends us sooner, unless it was killed too
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)

    threading.Thread(target=read, daemon=True).start()
    while line := lines.get():
        yield line


class Workspace:
    """The DVC workspace of the current folder."""

    def __init__(self) -> None:
        self._repo: Repo | None = None
        self._stages: dict[str, PipelineStage] = {}

    def has(self, stage: str) -> bool:
        """Say whether dvc.yaml has a stage of this name."""
        self._open()
        return stage in self._stages

    def plan(self, targets: list[str]) -> list[dict[str, Any]]:
        """Return the stages that the targets need, each after those it depends on.

        Args:
            targets: Stages, or files that stages write; none for all.
        """
        import networkx as nx
        from dvc.exceptions import DvcException

        from flows.described import Outputs
        from flows.entries import unchanged

        repo = self._open()
        with repo.lock:
            graph = repo.index.graph
            chosen = [stage for target in targets for stage in _find(repo, target)] or list(graph)
            for stage in chosen:
                if stage not in graph:
                    raise DvcException(f"{stage.addressing} is no stage of the DAG")
            active = graph.copy()  # a frozen stage is taken as it is, whatever it depends on
            active.remove_edges_from(
                [edge for stage in graph if stage.frozen for edge in graph.out_edges(stage)]
            )
            needed = set(chosen).union(*(nx.descendants(active, stage) for stage in chosen))
            order = list(nx.dfs_postorder_nodes(active.subgraph(needed)))
            outputs = Outputs.of(graph)
            with unchanged(repo, order), _no_collector():
                return [self._describe(stage, active, outputs) for stage in order]

    def run(self, stage: str, force: bool, environment: dict[str, str], pull: bool = False) -> str:
        """Run one stage if it must run, record it in dvc.lock, and return which way DVC took.

        Args:
            stage: Its address, such as `compress@int8`.
            force: Run it although nothing has changed.
            environment: Variables for its command alone.
            pull: Take what the run cache knows out of the remote, too.
        """
        from flows.entries import record

        handler, logger = OutcomeHandler(), logging.getLogger("dvc")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        try:
            repo = self._open()
            with repo.lock:
                found = self._stage(stage)
                _answer({"begun": stage})  # from here on it takes time of its own, and not DVC's
                if _pulled(found, force) if pull else found.reproduce(force=force):
                    record(found)
        finally:
            logger.removeHandler(handler)
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        return handler.outcome

    def inputs(self, stages: list[str]) -> dict[str, dict[str, str]]:
        """Return for each stage what it reads and no stage writes: its command, code by sum, and params."""
        from flows import described

        repo = self._open()
        with repo.lock:
            outputs = described.Outputs.of(repo.index.graph)
            return {name: described.inputs(self._stage(name), outputs) for name in stages}

    def send(self, stage: str) -> dict[str, Any]:
        """Copy what a stage wrote to the remote; return its entry of dvc.lock."""
        from flows import exchange

        repo = self._open()
        with repo.lock:
            return exchange.send(repo, self._stage(stage))

    def fetch(self, entries: dict[str, dict[str, Any]]) -> None:
        """Put what stages wrote somewhere else into this workspace.

        Args:
            entries: By the stages' addresses, as `send` has returned them.
        """
        from flows import exchange

        repo = self._open()
        with repo.lock:
            for stage, entry in entries.items():
                exchange.fetch(repo, self._stage(stage), entry)

    def adopt(self, stage: str, entry: dict[str, Any]) -> None:
        """Fetch what a stage wrote somewhere else, and write its entry into dvc.lock."""
        from flows import exchange

        repo = self._open()
        with repo.lock:
            try:
                exchange.adopt(repo, self._stage(stage), entry)
            except BaseException:
                del self._stages[stage]  # it has taken over the entry already
                raise

    def _stage(self, name: str) -> PipelineStage:
        self._open()
        return self._stages.get(name) or self._open().stage.collect(name)[0]

    def _open(self) -> Repo:
        """Return the repository, read once: a stage's own entry of dvc.lock changes by its own run alone."""
        if self._repo is None:
            from dvc.repo import Repo

            repo = Repo(_wait_for_lock=True)
            repo.lock = Turn(repo.lock, Path(repo.tmp_dir) / "decant.turn")
            with repo.lock, _no_collector():
                self._stages = {stage.addressing: stage for stage in repo.index.stages}
            self._repo = repo
        return self._repo

    def _describe(self, stage: PipelineStage, graph: Any, outputs: Outputs) -> dict[str, Any]:
        from flows import described, entries

        status = entries.status(stage)
        return {
            "name": stage.addressing,
            "command": stage.cmd if isinstance(stage.cmd, str) else "; ".join(stage.cmd or []),
            "upstream": sorted(other.addressing for other in graph.successors(stage)),
            "stale": described.reasons(stage, status, outputs),
            "meta": stage.meta or {},
            "frozen": bool(stage.frozen),
            "threads": described.threads(stage),
            "gpus": described.gpus(stage),
            "code": described.one_sum(described.code(stage, outputs)) if status else "",
        }


def _find(repo: Repo, target: str) -> list[PipelineStage]:
    """Return the stages of a name, or the one that writes a file."""
    from dvc.exceptions import DvcException, OutputNotFoundError

    try:
        return list(repo.stage.collect(target))
    except DvcException as unknown:
        try:
            return [out.stage for out in repo.find_outs_by_path(target)]
        except OutputNotFoundError:
            raise unknown from None


def _pulled(stage: PipelineStage, force: bool) -> bool:
    """Run a stage if it must run, unless the remote has what it wrote; say whether it was either.

    `Stage.reproduce(pull=True)` would first look for the outputs by a dvc.lock that knows them.
    """
    from flows import exchange

    if not force and not stage.changed():
        return False
    if not force and (stage.changed_stage() or stage.changed_deps()):
        exchange.know(stage.repo, stage)
    stage.run(force=force, pull=True)
    return True


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Make many objects that stay without looking, again and again, for those among them that do not."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _answer(content: dict[str, Any]) -> None:
    sys.stdout.write(f"\n{MARK}{json.dumps(content)}\n")
    sys.stdout.flush()


def _messages(error: BaseException) -> str:
    """Return what an error and its causes say, each once."""
    messages: list[str] = []
    current: BaseException | None = error
    while current is not None:
        text = str(current) or type(current).__name__
        if text not in messages:
            messages.append(text)
        current = current.__cause__
    return ": ".join(messages)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # the flow ends it, and says so itself
        sys.exit(130)
