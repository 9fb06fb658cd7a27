"""What all tests share: examples, threads, who runs beside whom, and one Prefect server with its own home."""

import functools
import gc
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import settings

# Machines are shared and noisy: an example that takes long is no failure. `make test-slow` runs the same
# properties with --hypothesis-profile thorough.
settings.register_profile("quick", deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=100)
settings.load_profile("quick")

# Where somebody has forbidden it, each of some hundred processes would compile all of our code anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Before anything imports torch: on small matrices a second thread is waited for longer than it works. What is
# about threads sets their number itself, as stages do.
os.environ["OMP_NUM_THREADS"] = "1"

# Before anything imports Prefect: neither the user's profile nor the user's server.
_home = tempfile.TemporaryDirectory(prefix="decant-prefect-", ignore_cleanup_errors=True)
os.environ["PREFECT_HOME"] = _home.name
os.environ.pop("PREFECT_API_URL", None)

SERVED = ("test_compress.py", "test_scheduled.py", "test_cluster.py")
"""Files of tests that share Prefect's server, which takes long to start: one process runs all of them."""

LONGEST = ("test_pipeline.py", *SERVED)
"""They begin first: a process that took them last would be alone with them."""

APART = ("test_generality.py", "test_strangers.py")
"""Files of tests that take minutes in all and share nothing: whichever process is free takes the next one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have those that take longest first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage among what is collected, half a million objects that stay; afterwards seldom.

    It took a tenth of the time of exports, and a quarter of collecting.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000, 10, 10)
        gc.enable()


@pytest.hookimpl(optionalhook=True)  # pytest runs without pytest-xdist too
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Return the order in which processes take tests: file by file, as each sets up something of its own.

    `--dist loadfile` begins with the files of most tests, and `--dist loadgroup` of pytest-xdist 3.8 writes
    its groups where pytest 9 does not read them.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if Path(file).name in APART:
                return nodeid
            return "served" if Path(file).name in SERVED else file

    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_unconfigure() -> None:
    """Remove Prefect's home: processes of pytest-xdist end without finalizers."""
    _home.cleanup()


@pytest.fixture(scope="session", autouse=True)
def traced_graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have each network traced for ONNX once in all processes, where a test that was collected does so."""
    if "decant.export.trace" not in sys.modules:
        yield
        return
    from tests import traces

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "graphs"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        traces.look_up_once()
        traces.share(folder, patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def code_stays() -> Iterator[None]:
    """Have stages read our code once in a process, as nobody edits it meanwhile.

    It is a quarter of the time of small ones. What is about records of code asks for them itself.
    """
    if "tasks.pipeline.step" not in sys.modules:
        yield
        return
    from tasks.pipeline import step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "record", functools.cache(step.record))
        yield


@pytest.fixture(scope="session", autouse=True)
def warm_workers() -> None:
    """Have the workers of flows, where a test that was collected has some, fork from one that has DVC."""
    if "flows.pool" in sys.modules:
        import tests.warm_dvc  # noqa: F401


QUIET = ("CANCELLATION_CLEANUP", "FOREMAN", "LATE_RUNS", "PAUSE_EXPIRATIONS", "SCHEDULER", "TRIGGERS")
"""Services of Prefect's server that no test here needs, and which ask its database again and again."""


@pytest.fixture(scope="session")
def prefect_database(pytestconfig: pytest.Config) -> Path:
    """Return where an empty database is kept from session to session: making one takes ten seconds."""
    folder = pytestconfig.rootpath / ".pytest_cache" / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{metadata.version('prefect')}.db"


@pytest.fixture(scope="session")
def prefect_process(prefect_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of the API of a server that lasts as long as this process.

    Prefect's own harness would import the whole server into this process too: five seconds.
    """
    import flows  # noqa: F401  # its settings come before Prefect, in all its processes

    used = tmp_path_factory.mktemp("prefect") / "prefect.db"
    if prefect_database.exists():
        shutil.copy(prefect_database, used)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serving(port, f"sqlite+aiosqlite:///{used}") as address:
        if not prefect_database.exists():
            keep(used, prefect_database)
        yield address


@pytest.fixture(scope="module")
def prefect_server(prefect_process: str) -> Iterator[str]:
    """Yield the address of the server's API, which every thread of this process knows meanwhile.

    A thread that knew none would start a server of its own. Afterwards no connection is left: while there is
    one, its keepalive draws from Python's global generator every 20 seconds, in whichever test runs then.
    """
    from prefect.context import refresh_global_settings_context
    from prefect.events.worker import EventsWorker

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", prefect_process)
        refresh_global_settings_context()
        yield prefect_process
        EventsWorker.drain_all(at_exit=False)
    refresh_global_settings_context()


@contextmanager
def serving(port: int, database: str) -> Iterator[str]:
    """Yield the address of the API of a server of its own process."""
    from flows.serve import wait_for

    settings = {f"PREFECT_SERVER_SERVICES_{service}_ENABLED": "false" for service in QUIET} | {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",  # as one that a flow starts
        "PREFECT__SERVER_FINAL": "1",
    }
    app = ["--factory", "prefect.server.api.server:create_app", "--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-m", "uvicorn", *app, "--log-level", "error", "--lifespan", "on"]
    server = subprocess.Popen(command, env=os.environ | settings)
    try:
        address = f"http://127.0.0.1:{port}/api"
        wait_for(address, {"Prefect's server": server}, patience=120)
        yield address
    finally:
        server.terminate()
        server.wait()


def keep(database: Path, kept: Path) -> None:
    """Copy an SQLite database that is in use."""
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(f"{kept}.new")) as copy:
        source.backup(copy)
    Path(f"{kept}.new").replace(kept)
