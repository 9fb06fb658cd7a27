"""What all tests share: examples, threads, who runs beside whom, and one Prefect server with its own home."""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import settings

# Machines are shared and noisy: an example that takes long is no failure. `make test-slow` runs the same
# properties with --hypothesis-profile thorough.
settings.register_profile("quick", deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=100)
settings.load_profile("quick")

# Before anything imports torch: on small matrices a second thread is waited for longer than it works. What is
# about threads sets their number itself, as stages do.
os.environ["OMP_NUM_THREADS"] = "1"

# Before anything imports Prefect: neither the user's profile nor the user's server.
_home = tempfile.TemporaryDirectory(prefix="decant-prefect-", ignore_cleanup_errors=True)
os.environ["PREFECT_HOME"] = _home.name
os.environ.pop("PREFECT_API_URL", None)

SHARED = ("prefect_server", "built", "wheel")
"""Fixtures that take so long that, where tests run in several processes, only one of them sets each up."""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist, which reads the marks in its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have all tests that use the same one of these fixtures run in the same process."""
    for item in items:
        used = [name for name in SHARED if name in getattr(item, "fixturenames", ())]
        if used:
            item.add_marker(pytest.mark.xdist_group(used[0]))


def pytest_unconfigure() -> None:
    """Remove Prefect's home: processes of pytest-xdist end without finalizers."""
    _home.cleanup()


@pytest.fixture(scope="session")
def prefect_database(pytestconfig: pytest.Config) -> Path:
    """Return where an empty database is kept from session to session: making one takes ten seconds."""
    folder = pytestconfig.rootpath / ".pytest_cache" / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{metadata.version('prefect')}.db"


@pytest.fixture(scope="session")
def prefect_server(prefect_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of the server's API."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing import utilities

    import flows  # noqa: F401  its settings come before Prefect

    folder = tmp_path_factory.mktemp("prefect")
    used = folder / "prefect-test.db"  # the harness names it so
    if prefect_database.exists():
        shutil.copy(prefect_database, used)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utilities, "mkdtemp", lambda: str(folder))
        with utilities.prefect_test_harness(server_startup_timeout=120):
            if not prefect_database.exists():
                keep(used, prefect_database)
            yield str(PREFECT_API_URL.value())


def keep(database: Path, kept: Path) -> None:
    """Copy an SQLite database that is in use."""
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(f"{kept}.new")) as copy:
        source.backup(copy)
    Path(f"{kept}.new").replace(kept)
