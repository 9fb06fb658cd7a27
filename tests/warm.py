"""Python processes that begin at once: one imports the libraries, and forks for each program that is to run.

For pipelines whose networks are so small that two thirds of the time would go into importing torch again and
again, and for flows, where it would go into Prefect and DVC. What runs is the code of the folder that it runs
in: only libraries are there already.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NoReturn

from tests.imports import ROOT

STAGES = (
    "captum.attr",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "networkx",
    "onnxscript",
    "pyarrow.parquet",
    "pydantic.fields",
    "pydantic.main",
    "pydantic.type_adapter",
    "ruamel.yaml",
    "safetensors.torch",
    "sklearn.datasets",
    "tests.operators",
    "torch._dynamo",  # what optimizers import at their first step
    "torch_pruning",
    "tqdm",
)
"""The libraries that stages import; not onnxruntime, which starts a thread: forks would wait for it."""

DVC = (
    "configobj",
    "dulwich.ignore",
    "dulwich.index",
    "dvc.cachemgr",
    "dvc.cli.parser",
    "dvc.data_cloud",
    "dvc.dirs",
    "dvc.repo.artifacts",
    "dvc.repo.datasets",
    "dvc.repo.graph",
    "dvc.repo.index",
    "dvc.repo.metrics",
    "dvc.repo.params",
    "dvc.repo.plots",
    "dvc.repo.reproduce",
    "dvc.repo.stage",
    "dvc.repo.trie",
    "dvc.rwlock",
    "dvc.scm",
    "dvc.stage.run",
    "dvc.utils.strictyaml",
    "dvc_data.hashfile.db.local",
    "dvc_data.hashfile.status",
    "flatten_dict",
    "fsspec.implementations.memory",
    "networkx",
    "psutil",
    "ruamel.yaml",
    "scmrepo.git",
    "scmrepo.noscm",
    "zc.lockfile",
)
"""What DVC imports until it has run a stage, none of which starts a thread."""

CLIENT = """\
#!{python} -IS
import json, os, socket, struct, sys

if sys.argv[1:2] == ["-m"] and sys.argv[2].startswith("tasks."):
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect({address!r})
    except OSError:
        pass
    else:
        request = {{
            "words": sys.argv[2:],
            "folder": os.getcwd(),
            "environment": dict(os.environ),
            "executable": sys.argv[0],
        }}
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        connection.recv(4)
        answer = connection.recv(4)
        status = struct.unpack("i", answer)[0] if answer else 1
        sys.exit(status if status >= 0 else 128 - status)
os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""


@contextmanager
def warm_python() -> Iterator[Path]:
    """Yield a folder for the front of PATH whose `python` runs stages warm, and everything else as ever."""
    with tempfile.TemporaryDirectory(prefix="decant-python-") as folder:
        client = Path(folder, "python")
        client.write_text(CLIENT.format(python=sys.executable, address=kept(*STAGES)), encoding="utf-8")
        client.chmod(0o755)
        yield client.parent


@contextmanager
def forking(*modules: str, **environment: str) -> Iterator[str]:
    """Yield the address of a process that has imported these modules; it ends with this one at the latest."""
    with tempfile.TemporaryDirectory(prefix="decant-warm-") as folder:
        address = str(Path(folder, "socket"))
        command = [sys.executable, "-m", "tests.warm", address, *modules]
        server = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdin=subprocess.PIPE)
        try:
            while not Path(address).exists() and server.poll() is None:
                time.sleep(0.05)
            yield address
        finally:
            server.terminate()
            server.communicate()


def asked(address: str, request: Mapping[str, Any], streams: list[int]) -> socket.socket:
    """Return the connection over which the process's number and its exit status will come."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    socket.send_fds(connection, [json.dumps(request).encode()], streams)
    return connection


@cache
def kept(*modules: str, **environment: str) -> str:
    """Return the address of such a process that lasts as long as this one; of equal arguments, one."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(forking(*modules, **environment))


