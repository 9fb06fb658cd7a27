"""A `python` for stages that starts in no time: one process imports the libraries and forks for each stage.

For pipelines whose networks are so small that two thirds of the time would go into importing torch again and
again. A stage runs the code of its own folder, `decant` and `tasks`; only the libraries are there already.
"""

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.imports import ROOT

CLIENT = """\
#!{python} -IS
import json, os, socket, sys

if sys.argv[1:2] == ["-m"] and sys.argv[2].startswith("tasks."):
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect({address!r})
    except OSError:
        pass
    else:
        request = {{"words": sys.argv[2:], "folder": os.getcwd(), "environment": dict(os.environ)}}
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        sys.exit(int(connection.recv(4) or b"1"))
os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""


@contextmanager
def warm_python() -> Iterator[Path]:
    """Yield a folder for the front of PATH whose `python` runs stages warm, and everything else as ever."""
    with tempfile.TemporaryDirectory(prefix="decant-warm-") as temporary:
        folder, address = Path(temporary), str(Path(temporary) / "socket")
        client = folder / "python"
        client.write_text(CLIENT.format(python=sys.executable, address=address), encoding="utf-8")
        client.chmod(0o755)
        server = subprocess.Popen([sys.executable, "-m", "tests.warm", address], cwd=ROOT)
        try:
            while not Path(address).exists() and server.poll() is None:
                time.sleep(0.05)
            yield folder
        finally:
            server.terminate()
            server.wait()


def serve(address: str) -> None:
    """Fork for every stage that a client asks for, until terminated."""
    import matplotlib.figure  # noqa: F401  for the forks
    import onnxscript  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import pydantic  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch._dynamo  # noqa: F401  what optimizers import at their first step
    import tqdm  # noqa: F401
    import yaml  # noqa: F401

    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                status = run_stage(connection)
                sys.stdout.flush()
                sys.stderr.flush()
                connection.sendall(str(status).encode())
                os._exit(status)
            connection.close()


def run_stage(connection: socket.socket) -> int:
    """Run what the client asks for on the client's own streams; return the exit status."""
    message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    request = json.loads(message)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv, sys.path[0] = request["words"], request["folder"]
    try:
        runpy.run_module(request["words"][0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
