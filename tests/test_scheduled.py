"""Scheduled runs work beside the user's tree and leave a branch; `make serve` serves them, and stops."""

import base64
import functools
import http.client
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

from decant.errors import DecantError
from flows import drift, scheduled, serve, worktrees
from flows.pool import Watched
from flows.watchdog import alive, members
from tasks.pipeline.metrics import OF_CLASSES
from tests.imports import ROOT
from tests.test_pool import until
from tests.toys import git, workspace, writes
from tests.warm_dvc import dvc

KEYS = OF_CLASSES.keys
ROW = dict.fromkeys(KEYS, 0.5) | {"size_bytes": 100, "parameters": 25, "nonzeros": 25, "macs": 10}


def project(folder: Path) -> Path:
    """Return a repository whose one stage writes the teacher's metrics, as `value` in params.yaml says."""
    stage = {
        "cmd": "grep accuracy params.yaml > /dev/null && cp source.json metrics/teacher.json",
        "deps": ["source.json"],
        "outs": [{"metrics/teacher.json": {"cache": False}}],
    }
    workspace(folder, {"measure": stage, "model": writes("model.out", "source.json")})
    (folder / "params.yaml").write_text("models: {}\ngates: {all: {accuracy: {drop: 0.01}}}\n")
    set_accuracy(folder, 0.5)
    (folder / "metrics").mkdir()
    (folder / "metrics" / "teacher.json").write_text((folder / "source.json").read_text())
    commit(folder)
    return folder


def set_accuracy(folder: Path, value: float) -> None:
    """Change what the stage will measure."""
    row = ROW | {"accuracy": value, "accuracy_low": value - 0.001, "accuracy_high": value + 0.001}
    (folder / "source.json").write_text(json.dumps(row))


def commit(folder: Path) -> None:
    """Commit everything in the folder."""
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=D", "-c", "user.email=d@example.org", "commit", "--quiet", "-m", "change")


WORDS = "Läufe über Nacht, 100 % (ß)"
"""The name of a folder that is no plain word."""


