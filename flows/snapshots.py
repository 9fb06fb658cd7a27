"""Params and metrics of one state of the project, the working tree or a Git revision: read and checked."""

from __future__ import annotations

import difflib
import json
import math
import re
import shlex
import subprocess
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

from decant.errors import DecantError, Message
from decant.sealed import one_line, read_bytes
from flows.noise import MOST_IMAGES, TEACHER, MetricValues, images
from tasks.pipeline.lockfile import MEND
from tasks.pipeline.metrics import EVIDENCE, OF_CLASSES, Metric, interval, set_of
from tasks.pipeline.params import MOST_LINES, sections

MOST = 1e30
"""A number beyond this is no measure of a model."""


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
            return read_bytes(self.folder / path).decode()
        except FileNotFoundError:
            raise CannotCompare(f"No {path} {self.label}") from None
        except (OSError, ValueError) as error:
            raise CannotCompare(f"Cannot read {path} {self.label}: {error}") from None

    def mapping(self, path: str) -> dict[str, Any]:
        """Return the sections of a YAML file, in which no key stands twice."""
        return _mapping(self.text(path), f"{path} {self.label}", shared=path != "params.yaml")

    def lock(self) -> dict[str, Any]:
        """Return dvc.lock, whose stages and their params are mappings; empty where nothing has run yet."""
        if not (self.folder / "dvc.lock").exists():
            return {}
        lock = self.mapping("dvc.lock")
        for place, content in _sections_of(lock):
            if not isinstance(content, dict):
                raise CannotCompare(
                    f"dvc.lock {self.label} is broken: expected a mapping in {place}, found "
                    f"{one_line(repr(content))}; `{MEND}` makes it whole"
                )
        return lock


