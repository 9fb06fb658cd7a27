"""Start all that schedules need, with one command: python -m flows.serve

A Prefect server (with SQLite, unless it is told of another database), the deployments of prefect.yaml, and a
worker that runs them. With PREFECT_API_URL set there is a server already, and only the worker is started.
The server answers its own pages alone, and asks for a password: see flows/password.py.
Ctrl-C ends everything, as does the end of this process by any other means.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import NoReturn

from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_SERVER_API_AUTH_STRING,
    temporary_settings,
)

from decant.errors import DecantError
from flows import password
from flows.pool import Watched

POOL = "decant"
PATIENCE = 180.0
"""Seconds that a server may take to answer; its first start makes a database."""


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted; return the exit status: 0 for an interruption, 1 for a failure."""
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=4200, help="of the server (default: 4200)")
    parser.add_argument(
        "--password",
        choices=("on", "off"),
        default="on",
        help="whether the server asks for one; off for one that something else guards (on)",
    )
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, _interrupt)  # also where it was started in the background, and so ignored
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with Watched() as watched:
            serve(watched, chosen.port, _asked() if chosen.password == "on" else None)
    except KeyboardInterrupt:
        _say("Stopped: no server, no worker and no run is left")
        return 0
    except DecantError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _asked() -> str | None:
    """Return the `user:password` that a server started here asks for; None where one is there already."""
    if PREFECT_API_URL.value():
        return None
    if chosen := PREFECT_SERVER_API_AUTH_STRING.value():
        return str(chosen)
    made, new = password.make()
    if new:
        _say(f"Made a password, shown this once: {made}")
    _say(f'The server asks for it; other shells: export PREFECT_API_AUTH_STRING="$(cat {password.place()})"')
    return made


def guarded(url: str, secret: str | None = None) -> dict[str, str]:
    """Return the settings of a server that answers its own pages, and clients that give the password."""
    localhost = url.removesuffix("/api").replace("127.0.0.1", "localhost")
    settings = {
        # Its pages would look for the API at port 4200 else, whatever the port.
        "PREFECT_SERVER_UI_API_URL": url,
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": f"{url.removesuffix('/api')},{localhost}",
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
    }
    return settings | ({"PREFECT_SERVER_API_AUTH_STRING": secret} if secret else {})


def serve(watched: Watched, port: int, secret: str | None = None) -> NoReturn:
    """Start the server, the deployments and the worker, and wait.

    Args:
        watched: Sees to it that none of them is left.
        port: Of the server.
        secret: `user:password`, which the server asks for and its clients here give; for none, None.

    Raises:
        DecantError: The port is taken, or one of them ended.
    """
    processes = {}
    url = PREFECT_API_URL.value()
    if url:
        _say(f"Using the server at {url} (PREFECT_API_URL)")
    else:
        url = f"http://127.0.0.1:{port}/api"
        require_free(port)
        _say("Starting a Prefect server (the first time, it makes its database)")
        command = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
        settings = os.environ | guarded(url, secret)
        processes["the server"] = watched.start(prefect(command), stdout=subprocess.DEVNULL, env=settings)
    os.environ |= {"PREFECT_API_URL": url, "DECANT_HOME": str(Path.cwd())}
    os.environ |= {"PREFECT_API_AUTH_STRING": secret} if secret else {}
    wait_for(url, processes)
    for arguments in (["work-pool", "create", POOL, "--type", "process", "--overwrite"], ["deploy", "--all"]):
        _say(f"prefect {' '.join(arguments)}")
        done = watched.start(prefect(["--no-prompt", *arguments]), stdout=subprocess.DEVNULL)
        done.wait()
        watched.end(done)
        if done.returncode:
            raise DecantError(
                f"`prefect {' '.join(arguments)}` failed; run it yourself with PREFECT_API_URL={url} (and "
                "PREFECT_API_AUTH_STRING=user:password, where the server asks for one)"
            )
    if "the server" in processes:
        with temporary_settings(
            {PREFECT_API_URL: url} | ({PREFECT_API_AUTH_STRING: secret} if secret else {})
        ):
            close_lost_runs()
    processes["the worker"] = watched.start(prefect(["worker", "start", "--pool", POOL]))
    _say(f"Serving the deployments of prefect.yaml at {url.removesuffix('/api')}; Ctrl-C ends it")
    try:
        while not watched.lost:
            time.sleep(0.5)
            _check(processes)
        raise DecantError("the process that ends all others was ended by somebody, and so they are too")
    except DecantError:  # a run whose worker is gone would go on
        watched.stop(clean=False)
        raise
    finally:  # before the server, so that it hears what became of the runs
        watched.end(processes["the worker"], grace=4)


def close_lost_runs() -> None:
    """Mark our runs as crashed that an earlier server left as running: this worker is the only one it has.

    Else they would keep their deployment's one slot for ever, and every new run would be cancelled.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
        WorkPoolFilter,
        WorkPoolFilterName,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    begun = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
    lost = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=begun)))
    with get_client(sync_client=True) as client:
        ours = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
        for run in client.read_flow_runs(flow_run_filter=lost, work_pool_filter=ours):
            _say(f"The run {run.name} of an earlier time was cut off")
            client.set_flow_run_state(run.id, Crashed(message="Its process was gone when the server started"))


def prefect(arguments: list[str]) -> list[str]:
    """Return the command line of `prefect …` with this Python."""
    return [sys.executable, "-m", "prefect", *arguments]


def require_free(port: int) -> None:
    """Raise a DecantError where something listens on the port."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            connection.bind(("127.0.0.1", port))
        except OSError:
            raise DecantError(
                f"Port {port} is taken: if that is a Prefect server, set PREFECT_API_URL=http://127.0.0.1:{port}/api;"
                " else take another with --port (make serve PORT=4300)"
            ) from None


def wait_for(url: str, processes: dict[str, subprocess.Popen[bytes]], patience: float = PATIENCE) -> None:
    """Wait until the server answers, at most so many seconds.

    Raises:
        DecantError: It ended, or did not answer in time.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return
        _check(processes)
        time.sleep(0.5)
    raise DecantError(
        f"No answer from {url} within {patience:.0f} s; is the address right, and the server up?"
    )


def _check(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    for name, process in processes.items():
        if (status := process.poll()) is not None:
            raise DecantError(f"{name} ended with exit code {status}; see its lines above")


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
