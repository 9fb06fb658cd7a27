"""Worker processes, and the assurance that none of them outlives the flow."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import json
import os
import queue
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

from decant.errors import DecantError
from flows import watchdog, worker
from flows.watchdog import GRACE, end_groups, end_marked, release

Line = Callable[[str, bool], None]
"""Takes a line of a stage's output; True where it will be overwritten, as a progress bar's is."""


class StageError(DecantError):
    """A stage failed; the message says how."""


class StageTimeoutError(StageError):
    """A stage took longer than its `timeout`."""


class Hold:
    """The hold on a workspace, for one process of a kind: a flow, a worker. It ends with who has it."""

    def __init__(self, folder: Path, kind: str = "flow") -> None:
        path = folder / ".dvc" / "tmp" / f"decant.{kind}"
        if not (folder / ".dvc").is_dir():
            raise DecantError(f"No DVC repository in {folder.resolve()}; run this in the folder of dvc.yaml")
        path.parent.mkdir(exist_ok=True)
        self.file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.seek(0)
            holder = self.file.read().strip() or "another process"
            self.file.close()
            raise DecantError(
                f"Another {kind} works in {folder.resolve()}: {holder}; wait for it, stop it, or take"
                " another clone"
            ) from None
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        self.file.flush()


class Watched:
    """Processes that do not outlive this one.

    Leaving the context ends all that are left, as does the end of this process, of whatever kind. Where it is
    the watchdog that is ended by somebody, this process ends them itself.

    Attributes:
        lost: Whether the watchdog was ended by somebody, and so all others too.
    """

    def __init__(self, rwlock: Path | None = None, hold: Hold | None = None) -> None:
        self.lost = False
        self._groups, self._rwlock, self._hold = set[int](), rwlock, hold
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._mark = f"DECANT_WATCHED_{os.getpid()}_{id(self)}"
        self._watchdog = subprocess.Popen(
            [sys.executable, "-P", watchdog.__file__, self._mark, *([str(rwlock)] if rwlock else [])],
            stdin=subprocess.PIPE,
            pass_fds=[hold.file.fileno()] if hold else [],
            start_new_session=True,
        )
        os.environ[self._mark] = "1"  # whatever is started from now on has it
        threading.Thread(target=self._watch, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def stopped(self) -> bool:
        """Say whether `stop` was called."""
        return self._stopped.is_set()

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than until `stop` is called."""
        self._stopped.wait(seconds)

    def start(self, command: list[str], **settings: Any) -> subprocess.Popen[bytes]:
        """Start a process in a session of its own, with the settings of subprocess.Popen."""
        process = subprocess.Popen(command, start_new_session=True, **settings)
        try:
            self._tell(f"+{process.pid}")
        except BaseException:
            process.kill()
            raise
        self._groups.add(process.pid)
        return process

    def end(self, process: subprocess.Popen[bytes], grace: float = GRACE) -> None:
        """End a process and all that it has started, by force after `grace` seconds."""
        end_groups([process.pid], grace)
        process.wait()
        self._groups.discard(process.pid)
        if self._rwlock:
            release(self._rwlock)
        if not self.stopped:
            self._tell(f"-{process.pid}")

    def stop(self, clean: bool = True) -> None:
        """End all that is left; returns when it is gone, a few seconds later at most.

        Args:
            clean: Whether this end is meant. Where it is not, all that was started in whatever way is ended,
                and not what was started by `start` alone.
        """
        with self._lock:
            self._stopped.set()
            os.environ.pop(self._mark, None)
            if self._watchdog.stdin is not None and not self._watchdog.stdin.closed:
                with contextlib.suppress(BrokenPipeError):
                    self._watchdog.stdin.write(b".\n" if clean else b"")
                    self._watchdog.stdin.close()
        if self._watchdog.wait():
            self._end_all()
        if self._hold:
            self._hold.file.close()

    def _watch(self) -> None:
        self._watchdog.wait()
        if not self.stopped:
            self.lost = True
            self._end_all()

    def _end_all(self) -> None:
        """Do what the watchdog was there for."""
        self._stopped.set()
        end_groups(set(self._groups))
        end_marked(self._mark)
        if self._rwlock:
            release(self._rwlock)

    def _tell(self, message: str) -> None:
        with self._lock:
            if self.stopped:
                raise StageError("stopped")
            assert self._watchdog.stdin is not None
            try:
                self._watchdog.stdin.write(f"{message}\n".encode())
                self._watchdog.stdin.flush()
            except BrokenPipeError:
                raise StageError("the process that watches over the stages was ended") from None


