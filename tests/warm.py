"""Python processes that begin at once: one imports the libraries, and forks for each module that is to run.

For pipelines whose networks are so small that two thirds of the time would go into importing torch again and
again, and for flows, where it would go into Prefect. What runs is the code of the folder that it runs in:
only libraries are there already.
"""

from __future__ import annotations

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
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tests.imports import ROOT

STAGES = (
    "matplotlib.figure",
    "onnxscript",
    "pyarrow.parquet",
    "pydantic",
    "safetensors.torch",
    "torch._dynamo",  # what optimizers import at their first step
    "tqdm",
    "yaml",
)
"""The libraries that stages import."""

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
        request = {{"words": sys.argv[2:], "folder": os.getcwd(), "environment": dict(os.environ)}}
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
    with forking(*STAGES) as address, tempfile.TemporaryDirectory(prefix="decant-python-") as folder:
        client = Path(folder, "python")
        client.write_text(CLIENT.format(python=sys.executable, address=address), encoding="utf-8")
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


class Forked:
    """A module that runs in a fork: what tests use of `subprocess.Popen`, with the output as one stream.

    Attributes:
        pid: The process.
        returncode: None while it runs; negative after a signal.
    """

    def __init__(self, address: str, words: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        output, end = os.pipe()
        self._output = os.fdopen(output, encoding="utf-8")
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)
        request = {"words": words, "folder": str(folder), "environment": dict(environment)}
        with Path(os.devnull).open() as nothing:
            streams = [nothing.fileno(), end, end]
            socket.send_fds(self._connection, [json.dumps(request).encode()], streams)
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
        text = self._output.read()
        self.wait(timeout)
        return text, None


def main(address: str, *modules: str) -> None:
    """Import the modules, then fork for each request; what was asked for runs here, in the fork."""
    for module in modules:
        importlib.import_module(module)
    gc.freeze()
    request = next_request(address)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv, sys.path[0] = request["words"], request["folder"]
    runpy.run_module(request["words"][0], run_name="__main__", alter_sys=True)


def next_request(address: str) -> dict[str, Any]:
    """Return in a fork, one for each request, on the streams of who asks; end when standard input does."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for the forks
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
