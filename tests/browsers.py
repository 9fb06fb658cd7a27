"""Chromium without a window, and a server of files for it; or a sentence on how to get what is missing."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.screenshot import BROWSERS, QUIET
from tests.imports import ROOT

NODE_MODULES = ROOT / "tests" / "browser" / "node_modules"


def executable() -> str:
    """Return where Chromium lies; where it lies nowhere, the test is skipped."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs Chromium: `apt-get install chromium` (Debian), or Google Chrome")
    return found


def module(name: str) -> Path:
    """Return the folder of a package of npm; where it is missing, the test is skipped."""
    if not (NODE_MODULES / name).is_dir():
        pytest.skip(f"needs {name}: `npm ci --prefix tests/browser`")
    return NODE_MODULES / name


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield a browser of Playwright's; its own download is never asked for."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: `make install`")
    path = executable()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Write no line for each request."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Yield the address at which this machine alone gets the files of a folder."""
    handler = functools.partial(_Silent, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
