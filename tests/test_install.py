"""What pip does not hold by itself: the lock fits pyproject.toml and every machine, Prefect imports."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCKED_EXTRAS = ("pipeline", "flows", "dask", "sound", "text", "dev")
REQUIREMENTS = [
    Requirement(line)
    for line in [*PROJECT["dependencies"], *(line for name in LOCKED_EXTRAS for line in EXTRAS[name])]
    if not line.startswith("decant[")
]


def load_script() -> ModuleType:
    """Return `.ci/lock.py`, which lies in no package."""
    spec = importlib.util.spec_from_file_location("lock", ROOT / ".ci" / "lock.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lock = load_script()


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


def test_the_lock_holds_what_each_machine_needs() -> None:
    """By the metadata of what is installed: markers may leave out here what another machine needs."""
    packages = {
        canonicalize_name(found.name): [Requirement(line) for line in found.requires or []]
        for found in importlib.metadata.distributions()
    }
    packages["decant"] = [*REQUIREMENTS]
    for machine in lock.MACHINES:
        names = {name for name in lock.needed(packages, machine) if not lock.CUDA.match(name)}
        assert sorted(names - set(locked())) == []


def test_the_lock_says_where_it_was_written() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert re.search(r"^# Resolved by CPython 3\.11 on \w+ \w+", text, re.MULTILINE)


def test_extras_build_on_one_another() -> None:
    """The lock resolves `decant[dev]` alone, so that must ask for all others that our own checks need."""
    reached, waiting = set(), ["dev"]
    while waiting:
        extra = waiting.pop()
        reached.add(extra)
        for line in EXTRAS[extra]:
            if (requirement := Requirement(line)).name == "decant":
                waiting += requirement.extras
    assert reached == set(LOCKED_EXTRAS) == set(EXTRAS) - {"transformers", "timm", "peers"}


PINS = {"torch": "2.13.0", "ruff": "0.17.6", "pyyaml": "6.0.3"}


@pytest.mark.parametrize(
    ("direct", "upgraded", "kept"),
    [
        ([], set(), ["torch==2.13.0", "ruff==0.17.6", "pyyaml==6.0.3"]),
        ([], {"PyYAML", "ruff"}, ["torch==2.13.0"]),
        ([], {"all"}, []),
        (["torch>=2.13", "ruff>=0.18", "new"], set(), ["torch==2.13.0", "pyyaml==6.0.3"]),
    ],
)
def test_versions_stay_unless_they_may_not(direct: list[str], upgraded: set[str], kept: list[str]) -> None:
    assert lock.constraints(PINS, [Requirement(line) for line in direct], upgraded) == kept


def item(name: str, version: str, *requires: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "version": version, "requires_dist": [*requires]}}


REPORT = {
    "install": [
        item("zeta", "1.0", 'greenlet>=1; platform_machine == "s390x"', 'left; extra == "unasked"'),
        item("decant", "0.2.0", "torch", 'Alpha[fast]>=2; extra == "dev"', 'torchao; extra == "peers"'),
        item("Alpha", "2.1", "zeta", 'apple<3; extra == "fast" and sys_platform == "darwin"'),
        item("torch", "2.13.0+cpu", 'nvidia-nccl; platform_system == "Linux"', 'pywin32; os_name == "nt"'),
        item("triton", "3.0"),
        item("nvidia-cublas", "13.0"),
    ]
}


def test_what_only_another_machine_needs_is_found() -> None:
    """Not what Windows needs, for which there is no Makefile; not what nobody asks for; no CUDA packages."""
    assert lock.missing_elsewhere(REPORT) == ["apple<3"]


def test_the_file_has_no_local_versions_and_no_cuda() -> None:
    text = lock.lock(REPORT)
    assert [line for line in text.splitlines() if line[0] != "#"] == [
        "Alpha==2.1",
        "torch==2.13.0",
        "zeta==1.0",
    ]
    assert lock.locked(text) == {"alpha": "2.1", "torch": "2.13.0", "zeta": "1.0"}
    assert text.endswith("zeta==1.0\n")


def test_resolving_goes_on_until_nothing_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def resolve(wanted: list[str], kept: list[str]) -> dict[str, Any]:
        asked.append([*wanted])
        assert kept == ["alpha==2.1"]
        return {"install": REPORT["install"] + [item("apple", "2.9") for _ in wanted[1:]]}

    (tmp_path / "requirements.lock").write_text("# old\nAlpha==2.1\n")
    (tmp_path / "pyproject.toml").write_text("[project]\ndependencies = []\noptional-dependencies = {}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lock, "resolve", resolve)
    lock.main(set())
    assert asked == [[".[dev]"], [".[dev]", "apple<3"]]
    assert lock.locked((tmp_path / "requirements.lock").read_text())["apple"] == "2.9"


def test_a_lock_that_cannot_be_resolved_ends_in_a_sentence() -> None:
    with pytest.raises(SystemExit, match="make lock UPGRADE="):
        lock.resolve([f"nowhere @ {(ROOT / 'nowhere').as_uri()}"], [])


@pytest.mark.slow
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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, built from a copy of the checkout so that nothing is left behind in it."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("decant", "tasks", "flows"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(built)!r})"  # as pip calls it
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, stdout=subprocess.DEVNULL)
    (path,) = built.iterdir()
    return path


def test_the_wheel_holds_the_whole_library_and_nothing_else(wheel: Path) -> None:
    packed = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    files = {path.relative_to(ROOT) for path in (ROOT / "decant").rglob("*") if path.is_file()}
    files = {path for path in files if path.suffix in (".py", ".pyi") or path.name == "py.typed"}
    assert {path for path in packed if not path.parts[0].endswith(".dist-info")} == files


def test_the_wheel_asks_for_the_library_alone(wheel: Path) -> None:
    """All else is in extras; whoever installs the wheel gets none of them."""
    name, version, *_ = wheel.stem.split("-")
    metadata = zipfile.ZipFile(wheel).read(f"{name}-{version}.dist-info/METADATA").decode()
    asked = [Requirement(line) for line in re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE)]
    plain = {line.name for line in asked if line.marker is None}
    assert plain == {Requirement(line).name for line in PROJECT["dependencies"]}
    assert not plain & {"dvc", "prefect", "PyYAML", "pyyaml", "pyarrow", "matplotlib", "scikit-learn", "rich"}
    assert "Requires-Python: >=3.11" in metadata


@pytest.mark.slow
def test_the_wheel_imports_without_the_pipelines_packages(wheel: Path, tmp_path: Path) -> None:
    """Every module of it, from the wheel, where what only the pipeline needs cannot be imported."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    foreign = ["tasks", "flows", "dvc", "prefect", "yaml", "pyarrow", "matplotlib", "sklearn", "rich", "dask"]
    code = (
        "import importlib, pkgutil, sys\n"
        f"sys.modules.update(dict.fromkeys({foreign}))\n"
        "import decant\n"
        f"assert decant.__file__.startswith({str(tmp_path)!r})\n"
        "names = [found.name for found in pkgutil.walk_packages(decant.__path__, 'decant.')]\n"
        "assert len(names) > 50\n"
        "for name in names: importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