class Pool(Watched):
    """Workers in one folder, started when they are needed and used again.

    Raises:
        DecantError: Another flow works in the folder, or there is no DVC repository.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        hold, rwlock = Hold(self.folder), self.folder / ".dvc" / "tmp" / "rwlock"
        release(rwlock)
        super().__init__(rwlock, hold)

    def plan(self, targets: list[str]) -> list[dict[str, Any]]:
        """Return what DVC knows of the stages that the targets need.

        Raises:
            StageError: DVC could not tell.
        """
        found: list[dict[str, Any]] = self.ask({"do": "plan", "targets": targets})
        return found

    def has(self, stage: str) -> bool:
        """Say whether dvc.yaml has a stage of this name.

        Raises:
            StageError: DVC could not tell.
        """
        found: bool = self.ask({"do": "has", "stage": stage})
        return found

    def run(
        self,
        stage: str,
        *,
        force: bool = False,
        environment: Mapping[str, str] | None = None,
        timeout: float | None = None,
        pull: bool = False,
        line: Line | None = None,
    ) -> str:
        """Run one stage and return what became of it: Ran, UpToDate or RestoredFromRunCache.

        Args:
            stage: Its address.
            force: Run it although nothing has changed.
            environment: Variables for its command alone.
            timeout: Seconds after which its process group is ended, from when the stage begins: while the
                process loads DVC, or waits for another one's lock, it has not begun.
            pull: Take what the run cache knows out of the DVC remote, too.
            line: Is given its output, line by line as it comes.

        Raises:
            StageTimeoutError: It took too long.
            StageError: It failed.
        """
        request = {"do": "run", "stage": stage, "force": force, "environment": dict(environment or {})}
        outcome: str = self.ask(request | {"pull": pull}, timeout, line)
        return outcome

    def ask(self, request: dict[str, Any], timeout: float | None = None, line: Line | None = None) -> Any:
        """Return a worker's answer to a request."""
        try:
            found = self._idle.get_nowait()
        except queue.Empty:
            found = Worker(self)
        try:
            answer = found.ask(request, timeout, line)
        except BaseException:
            found.end()
            raise
        self._idle.put(found)
        if "error" in answer:
            raise StageError(answer["error"])
        return answer["ok"]


class Worker:
    """One process of `flows.worker`, in a process group of its own."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        # dvc.yaml's commands say `python`: they get this one.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        self._process = pool.start(
            # A file and no module: in a workspace of other code, `flows` is that code's.
            [sys.executable, "-P", worker.__file__],
            cwd=pool.folder,
            env=os.environ | {"PATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def ask(self, request: dict[str, Any], timeout: float | None, line: Line | None) -> dict[str, Any]:
        """Return the answer to a request; what comes before it goes to `line`.

        Raises:
            StageTimeoutError: It did not come in time; the process group is ended.
            StageError: The process ended without an answer.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        late = threading.Event()

        def expire() -> None:
            late.set()
            end_groups([self._process.pid])

        timer = threading.Timer(timeout or 0, expire)
        timer.daemon = True
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            for text, passing in lines(self._process.stdout, ended=lambda: self._process.poll() is not None):
                if text.startswith(worker.MARK):
                    if late.is_set():
                        break
                    answer: dict[str, Any] = json.loads(text[1:])
                    if "begun" not in answer:
                        return answer
                    if timeout:
                        timer.start()
                    continue
                if line and text.strip():
                    line(text, passing)
        except BrokenPipeError:
            pass
        finally:
            timer.cancel()
        if late.is_set():
            raise StageTimeoutError(f"took longer than its timeout of {timeout:g} s and was ended")
        raise StageError(f"its process ended without an answer ({ending(self._process.wait())})")

    def end(self) -> None:
        """End the process and all that it has started."""
        self._pool.end(self._process)


def lines(
    stream: IO[bytes], chunk: int = 65536, ended: Callable[[], bool] = lambda: False
) -> Iterator[tuple[str, bool]]:
    """Yield what comes out of a stream, cut at line ends; True with those that end in a carriage return.

    Args:
        stream: A pipe.
        chunk: The most bytes that are read at once.
        ended: Whether the process that is listened to has ended; what it has started may have the pipe still.
    """
    decode, rest = codecs.getincrementaldecoder("utf-8")(errors="replace").decode, ""
    while piece := _read(stream.fileno(), chunk, ended):
        *whole, rest = re.split(r"(\r\n|\n|\r)", rest + decode(piece))
        if whole and whole[-1] == "\r" and not rest:
            rest = whole[-2] + whole[-1]  # a line end that came in halves would be two
            whole = whole[:-2]
        for text, end in zip(whole[::2], whole[1::2], strict=True):
            yield text, end == "\r"
    if rest:
        yield rest.rstrip("\r"), False


def _read(number: int, chunk: int, ended: Callable[[], bool]) -> bytes:
    """Return what can be read; nothing at the end, or where nothing comes any more from who has ended."""
    ready = select.poll()
    ready.register(number, select.POLLIN)
    gone = ended()
    while not ready.poll(0 if gone else 500):
        if gone:
            return b""
        gone = ended()
    return os.read(number, chunk)


def ending(status: int) -> str:
    """Return how a process ended, as a phrase."""
    if status == -9:
        return "killed by signal 9; often the machine was out of memory"
    return f"killed by signal {-status}" if status < 0 else f"exit code {status}"
