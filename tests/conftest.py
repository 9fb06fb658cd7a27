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

TOGETHER = {
    "test_pipeline.py": "pipeline",
    "test_compress.py": "server",
    "test_scheduled.py": "server",
    "test_cluster.py": "server",
    "test_install.py": "wheel",
}
"""Files of tests that share something which takes long to set up; one process runs all of them."""


@pytest.hookimpl(optionalhook=True)  # pytest runs without pytest-xdist too
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Return the order in which processes take tests: one by one, but for those that belong together.

    `--dist loadgroup` would do it, but pytest-xdist 3.8 writes its groups where pytest 9 does not read them.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0].rpartition("/")[2]
            return TOGETHER.get(file, nodeid)

    return Together(config, log)


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
