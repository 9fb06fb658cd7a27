"""Params and metrics of one state of the project, the working tree or a Git revision: read and checked."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from decant.errors import DecantError
from decant.schema import did_you_mean
from flows.judgement import TEACHER, MetricValues
from tasks.pipeline.params import read_yaml
from tasks.validate.gates import BETTER_HIGHER, INTERVAL

KEYS = (*BETTER_HIGHER, *INTERVAL)


class CannotCompare(DecantError):
    """There is nothing to judge, or not all of it: no verdict may be read out of that."""


class State(Protocol):
    """Where files are read from."""

    @property
    def label(self) -> str:
        """What messages call it, such as `here` or `in main`."""

    def text(self, path: str) -> str:
        """Return a file's text; `path` is relative to the root of the project."""

    def mapping(self, path: str) -> dict[str, Any]:
        """Return the sections of a YAML file."""


@dataclass(frozen=True)
class WorkingTree:
    """The files as they lie in the folder, committed or not."""

    folder: Path
    label = "here"

    def text(self, path: str) -> str:
        """Return a file's text."""
        try:
            return (self.folder / path).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise CannotCompare(f"No {path} {self.label}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise CannotCompare(f"Cannot read {path} {self.label}: {error}") from None

    def mapping(self, path: str) -> dict[str, Any]:
        """Return the sections of a YAML file, in which no key stands twice."""
        try:
            return read_yaml(self.folder / path)
        except DecantError as error:
            raise CannotCompare(str(error)) from None

    def lock(self) -> dict[str, Any]:
        """Return dvc.lock; empty where nothing has run yet."""
        if not (self.folder / "dvc.lock").exists():
            return {}
        return _mapping(self.text("dvc.lock"), f"dvc.lock {self.label}")


@dataclass(frozen=True)
class Revision:
    """The files as they were committed, read out of Git's store: nothing is checked out.

    Attributes:
        folder: The root of the project; it may be a folder of the repository.
        name: What the user called the revision.
        commit: The hash that the name stood for when it was looked up.
    """

    folder: Path
    name: str
    commit: str

    @property
    def label(self) -> str:
        """`in main`."""
        return f"in {self.name}"

    @classmethod
    def find(cls, folder: Path, name: str) -> Revision:
        """Look the name up.

        Raises:
            CannotCompare: No Git, no repository, no such revision.
        """
        inside = _git(folder, "rev-parse", "--git-dir")
        if inside.returncode:
            raise CannotCompare(
                f"{folder.resolve()} is in no Git repository that can be read: {_why(inside)}"
            )
        found = _git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        if found.returncode:
            refs = _git(folder, "for-each-ref", "--format=%(refname:short)").stdout.decode().split()
            raise CannotCompare(
                f"There is no revision {name!r} in this repository{did_you_mean(name, refs)}; "
                "a clone that holds no others is completed by `git fetch --unshallow origin` (in GitHub "
                "Actions: fetch-depth: 0)"
            )
        return cls(folder, name, found.stdout.decode().strip())

    def text(self, path: str) -> str:
        """Return a file's text."""
        shown = _git(self.folder, "show", f"{self.commit}:./{path}")
        if shown.returncode:
            raise CannotCompare(f"No {path} {self.label} ({_why(shown)})")
        try:
            return shown.stdout.decode()
        except UnicodeDecodeError as error:
            raise CannotCompare(f"Cannot read {path} {self.label}: {error}") from None

    def mapping(self, path: str) -> dict[str, Any]:
        """Return the sections of a YAML file."""
        return _mapping(self.text(path), f"{path} {self.label}")


def _mapping(text: str, name: str) -> dict[str, Any]:
    """Return the sections of a file that a program wrote, or that was checked when its numbers were made."""
    try:
        content = yaml.load(text, yaml.CSafeLoader)
    except yaml.YAMLError as error:
        raise CannotCompare(f"{name} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise CannotCompare(f"{name} must hold named sections, found {type(content).__name__}")
    return content


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False)
    except FileNotFoundError:
        raise CannotCompare(f"Needs the command git on PATH and the folder {folder.resolve()}") from None


def _why(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return the last line that Git printed."""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("fatal: ") if lines else f"git exited with {done.returncode}"


@dataclass(frozen=True)
class Snapshot:
    """What is compared of one state.

    Attributes:
        state: Where it was read.
        params: The whole of params.yaml, of plain numbers, words, lists and mappings.
    """

    state: State
    params: dict[str, Any]

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.state.label

    @classmethod
    def of(cls, state: State) -> Snapshot:
        """Read params.yaml, and see that dvc.yaml can be read too.

        Raises:
            CannotCompare: One of them is missing or broken.
        """
        _check_stages(state.mapping("dvc.yaml"), state.label)
        params = state.mapping("params.yaml")
        if not isinstance(params.get("models"), dict):
            raise CannotCompare(
                f"params.yaml {state.label} has no section `models` with a block for each model"
            )
        try:
            json.dumps(params, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CannotCompare(
                f"params.yaml {state.label} holds what is no plain value: {error}; "
                "numbers must be finite, dates in quotes"
            ) from None
        return cls(state, params)

    @property
    def models(self) -> list[str]:
        """The teacher, and every model in the order of params.yaml."""
        return [TEACHER, *map(str, self.params["models"])]

    def rows(self, models: Collection[str]) -> dict[str, MetricValues]:
        """Return the thirteen numbers of each of these models.

        Raises:
            CannotCompare: A file is missing or broken, a key is missing, a number is none.
        """
        wrong: list[str] = []
        rows: dict[str, MetricValues] = {}
        for model in models:
            path = f"metrics/{model}.json"
            try:
                row = json.loads(self.state.text(path))
            except CannotCompare as error:
                wrong.append(str(error))
            except (ValueError, RecursionError) as error:
                wrong.append(f"{path} {self.label} is not valid JSON: {error}")
            else:
                mistakes = [f"{path} {self.label}: {line}" for line in _mistakes(row)]
                wrong += mistakes
                if not mistakes:
                    rows[model] = {key: row[key] for key in KEYS}
        if wrong:
            raise CannotCompare(
                "\n  ".join(["Numbers are missing:", *wrong])
                + f"\nWhat writes them is `dvc repro`, run {self.label} and committed"
            )
        return rows

    def settings(self) -> dict[str, Any]:
        """Return every value of params.yaml by its dotted place; a list is one value."""
        return dict(_leaves(self.params, ""))


def _check_stages(content: Mapping[str, Any], label: str) -> None:
    """A dvc.yaml without commands runs nothing, and then no number in it is new."""
    stages = content.get("stages")
    if not isinstance(stages, dict) or not stages:
        raise CannotCompare(f"dvc.yaml {label} is broken: it has no section `stages`")
    for name, stage in stages.items():
        body = stage.get("do", stage) if isinstance(stage, dict) else None
        if not isinstance(body, dict) or "cmd" not in body:
            raise CannotCompare(f"dvc.yaml {label} is broken: the stage {name!r} has no `cmd`")


def _mistakes(row: Any) -> Iterator[str]:
    """Yield what keeps a row from being compared."""
    if not isinstance(row, dict):
        yield f"expected a mapping of metrics to numbers, found {type(row).__name__}"
        return
    if missing := [key for key in KEYS if key not in row]:
        yield f"expected {len(KEYS)} metrics, found no {', '.join(missing)}"
    broken = [key for key in KEYS if key in row and not _is_number(row[key])]
    yield from (f"expected a finite number for {key}, found {row[key]!r}" for key in broken)
    if not missing and not broken:
        low, share, high = row["accuracy_low"], row["accuracy"], row["accuracy_high"]
        if not (0 <= low <= share <= high <= 1 and low < high):
            found = f"{low}, {share}, {high}"
            yield f"expected 0 <= accuracy_low <= accuracy <= accuracy_high <= 1, found {found}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{place}.{key}" if place else str(key))
    else:
        yield place, value
