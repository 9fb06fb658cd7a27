"""Throw-away clones of the repository as it stands, with a small data set, for tests and for `make smoke`."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.imports import ROOT
from tests.warm import DVC, Forked, kept

PYTHON = Path(sys.executable).parent
"""The folder whose `python` runs stages, where nobody names another."""


def clone(folder: Path) -> Path:
    """Return a clone in `folder` with the working tree's changes committed on top, sharing nothing."""
    run(["git", "clone", "--quiet", "--no-local", str(ROOT), str(folder)], folder.parent)
    listed = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], ROOT).split("\0")
    for name in filter(None, listed):
        if not (ROOT / name).exists():
            (folder / name).unlink(missing_ok=True)
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    commit(folder, "the working tree")
    return folder


def shrink(folder: Path, models: list[str] | None = None) -> None:
    """Make params.yaml small: the digits, two epochs a training; `models` of tests/recipes.yaml if named."""
    content = read_params(folder)
    if models is not None:
        recipes = yaml.safe_load((ROOT / "tests" / "recipes.yaml").read_text(encoding="utf-8"))
        content["models"] = {name: recipes[name] for name in models}
        content["teacher"]["architecture"] |= {"widths": [16, 32], "blocks": [0, 1]}
    content["data"] = {"source": "digits", "validation": 200}
    content["threads"] = dict.fromkeys(
        content["threads"], 1
    )  # so small a network gains nothing from a second
    gates = content.get("gates", {})
    gates["models"] = {
        k: v for k, v in gates.get("models", {}).items() if k in {*content["models"], "teacher"}
    }
    for block in (content["teacher"], *content["models"].values()):
        if "training" in block:
            block["training"] |= {"epochs": min(2, block["training"]["epochs"]), "batch_size": 32}
    content["benchmark"] |= {"rounds": 3}
    write_params(folder, content)
    # It speaks of other results, and DVC reads and writes the whole of it at each stage.
    (folder / "dvc.lock").unlink(missing_ok=True)


def read_params(folder: Path) -> dict[str, Any]:
    """Return the clone's params.yaml."""
    content: dict[str, Any] = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    return content


def write_params(folder: Path, content: dict[str, Any]) -> None:
    """Replace the clone's params.yaml."""
    (folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def sums(folder: Path) -> dict[str, str]:
    """Return the md5 of every output in the clone's dvc.lock."""
    lock = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    return {out["path"]: out["md5"] for entry in lock.values() for out in entry.get("outs", [])}


def sum_of_exports(table: Mapping[str, Any]) -> str:
    """Return the sum that DVC has for the folder onnx/, out of a table of measured times."""
    files = [{"md5": row["onnx_md5"], "relpath": f"{name}.onnx"} for name, row in table["models"].items()]
    listed = json.dumps(sorted(files, key=lambda file: file["relpath"]), sort_keys=True)
    return f"{hashlib.md5(listed.encode(), usedforsecurity=False).hexdigest()}.dir"


def commit(folder: Path, message: str) -> None:
    """Commit everything in the clone; nothing to commit is no error."""
    run(["git", "add", "--all"], folder)
    identity = ["-c", "user.name=Decant", "-c", "user.email=decant@example.org"]
    run(["git", *identity, "commit", "--quiet", "--allow-empty", "--no-verify", "-m", message], folder)


def dvc(folder: Path, *words: str, python: Path = PYTHON) -> str:
    """Return what `dvc …` prints in the clone, whose stages run with the `python` of that folder.

    Raises:
        RuntimeError: DVC failed; the message holds what it printed.
    """
    forked = Forked(kept(*DVC), ["dvc", *words], folder, isolated(python))
    printed, _ = forked.communicate()
    return checked(["dvc", *words], forked.wait(), printed)


def run(command: list[str], folder: Path, python: Path = PYTHON) -> str:
    """Return what a command prints, on either stream, in the environment of `isolated`.

    Raises:
        RuntimeError: It failed; the message holds what it printed.
    """
    done = subprocess.run(
        command, cwd=folder, env=isolated(python), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return checked(command, done.returncode, done.stdout)


def checked(command: list[str], status: int, printed: str) -> str:
    """Return what a command has printed.

    Raises:
        RuntimeError: It failed; the message holds what it printed.
    """
    if status:
        raise RuntimeError(f"{' '.join(command)} exited with {status}:\n{printed}")
    return printed


def isolated(python: Path = PYTHON) -> dict[str, str]:
    """Return the environment for a clone: that `python` first, nothing of the user's Git or DVC settings."""
    hidden = ("GIT_", "DVC_", "PYTHONPATH", "DECANT_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    return kept | {
        "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
    }
