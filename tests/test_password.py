"""The password of `make serve`: made once, readable by its owner alone, found by flows on this machine."""

import http.server
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from decant.errors import DecantError
from flows import password
from tests.clones import isolated
from tests.imports import ROOT
from tests.toys import workspace, writes


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder of Prefect's."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    return tmp_path / "prefect"


def test_it_is_made_once_and_kept(home: Path) -> None:
    made, new = password.make()
    assert new
    assert password.make() == (made, False)
    assert (home / "decant-password").stat().st_mode & 0o777 == 0o600
    assert list(home.iterdir()) == [home / "decant-password"]
    user, _, secret = made.partition(":")
    assert (user, len(secret)) == ("decant", 32)
    (home / "decant-password").unlink()
    assert password.make()[0] != made


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        ("decant:long-enough", 0o644, "others may read it"),
        ("decant:long-enough", 0o640, "others may read it"),
        ("", 0o600, "must hold one line"),
        ("decant:", 0o600, "must hold one line"),
        ("decant:short", 0o600, "must hold one line"),
        ("long-enough-without-a-user", 0o600, "must hold one line"),
        ("decant:two\nlines-of-it", 0o600, "must hold one line"),
        ("decant:umlaut-äöü", 0o600, "must hold one line"),
    ],
)
def test_a_file_that_does_not_do_is_told(text: str, mode: int, told: str, home: Path) -> None:
    home.mkdir()
    (home / "decant-password").write_text(text)
    (home / "decant-password").chmod(mode)
    with pytest.raises(DecantError, match=told):
        password.make()
    assert password.known("http://127.0.0.1:4200/api") is None


def test_a_password_of_one_s_own_is_taken(home: Path) -> None:
    home.mkdir()
    (home / "decant-password").touch(0o600)
    (home / "decant-password").write_text("me:correct-horse:battery\n")
    assert password.make() == ("me:correct-horse:battery", False)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "file" / "prefect"))
    with pytest.raises(DecantError, match="name another folder in PREFECT_HOME"):
        password.make()


@pytest.mark.parametrize(
    ("url", "given"),
    [
        ("http://127.0.0.1:4200/api", True),
        ("http://localhost:4300/api", True),
        ("http://server.example.org:4200/api", False),
        ("http://127.0.0.1.example.org/api", False),
        ("http://127.0.0.1@example.org/api", False),
        ("http://[broken", False),
        ("", False),
        (None, False),
    ],
)
def test_it_is_sent_to_servers_of_this_machine_alone(url: str | None, given: bool) -> None:
    made, _ = password.make()
    assert password.known(url) == (made if given else None)


def test_flows_take_it_unless_they_are_given_another() -> None:
    made, _ = password.make()
    code = "import os, flows; print(os.environ.get('PREFECT_API_AUTH_STRING'))"
    url = {"PREFECT_API_URL": "http://127.0.0.1:4200/api"}
    for environment, found in [(url, made), ({}, "None"), (url | {"PREFECT_API_AUTH_STRING": "a:b"}, "a:b")]:
        plain = {key: value for key, value in isolated().items() if not key.startswith("PREFECT_API")}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=plain | environment, capture_output=True, text=True
        )
        assert done.stdout.strip() == found, done.stderr


class Guarded(http.server.BaseHTTPRequestHandler):
    """Answers as a Prefect server does to who has not its password."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_a_flow_without_the_server_s_password_says_so(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "w", {"a": writes("a.out")})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/api"
        environment = isolated() | {"PREFECT_API_URL": url, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "flows.compress"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        server.shutdown()
    assert done.returncode == 1
    assert f"the Prefect server at {url} asks for a password" in done.stderr
    assert "Traceback" not in done.stderr