@pytest.mark.parametrize("locale", [None, pytest.param("C", marks=pytest.mark.slow)])
def test_a_clone_shares_the_cache_and_goes_away(
    locale: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if locale:
        monkeypatch.setenv("LC_ALL", locale)
    folder = project(tmp_path / WORDS)
    settings = f"['remote \"store\"']\n    url = {tmp_path / 'Speicher für alle'}\n[cache]\n    type = copy\n"
    (folder / ".dvc" / "config.local").write_text(settings, encoding="utf-8")
    dvc(folder, "repro", "-q")
    commit(folder)
    (folder / "data" / "raw").mkdir(parents=True)
    (folder / "data" / "raw" / "x.gz").write_text("x")
    with scheduled.clone(folder, "main", "some/branch") as clone:
        assert (clone / "model.out").read_text() == (
            folder / "model.out"
        ).read_text()  # out of the shared cache
        assert (clone / "data" / "raw" / "x.gz").exists()
        assert worktrees.dvc(clone, "config", "remote.store.url").strip().endswith("Speicher für alle")
        assert worktrees.dvc(clone, "config", "cache.type").strip() == "copy"
        assert git(clone, "rev-parse", "HEAD") == git(folder, "rev-parse", "main")
        assert "scheduled" not in git(folder, "status", "--porcelain")
    assert not clone.exists()
    assert len(git(folder, "worktree", "list").splitlines()) == 1


def test_a_clone_that_a_killed_run_has_left_is_replaced(tmp_path: Path) -> None:
    folder = project(tmp_path / "w")
    clone = scheduled.folder_of(folder, "nightly")
    worktrees.add(folder, clone, "main")
    (clone / "litter").write_text("x")
    with scheduled.clone(folder, "main", "nightly") as again:
        assert again == clone
        assert not (again / "litter").exists()


@pytest.mark.parametrize(
    ("base", "branch", "told"),
    [
        ("nowhere", "nightly", "nowhere"),
        ("main", "main", "The branch main is checked out: switch to another one"),
    ],
)
def test_what_cannot_begin_is_told(base: str, branch: str, told: str, tmp_path: Path) -> None:
    folder = project(tmp_path / "w")
    with pytest.raises(DecantError, match=told), scheduled.clone(folder, base, branch):
        pass
    assert len(git(folder, "worktree", "list").splitlines()) == 1


def test_a_result_is_one_commit_on_top_of_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # nobody is known as an author
    monkeypatch.setenv("EMAIL", "")
    folder = project(tmp_path / "w")
    with scheduled.clone(folder, "main", "nightly") as clone:
        assert scheduled.keep(clone, "nightly", "nothing") is None
        (clone / "new.txt").write_text("x")
        hash_ = scheduled.keep(clone, "nightly", "Rebuilt")
    assert git(folder, "rev-parse", "--short", "nightly").strip() == hash_
    assert git(folder, "rev-list", "--count", "main..nightly").strip() == "1"
    assert git(folder, "show", "--format=%s", "--name-only", "nightly").split() == ["Rebuilt", "new.txt"]
    assert not (folder / "new.txt").exists()


@pytest.mark.usefixtures("prefect_server")
def test_a_run_rebuilds_commits_and_gates(tmp_path: Path) -> None:
    folder = project(tmp_path / WORDS)
    set_accuracy(folder, 0.6)
    commit(folder)  # better, and main has not been rebuilt
    (folder / "unsaved.txt").write_text("the user's")
    before = git(folder, "status", "--porcelain")
    state = scheduled.scheduled(repository=folder, return_state=True)
    assert state.is_completed(), state.message
    assert git(folder, "status", "--porcelain") == before
    changed = git(folder, "show", "--format=", "--name-only", "nightly").split()
    assert changed == ["dvc.lock", "metrics/teacher.json"]
    assert "measure" in json.loads(dvc(folder, "status", "--json"))  # the user's tree is as stale as it was

    set_accuracy(folder, 0.4)
    commit(folder)
    state = scheduled.scheduled(repository=folder, return_state=True)
    assert state.is_failed()
    with pytest.raises(
        scheduled.GateFailedError, match=r"nightly is now \w+, and a gate failed against main"
    ):
        state.result()
    assert json.loads(git(folder, "show", "nightly:metrics/teacher.json"))["accuracy"] == 0.4
    assert scheduled.scheduled(repository=folder, gate=False, return_state=True).is_completed()
    # HEAD is the user's: the run's own commit is no base to compare it with.
    state = scheduled.scheduled(base="HEAD", branch="on-demand", repository=folder, return_state=True)
    assert state.is_failed()


def test_a_base_of_a_remote_is_fetched(tmp_path: Path) -> None:
    origin = project(tmp_path / "origin")
    git(tmp_path, "clone", "--quiet", str(origin), str(tmp_path / "w"))
    set_accuracy(origin, 0.7)
    commit(origin)
    newest = git(origin, "rev-parse", "--short", "HEAD").strip()
    assert scheduled.commit_of(tmp_path / "w", "main") != newest
    assert scheduled.commit_of(tmp_path / "w", "origin/main") == newest
    assert scheduled.commit_of(tmp_path / "w", newest) == newest
    with pytest.raises(DecantError, match="nowhere"):
        scheduled.commit_of(tmp_path / "w", "nowhere")


@pytest.mark.usefixtures("prefect_server")
def test_what_cannot_be_compared_fails_only_a_gate(tmp_path: Path) -> None:
    folder = project(tmp_path / "w")
    (folder / "params.yaml").write_text("models: {new: {}}\n")  # without metrics yet
    commit(folder)
    run = functools.partial(scheduled.scheduled, targets=["model"], repository=folder, return_state=True)
    assert run(gate=False).is_completed()
    with pytest.raises(DecantError, match=r"metrics/new\.json"):
        run(gate=True).result()


def deployments() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    return found


def test_deployments_name_parameters_that_the_flow_has() -> None:
    flows = {"flows/scheduled.py:scheduled": scheduled.scheduled, "flows/drift.py:drift": drift.drift}
    for deployment in deployments():
        assert set(deployment["parameters"]) <= set(
            inspect.signature(flows[deployment["entrypoint"]].fn).parameters
        )
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
        assert deployment["work_pool"]["name"] == serve.POOL
    (schedule,) = deployments()[0]["schedules"]
    assert schedule["timezone"]
    assert schedule["slug"]


def test_a_port_that_is_taken_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with socket.socket() as other, temporary_settings(restore_defaults={PREFECT_API_URL}):
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert serve.main(["--port", str(other.getsockname()[1])]) == 1
    signal.signal(signal.SIGINT, handlers[0])
    signal.signal(signal.SIGTERM, handlers[1])
    assert "is taken" in capsys.readouterr().err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def status(port: int, path: str, origin: str, method: str = "POST", secret: str = "", **more: str) -> int:
    """Return what the server answers to a page's request, whose body has no type."""
    headers = {"Origin": origin} | {name.replace("_", "-"): value for name, value in more.items()}
    if secret:
        headers["Authorization"] = f"Basic {base64.b64encode(secret.encode()).decode()}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, f"/api{path}", body=b"{}" if method == "POST" else None, headers=headers)
    return connection.getresponse().status


def its_own_pages_alone(port: int, secret: str) -> None:
    """Ask as a page from elsewhere, as one whose name was made to stand for this machine, and as the UI."""
    own, elsewhere, asked = f"http://localhost:{port}", "http://evil.example.org", "/flow_runs/filter"
    ask = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "content-type"}
    assert status(port, asked, elsewhere, "OPTIONS", **ask) == 400
    for origin in (own, f"http://127.0.0.1:{port}"):
        assert status(port, asked, origin, "OPTIONS", **ask) == 200
    assert status(port, asked, elsewhere) in (401, 403)
    assert status(port, asked, f"http://evil.example.org:{port}", Host=f"evil.example.org:{port}") in (
        401,
        403,
    )
    assert status(port, "/csrf-token?client=page", elsewhere, "GET") == 401
    assert status(port, asked, own, secret="decant:guessed-it") in (401, 403)
    assert status(port, asked, own, secret=secret) == 403  # a token is missing
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    named = {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}", "Origin": own}
    connection.request("GET", "/api/csrf-token?client=page", headers=named)
    token = json.load(connection.getresponse())["token"]
    given = {"Prefect_Csrf_Token": token, "Prefect_Csrf_Client": "page"}
    assert status(port, asked, own, secret=secret, **given) == 200