def completed(
    address: str, words: list[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[bytes]:
    """Return how a module ended that ran in a fork, and what it wrote, each stream by itself."""
    request = {"words": words, "folder": str(folder), "environment": dict(environment)}
    with Path(os.devnull).open() as nothing, TemporaryFile() as out, TemporaryFile() as err:
        connection = asked(address, request, [nothing.fileno(), out.fileno(), err.fileno()])
        _, status = (struct.unpack("i", connection.recv(4))[0] for _ in range(2))
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(words, status, out.read(), err.read())


class Forked:
    """A module, or a file, that runs in a fork: what is used here of `subprocess.Popen`.

    Attributes:
        pid: The process.
        returncode: None while it runs; negative after a signal.
        stdin: Where it reads from, None for nowhere.
        stdout: What it writes, on either stream.
    """

    def __init__(
        self,
        address: str,
        words: list[str],
        folder: Path,
        environment: Mapping[str, str],
        *,
        is_led: bool = False,
    ) -> None:
        """Run it.

        Args:
            address: Of the process that forks.
            words: The name of a module, or a file, and its arguments.
            folder: The current folder.
            environment: All variables.
            is_led: Whether it reads `stdin`, and has a session of its own.
        """
        output, end = os.pipe()
        begin, commands = os.pipe() if is_led else (os.open(os.devnull, os.O_RDONLY), -1)
        self.stdout: IO[bytes] = os.fdopen(output, "rb")
        self.stdin: IO[bytes] | None = os.fdopen(commands, "wb") if is_led else None
        request = {"words": words, "folder": str(folder), "environment": dict(environment), "is_led": is_led}
        self._connection = asked(address, request, [begin, end, end])
        os.close(begin)
        os.close(end)
        self.returncode: int | None = None
        self.pid = self._answer()

    def _answer(self) -> int:
        number: int = struct.unpack("i", self._connection.recv(4))[0]
        return number

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status as soon as there is one.

        Raises:
            subprocess.TimeoutExpired: There is none after so many seconds.
        """
        if self.returncode is None:
            if timeout is not None and not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            self.returncode = self._answer()
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Send a signal to the process if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process by force."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Return what it and all that it started have written, when all of them have ended."""
        text = self.stdout.read().decode()
        self.wait(timeout)
        return text, None


def main(address: str, *modules: str) -> None:
    """Import the modules, then fork for each request; what was asked for runs here, in the fork."""
    for module in modules:
        importlib.import_module(module)
    gc.freeze()
    request = next_request(address)
    if request.get("is_led"):
        os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["words"]
    sys.executable = request.get("executable", sys.executable)  # what a stage starts is warm too
    try:
        run(request["words"][0], request["folder"])
    except SystemExit as left:
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
        leave(left.code if isinstance(left.code, int) else int(left.code is not None))
    leave(0)


def run(program: str, folder: str) -> None:
    """Run a module as `python -m` does in the folder, or a file as `python -P`, which imports none there."""
    if program.endswith(".py"):
        del sys.path[0]
        runpy.run_path(program, run_name="__main__")
    else:
        sys.path[0] = folder
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def leave(status: int) -> NoReturn:
    """End this process as Python would, but for freeing every object, for which a fork copies them all."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def next_request(address: str) -> dict[str, Any]:
    """Return in a fork, one for each request, on the streams of who asks; end when standard input does."""
    signal.signal(signal.SIGCHLD, _reap)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    return _forked(connection)
    sys.exit()


def _reap(*_: object) -> None:
    """Wait for those that waited for the forks: then what these have used counts, in `time make test`."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _forked(connection: socket.socket) -> dict[str, Any]:
    """Fork once more and return there; tell who asks the fork's number and, when it ends, its status."""
    message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    pid = os.fork()
    if pid:
        _report(connection, pid, streams)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    request: dict[str, Any] = json.loads(message)
    return request


def _report(connection: socket.socket, pid: int, streams: list[int]) -> NoReturn:
    for stream in (*streams, 1, 2):
        os.close(stream)  # who reads what the fork writes waits until nobody can write any more
    connection.sendall(struct.pack("i", pid))
    _, status = os.waitpid(pid, 0)
    connection.sendall(struct.pack("i", os.waitstatus_to_exitcode(status)))
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
