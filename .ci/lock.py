"""Write requirements.lock from pyproject.toml: python .ci/lock.py [package to upgrade … | all]

`make lock` runs it, in an environment of its own that holds pip and packaging. Versions stay as the lock file
has them, so the same pyproject.toml gives the same lock file on any day. A lock file fits every machine of
`MACHINES`, whichever of them wrote it.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK, PROJECT = Path("requirements.lock"), Path("pyproject.toml")
EVERYTHING = ".[dev]"
LINUX = {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux"}
MACHINES = [
    LINUX | {"platform_machine": "x86_64"},
    LINUX | {"platform_machine": "aarch64"},
    {"os_name": "posix", "sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
]
CUDA = re.compile("nvidia|cuda|triton")
"""What some builds of torch bring; each build names its exact versions itself."""

HEADER = """\
# Written by `make lock` from pyproject.toml; change that and run it again. Versions stay where they fit;
# `make lock UPGRADE=<package>` and `make lock UPGRADE=all` take newer ones.
# Resolved by {machine}, with what Linux (x86-64, aarch64) and macOS (arm64) need beyond it;
# without CUDA packages: each build of torch names its own."""

Versions = dict[str, str]
"""Versions by canonical name."""

Packages = dict[str, list[Requirement]]
"""What each package asks for, by its canonical name."""


def main(upgraded: set[str]) -> None:
    """Resolve, add what only other machines need until nothing is missing, and write the file."""
    kept = constraints(locked(LOCK.read_text(encoding="utf-8")), direct_requirements(), upgraded)
    wanted = [EVERYTHING]
    while missing := missing_elsewhere(report := resolve(wanted, kept)):
        wanted += missing
    LOCK.write_text(lock(report), encoding="utf-8")


def locked(text: str) -> Versions:
    """Return the versions that a lock file pins."""
    pins = (line.split("==") for line in text.splitlines() if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


def direct_requirements() -> list[Requirement]:
    """Return what pyproject.toml asks for, in all its extras."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(line) for group in groups for line in group]


def constraints(versions: Versions, direct: list[Requirement], upgraded: set[str]) -> list[str]:
    """Return the pins to keep: all but what is to be upgraded and what pyproject.toml excludes by now.

    Args:
        versions: What the lock file pins.
        direct: What pyproject.toml asks for.
        upgraded: Names of packages; `all` for every one.
    """
    freed = {canonicalize_name(name) for name in upgraded}
    freed |= {
        name
        for requirement in direct
        if (name := canonicalize_name(requirement.name)) in versions
        and not requirement.specifier.contains(versions[name], prereleases=True)
    }
    return [f"{name}=={pin}" for name, pin in versions.items() if name not in freed and "all" not in freed]


def resolve(wanted: list[str], kept: list[str]) -> dict[str, Any]:
    """Return pip's report of what it would install into an empty environment; it installs nothing."""
    with tempfile.TemporaryDirectory() as folder:
        pins, report = Path(folder, "constraints.txt"), Path(folder, "report.json")
        pins.write_text("\n".join(kept), encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
        if subprocess.run([*pip, "--report", report, "--constraint", pins, *wanted]).returncode:
            sys.exit(
                "error: pip found no set of versions; where a pin of requirements.lock stands in the way, "
                "free it by `make lock UPGRADE=<package>`, or all of them by `make lock UPGRADE=all`"
            )
        content: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        return content


def missing_elsewhere(report: dict[str, Any]) -> list[str]:
    """Return requirements of packages that are not in the report, since only another machine needs them."""
    packages: Packages = {
        canonicalize_name(item["metadata"]["name"]): [
            Requirement(line) for line in item["metadata"].get("requires_dist", [])
        ]
        for item in report["install"]
    }
    found = {name: line for machine in MACHINES for name, line in needed(packages, machine).items()}
    return [line for name, line in found.items() if name not in packages and not CUDA.match(name)]


def needed(packages: Packages, machine: dict[str, str]) -> dict[str, str]:
    """Return, by name, a requirement of each package that `decant[dev]` needs on a machine.

    Args:
        packages: What each package asks for; one that is missing counts as asking for nothing.
        machine: Environment markers in which the machine differs from this one.
    """
    here = {key: str(value) for key, value in default_environment().items()}
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [("decant", ""), ("decant", "dev")]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for requirement in packages.get(name, []):
            if requirement.marker is None or requirement.marker.evaluate(here | machine | {"extra": extra}):
                child = canonicalize_name(requirement.name)
                found[child] = f"{requirement.name}{requirement.specifier}"
                waiting += [(child, wanted) for wanted in ("", *requirement.extras)]
    return found


def lock(report: dict[str, Any]) -> str:
    """Return the lock file: a header and a pin for each package that is not of one machine alone.

    The local part of a version (torch 2.13.0+cpu) is left out: each machine gets the build that it offers.
    """
    pins = {item["metadata"]["name"]: item["metadata"]["version"].split("+")[0] for item in report["install"]}
    names = [name for name in pins if canonicalize_name(name) != "decant" and not CUDA.match(name)]
    lines = [f"{name}=={pins[name]}" for name in sorted(names, key=str.lower)]
    return "\n".join([header(), *lines, ""])


def header() -> str:
    """Return what the file says of itself."""
    python = f"{platform.python_implementation()} {'.'.join(platform.python_version_tuple()[:2])}"
    return HEADER.format(machine=f"{python} on {platform.system()} {platform.machine()}")


if __name__ == "__main__":
    main(set(sys.argv[1:]))
