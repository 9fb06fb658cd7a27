"""What pip does not hold by itself: the lock fits pyproject.toml, and Prefect's server imports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [
    Requirement(line)
    for line in PROJECT["dependencies"] + EXTRAS["dask"] + EXTRAS["dev"]
    if not line.startswith("decant[")
]


def locked() -> dict[str, Version]:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line[:1] != "#"]
    pairs = [line.split("==") for line in lines]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_the_lock_has_a_version_that_fits(requirement: Requirement) -> None:
    versions = locked()
    name = canonicalize_name(requirement.name)
    assert name in versions, "run `make lock`"
    assert requirement.specifier.contains(versions[name]), "run `make lock`"


def test_the_lock_is_for_every_machine() -> None:
    """No local version such as +cpu: another machine may offer another build of torch, or only PyPI's."""
    assert not [name for name, version in locked().items() if version.local]
    assert not [name for name in locked() if re.match("nvidia|cuda|triton", name)]


def test_prefects_server_imports(tmp_path: Path) -> None:
    """It does not with the newest FastAPI that Prefect 3.8.8 allows; hence the pin in pyproject.toml."""
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path), "DO_NOT_TRACK": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "import prefect.server.api.server"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
