"""One Prefect server for the whole session, with a home of its own."""

import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Machines are shared and noisy: an example that takes long is no failure.
settings.register_profile("decant", deadline=None)
settings.load_profile("decant")

# Before anything imports torch: on small matrices a second thread is waited for longer than it works. What is
# about threads sets their number itself, as stages do.
os.environ["OMP_NUM_THREADS"] = "1"

# Before anything imports Prefect: neither the user's profile nor the user's server.
_home = tempfile.TemporaryDirectory(prefix="decant-prefect-")
os.environ["PREFECT_HOME"] = _home.name
os.environ.pop("PREFECT_API_URL", None)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """Yield the address of the server's API."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    import flows  # noqa: F401  its settings come before Prefect

    with prefect_test_harness(server_startup_timeout=120):
        yield str(PREFECT_API_URL.value())