def its_flows_know_it(port: int, environment: dict[str, str]) -> None:
    """A flow that is started by hand against the server finds the password by itself."""
    code = (
        "import flows; from prefect.client.orchestration import get_client;"
        "print(len(get_client(sync_client=True).read_flows()))"
    )
    url = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    done = subprocess.run([sys.executable, "-c", code], env=environment | url, capture_output=True, text=True)
    assert done.stdout.strip() in ("2", "3"), done.stderr


def test_a_server_is_given_its_own_origins_tokens_and_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import get_current_settings

    settings = serve.guarded("http://127.0.0.1:4300/api", "decant:secret-enough")
    for name, value in ({"PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "*"} | settings).items():
        monkeypatch.setenv(name, value)
    server = type(get_current_settings())().server.api
    assert server.cors_allowed_origins == "http://127.0.0.1:4300,http://localhost:4300"
    assert server.csrf_protection_enabled
    assert server.auth_string is not None
    assert server.auth_string.get_secret_value() == "decant:secret-enough"
    assert "PREFECT_SERVER_API_AUTH_STRING" not in serve.guarded("http://127.0.0.1:4300/api")


def test_a_run_ends_where_its_worker_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = tmp_path / "noted"
    worker = f"setsid sleep 60 & echo $$ $! > {noted}.new; mv {noted}.new {noted}; wait"
    monkeypatch.setattr(serve, "prefect", lambda words: ["sh", "-c", worker if "start" in words else "true"])
    monkeypatch.setattr(serve, "wait_for", lambda *_: None)
    for name in ("PREFECT_API_URL", "DECANT_HOME"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/api")

    def kill_worker() -> None:
        until(noted.exists, 20)
        os.kill(int(noted.read_text().split()[0]), signal.SIGKILL)

    killer = threading.Thread(target=kill_worker)
    killer.start()
    settings = temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"})
    with (
        settings,
        Watched() as watched,
        pytest.raises(DecantError, match="the worker ended with exit code -9"),
    ):
        serve.serve(watched, port=9)
    killer.join()
    run = int(noted.read_text().split()[1])
    assert until(lambda: not alive(run), 5), "it has a session of its own"


@pytest.mark.slow
def test_serve_runs_what_is_due_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    folder = project(tmp_path / "w")
    set_accuracy(folder, 0.6)
    commit(folder)
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")} | {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PYTHONPATH": str(ROOT),
    }
    code = tmp_path / "code"  # another prefect.yaml than ours: due every minute, for the repository above
    code.mkdir()
    for name in ("flows", "tasks"):
        (code / name).symlink_to(ROOT / name)
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    content["deployments"][0]["schedules"][0]["cron"] = "* * * * *"
    content["deployments"][0]["parameters"]["repository"] = str(folder)
    (code / "prefect.yaml").write_text(yaml.safe_dump(content))
    log = (tmp_path / "serve.log").open("w+")
    served = subprocess.Popen(
        [sys.executable, "-m", "flows.serve", "--port", str(port)],
        cwd=code, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        done = until(lambda: "nightly" in git(folder, "branch", "--list", "nightly"), 240)
        assert done, (tmp_path / "serve.log").read_text()
        assert json.loads(git(folder, "show", "nightly:metrics/teacher.json"))["accuracy"] == 0.6
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ui-settings") as answer:
            shown = json.load(answer)
        assert shown["api_url"] == f"http://127.0.0.1:{port}/api"
        assert shown["auth"] == "BASIC"
        kept = tmp_path / "prefect" / "decant-password"
        assert kept.stat().st_mode & 0o777 == 0o600
        secret = kept.read_text().strip()
        assert (tmp_path / "serve.log").read_text().count(secret) == 1
        its_own_pages_alone(port, secret)
        its_flows_know_it(port, environment)
    finally:
        began = time.monotonic()
        served.send_signal(signal.SIGINT)
        assert served.wait(20) == 0
    assert time.monotonic() - began < 15
    assert members([served.pid]) == []
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), 1)
    assert "Stopped: no server, no worker and no run is left" in (tmp_path / "serve.log").read_text()