def _sections_of(lock: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each part of dvc.lock that names stages, a stage, or files or values that it depends on."""
    stages = lock.get("stages", {})
    yield "stages", stages
    for name, entry in stages.items() if isinstance(stages, dict) else ():
        yield f"stages.{name}", entry
        params = entry.get("params", {}) if isinstance(entry, dict) else {}
        yield f"stages.{name}.params", params
        for file, values in params.items() if isinstance(params, dict) else ():
            yield f"stages.{name}.params.{file}", values


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
        if not found.returncode:
            return cls(folder, name, found.stdout.decode().strip())
        return cls(folder, name, _commit_of_experiment(folder, name) or _refuse(folder, name))

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
        """Return the sections of a YAML file; older ones may share values by anchors."""
        return _mapping(self.text(path), f"{path} {self.label}", shared=True)


def _commit_of_experiment(folder: Path, name: str) -> str | None:
    """Return the commit of a DVC experiment, the one on top of HEAD where several have the name.

    Raises:
        CannotCompare: Several have the name, and none or more than one is on top of HEAD.
    """
    commits = [(ref.split("/"), commit) for ref, commit in _refs(folder, "refs/exps")]
    found = [(base + rest, commit) for (_, _, base, rest, called), commit in commits if called == name]
    here = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD").stdout.decode().strip()
    if len(found) > 1:
        listed = ", ".join(f"{commit[:12]} (on {base[:7]})" for base, commit in found)
        found = [(base, commit) for base, commit in found if base == here]
        if len(found) != 1:
            raise CannotCompare(
                f"Expected one experiment with the name {name!r}, found {listed}; say which by its hash"
            )
    return found[0][1] if found else None


def _refs(folder: Path, *where: str) -> list[tuple[str, str]]:
    """Return the full name and the commit of each ref; of DVC's, only those of experiments."""
    shown = _git(folder, "for-each-ref", "--format=%(refname) %(objectname)", *where).stdout.decode()
    refs = [(ref, commit) for ref, _, commit in (line.partition(" ") for line in shown.splitlines())]
    experiment = re.compile("refs/exps/[0-9a-f]{2}/[0-9a-f]{38,}/[^/]+")
    return [pair for pair in refs if not pair[0].startswith("refs/exps") or experiment.fullmatch(pair[0])]


def _refuse(folder: Path, name: str) -> NoReturn:
    """Raise a CannotCompare that says where a revision may be instead, and how it gets here."""
    refs = [ref for ref, _ in _refs(folder, "refs/heads", "refs/tags", "refs/remotes", "refs/exps")]
    if followed := [ref for ref in refs if ref.startswith("refs/remotes/") and _last(ref) == name]:
        advice = f"; did you mean {followed[0].removeprefix('refs/remotes/')!r}?"
    else:
        near = difflib.get_close_matches(name, {_last(ref) for ref in refs} - {"HEAD"}, n=1)
        advice = f"; did you mean {near[0]!r}?" if near else _fetch(folder, name)
    raise CannotCompare(f"There is no revision {name!r} in this repository, and no DVC experiment{advice}")


def _last(ref: str) -> str:
    """Return a ref's name without `refs/heads/` and the like, without the remote, or an experiment's name."""
    if ref.startswith("refs/exps/"):
        return ref.rpartition("/")[2]
    return ref.split("/", 3)[3] if ref.startswith("refs/remotes/") else ref.split("/", 2)[2]


def _fetch(folder: Path, name: str) -> Message:
    """Return which command would bring a revision that a shallow clone, or one of a single branch, lacks."""
    remotes = _git(folder, "remote").stdout.decode().split()
    if not remotes:
        return ""
    remote = "origin" if "origin" in remotes else remotes[0]
    branch, where = name.removeprefix(f"{remote}/"), f"refs/remotes/{remote}/"
    if _git(folder, "check-ref-format", f"refs/heads/{branch}").returncode or _is_hash(name):
        shallow = _git(folder, "rev-parse", "--is-shallow-repository").stdout.strip() == b"true"
        return (
            f"; `git fetch {'--unshallow ' * shallow}{remote} '+refs/heads/*:{where}*'` brings all that "
            f"{remote} has (in GitHub Actions: fetch-depth: 0)"
        )
    if branch != name:
        return f"; `git fetch {remote} {shlex.quote(f'{branch}:{where}{branch}')}` brings it"
    return (
        f"; `git fetch {remote} {shlex.quote(f'{name}:{name}')}` brings it where it is a branch of {remote}, "
        f"`git fetch {remote} tag {shlex.quote(name)}` where it is a tag (in GitHub Actions: fetch-depth: 0)"
    )


def _is_hash(name: str) -> bool:
    return re.fullmatch("[0-9a-f]{4,64}", name) is not None


def _mapping(text: str, name: str, shared: bool) -> dict[str, Any]:
    """Return the sections of a file."""
    try:
        return sections(text, name, shared=shared)
    except DecantError as error:
        raise CannotCompare(str(error)) from None


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
        """Return all numbers of each of these models; those of other stages where they lie beside them.

        Raises:
            CannotCompare: A file is broken or one in metrics/ is missing, a key is missing, a number is none.
        """
        wrong: list[str] = []
        rows: dict[str, MetricValues] = {}
        for model in models:
            try:
                path = f"metrics/{model}.json"
                row = self._row(path, self.state.text(path), _mistakes)
                chosen = set_of(row)
                found = {metric.key: row[metric.key] for metric in chosen.of(row)}
                for folder, sets in EVIDENCE.items():
                    found |= self._beside(f"{folder}/{model}.json", sets[chosen.target])
                rows[model] = found
            except CannotCompare as error:
                wrong.append(str(error))
        if wrong:
            more = [f"and {len(wrong) - MOST_LINES} more"] if len(wrong) > MOST_LINES else []
            raise CannotCompare(
                "\n  ".join(["Numbers are missing:", *wrong[:MOST_LINES], *more])
                + f"\nWhat writes them is `dvc repro`, run {self.label} and committed"
            )
        return rows

    def _row(self, path: str, text: str, mistakes: Callable[[Any], Iterable[str]]) -> dict[str, float]:
        """Return the numbers of one file, given its text.

        Raises:
            CannotCompare: It is broken, or has mistakes.
        """
        try:
            row = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise CannotCompare(f"{path} {self.label} is not valid JSON: {one_line(error)}") from None
        if found := [f"{path} {self.label}: {line}" for line in mistakes(row)]:
            raise CannotCompare("\n  ".join(found))
        numbers: dict[str, float] = row
        return numbers

    def _beside(self, path: str, metrics: Sequence[Metric]) -> dict[str, float]:
        """Return the numbers that another stage wrote of a model; none where there is no such file."""
        try:
            text = self.state.text(path)
        except CannotCompare:
            return {}
        row = self._row(path, text, partial(_mistakes_beside, metrics=metrics))
        return {metric.key: row[metric.key] for metric in metrics if metric.key in row}

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
    metrics = set_of(row).of(row)
    keys = [metric.key for metric in metrics]
    if missing := [key for key in keys if key not in row]:
        yield f"expected {len(keys)} metrics, found no {', '.join(missing)}"
    broken = [key for key in keys if key in row and not _is_number(row[key])]
    yield from (f"expected a finite number for {key}, found {one_line(repr(row[key]))}" for key in broken)
    if missing or broken:
        return
    ends = {key for metric in metrics for key in interval(metric.key)}
    for metric in metrics:
        if interval(metric.key)[0] in row:
            yield from _misplaced(row, metric)
        elif metric.key not in ends and not metric.least <= row[metric.key] <= metric.most:
            yield f"expected {metric.key} in [{metric.least:g}, {metric.most:g}], found {row[metric.key]}"


def _mistakes_beside(row: Any, metrics: Sequence[Metric]) -> Iterator[str]:
    """Yield what keeps the numbers of another stage from being compared."""
    if not isinstance(row, dict):
        yield f"expected a mapping of metrics to numbers, found {type(row).__name__}"
        return
    for metric in (each for each in metrics if each.always or each.key in row):
        value: Any = row.get(metric.key)
        if not _is_number(value) or not metric.least <= value <= metric.most:
            least = f"[{metric.least:g}, {metric.most:g}]"
            yield f"expected {metric.key} in {least}, found {one_line(repr(value))}"


def _misplaced(row: Mapping[str, Any], metric: Metric) -> Iterator[str]:
    """Yield in what an interval is none that evaluate writes."""
    keys = [low_key, key, high_key] = [interval(metric.key)[0], metric.key, interval(metric.key)[1]]
    low, middle, high = (row[each] for each in keys)
    least, most = f"{metric.least:g} <= ", f" <= {metric.most:g}" if metric.most < math.inf else ""
    accuracy = metric.key == OF_CLASSES.quality  # whose interval is never empty, and says how many images
    if not metric.least <= low <= middle <= high <= metric.most or (accuracy and low == high):
        yield f"expected {least}{low_key} <= {key} <= {high_key}{most}, found {low}, {middle}, {high}"
    elif accuracy and images(row)[0] > MOST_IMAGES:
        yield f"expected an interval of at most {MOST_IMAGES:,} images, found {low} to {high}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON in which no key stands twice; the library keeps the last one silently."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key stands twice")
    return content


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{place}.{key}" if place else str(key))
    else:
        yield place, value
