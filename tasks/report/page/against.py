"""What this branch changed: metrics and recipes here beside those of a Git revision."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from decant.errors import DecantError, Message
from decant.sealed import one_line, parsed
from tasks.pipeline.lineages import TEACHER
from tasks.pipeline.params import PARAMS, sections
from tasks.report.page.columns import Column, verdict
from tasks.report.page.evidence import is_number
from tasks.report.page.recipes import settings

FOLDERS = ("metrics", "stability", "explain")
"""Where a model's flat figures lie in Git."""


@dataclass(frozen=True)
class Change:
    """A number of a model that differs.

    Attributes:
        model: Its name.
        title: The number's, with the unit.
        there: As it is read in the revision.
        here: As it is read here.
        difference: Here less there.
        verdict: `better`, `worse`, `intervals overlap`, or empty where none can tell.
    """

    model: str
    title: str
    there: str
    here: str
    difference: str
    verdict: str


@dataclass(frozen=True)
class Against:
    """A comparison with a revision.

    Attributes:
        revision: As it was asked for.
        commit: The first twelve digits of its hash.
        changes: Numbers that differ, model by model.
        same: Models with the same numbers on both sides.
        new: Models that are only here.
        removed: Models that are only there.
        unmeasured: Models of both that have no metrics on one of the sides.
        settings: Settings that differ: place, there, here; `not set` where one side has none.
    """

    revision: str
    commit: str
    changes: tuple[Change, ...]
    same: tuple[str, ...]
    new: tuple[str, ...]
    removed: tuple[str, ...]
    unmeasured: tuple[str, ...]
    settings: tuple[tuple[str, str, str], ...]


def compare(
    revision: str,
    params: Mapping[str, Any],
    values: Mapping[str, Mapping[str, float]],
    columns: Sequence[Column],
) -> Against:
    """Return what differs between the numbers and recipes here and those that a revision has in Git.

    Args:
        revision: A branch, a tag or a commit.
        params: The content of params.yaml here.
        values: Every number of each model here, by name and key.
        columns: Which numbers are compared, and how they are read.

    Raises:
        DecantError: There is no Git, no such revision, or a file of it cannot be read.
    """
    commit = _commit(revision)
    if (text := _show(commit, PARAMS.name)) is None:
        raise DecantError(f"{revision} has no {PARAMS}; compare with a later revision")
    then = sections(text, f"{PARAMS} in {revision}")
    models = then.get("models")
    names = [TEACHER, *map(str, models if isinstance(models, Mapping) else ())]
    common = [name for name in names if name in values]
    old = {name: _figures(commit, revision, name) for name in common}
    measured = [name for name in common if old[name] and values[name]]
    changes = [change for name in measured for change in _changes(name, old[name], values[name], columns)]
    changed = {change.model for change in changes}
    return Against(
        revision=revision,
        commit=commit[:12],
        changes=tuple(changes),
        same=tuple(name for name in measured if name not in changed),
        new=tuple(name for name in values if name not in names),
        removed=tuple(name for name in names if name not in values),
        unmeasured=tuple(name for name in common if name not in measured),
        settings=tuple(_settings(then, params)),
    )


def _changes(
    name: str, there: Mapping[str, float], here: Mapping[str, float], columns: Sequence[Column]
) -> Iterator[Change]:
    for column in columns:
        if column.key not in there or column.key not in here or there[column.key] == here[column.key]:
            continue
        difference = here[column.key] - there[column.key]
        texts = column.text(there[column.key]), column.text(here[column.key])
        if texts[0] != texts[1]:  # what cannot be read cannot be told
            told = column.difference(difference)
            yield Change(name, column.title, *texts, told, verdict(column, here, there))


def _settings(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    old, new = dict(settings(there)), dict(settings(here))
    for place in {**old, **new}:
        if old.get(place) != new.get(place):
            yield place, old.get(place, "not set"), new.get(place, "not set")


def _figures(commit: str, revision: str, name: str) -> dict[str, float]:
    """Return all flat numbers that a revision has of a model."""
    found: dict[str, float] = {}
    for folder in FOLDERS:
        path = f"{folder}/{name}.json"
        if (text := _show(commit, path)) is None:
            continue
        try:
            content = parsed(text.encode())
        except ValueError as error:
            raise DecantError(f"{path} in {revision} is no JSON of numbers: {one_line(error)}") from None
        if not isinstance(content, dict):
            raise DecantError(f"{path} in {revision} holds no mapping of numbers")
        found |= {key: value for key, value in content.items() if is_number(value)}
    return found


def _commit(revision: str) -> str:
    found = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if found.returncode:
        raise DecantError(
            f"There is no revision {revision!r} here; expected a branch, a tag or a commit"
            f"{_why(found)}; `git branch --all` lists the branches"
        )
    return found.stdout.decode().strip()


def _show(commit: str, path: str) -> str | None:
    """Return a file of a commit; None where it has none of that name."""
    shown = _git("show", f"{commit}:./{path}")
    return None if shown.returncode else shown.stdout.decode("utf-8", "replace")


def _git(*words: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", *words], capture_output=True, check=False)
    except FileNotFoundError:
        raise DecantError("To compare with a revision, the command git has to be on PATH") from None


def _why(done: subprocess.CompletedProcess[bytes]) -> Message:
    said = one_line(done.stderr.decode(errors="replace").removeprefix("fatal: "))
    return f" ({said})" if said else ""
