"""Files in folders by class, or with a table beside them: which there are, and what is known of each."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from decant.errors import DecantError
from decant.examples import Examples, Rows
from decant.inputs import Kind as InputKind
from decant.progress import progress_bar
from decant.sealed import one_line
from decant.targets import Classes
from tasks.prepare import parts, room
from tasks.prepare.asked import AnyAnswer, OfClasses, answers
from tasks.prepare.columns import Source, table_of
from tasks.prepare.of_files import Beside, FilesParams
from tasks.prepare.own_tables import Drawn, columns_of, divided, known_of, rows_of
from tasks.prepare.owned import NUMBERS
from tasks.prepare.splits import Split
from tasks.prepare.ways import SPLITS, ByColumn, ByFolder, ByShares, sorting

LISTED = 20
AHEAD = 64
"""Files that are read at a time, by as many threads as there are cores."""

FOLDER, CLASS = "the folder", "the class"
"""What the columns are called that folders say."""


@dataclass(frozen=True)
class Kind:
    """What the files hold.

    Attributes:
        one: What sentences call one of them.
        endings: Those of their names, in lower case.
        errors: What reading one raises that is none, or not a whole one.
        shape: One of them as an array.
        dtype: The array's type.
    """

    one: str
    endings: tuple[str, ...]
    errors: tuple[type[Exception], ...]
    shape: tuple[int, ...]
    dtype: type[np.generic]


class Listed(NamedTuple):
    """Files and what is known of them.

    Attributes:
        paths: Where each lies.
        source: A row for each.
        target: What is to be predicted, by the source's columns.
        split: Which goes where, by the source's columns.
    """

    paths: list[Path]
    source: Source
    target: AnyAnswer | None
    split: ByShares | ByColumn


def draw(params: FilesParams, seed: int, kind: Kind, read: Callable[[Path], NDArray[Any]]) -> Drawn:
    """Return the splits `train`, `validation` and `test` of files that a table names, the first two shuffled.

    Args:
        params: Where files and table lie, and what is to be predicted.
        seed: Non-negative; the same one gives the same splits.
        kind: What they hold.
        read: Returns one file as an array of the kind's shape and type.

    Raises:
        DecantError: There is no such folder or table; a file cannot be read; a class has no file, or none to
            train on; or a split would be empty.
    """
    assert params.table is not None
    files = by_table(params, params.table, kind)
    content, kept, notes = _content(files.paths, kind, read, params.bad == "fail")
    rows = rows_of(files.split, files.target, files.source, kept, seed)
    columns, told, words = columns_of(params.table, files.source, rows)
    inputs = Rows({params.input: torch.from_numpy(content)} | columns, kinds=_kinds(params, params.table))
    known = known_of(files.target, files.source, rows, kind.one)
    found, more = divided(inputs, known, rows, params.leak == "fail", f"{kind.one}s")
    return Drawn(found, [*notes, *told, *more], words)


def _kinds(params: FilesParams, table: Beside) -> dict[str, InputKind]:
    """Return what the inputs hold."""
    return {params.input: params.kind} | ({NUMBERS: "numbers"} if table.numbers else {})


@dataclass
class Files:
    """The files of a split, read when they are asked for; those that cannot be are left out.

    Attributes:
        kind: What they hold.
        read: Returns one of them as an array.
        paths: In the split's order.
        classes: Of each of them.
        labels: Of those that were read.
        sums: Of their content, SHA-256.
        broken: A line for each of the others.
    """

    kind: Kind
    read: Callable[[Path], NDArray[Any]]
    paths: Sequence[Path]
    classes: Sequence[int]
    labels: list[int] = field(default_factory=list)
    sums: bytearray = field(default_factory=bytearray)
    broken: list[str] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        """One of them."""
        return self.kind.shape

    def __len__(self) -> int:
        return len(self.paths)

    def parts(self, rows: int) -> Iterator[Split]:
        """Yield what they hold, in order, `rows` at a time; once, as it is noted what was read."""
        content, filled = self._room(rows), 0
        for found in self._whole():
            content[filled], filled = found, filled + 1
            if filled == rows:
                yield Split(content, np.array(self.labels[-filled:]))
                content, filled = self._room(rows), 0
        if filled:
            yield Split(content[:filled], np.array(self.labels[-filled:]))

    def _room(self, rows: int) -> NDArray[Any]:
        return np.empty((min(rows, len(self)), *self.shape), self.kind.dtype)

    def _whole(self) -> Iterator[NDArray[Any]]:
        found = _each(self.paths, self.kind, self.read)
        for label, each in zip(self.classes, found, strict=True):
            if isinstance(each, str):
                self.broken.append(each)
                continue
            self.labels.append(label)
            self.sums += sha256(each.tobytes()).digest()[: parts.DIGEST]
            yield each


@dataclass(frozen=True)
class Streamed:
    """The files of a split as rows of one input, with classes.

    Attributes:
        files: Them.
        name: What the input is called.
        kinds: What it holds, by that name.
        classes: The classes' names.
        target: What the labels are.
    """

    files: Files
    name: str
    kinds: Mapping[str, InputKind]
    classes: tuple[str, ...]
    target: Classes

    @property
    def form(self) -> Examples:
        """What the parts are like: of no row."""
        nothing = np.zeros((0, *self.files.shape), self.files.kind.dtype)
        return self._examples(Split(nothing, np.zeros(0, np.int64)))

    @property
    def width(self) -> int:
        """How many bytes the input of a row takes."""
        return math.prod(self.files.shape) * np.dtype(self.files.kind.dtype).itemsize

    def __len__(self) -> int:
        return len(self.files)

    def parts(self, rows: int) -> Iterator[Examples]:
        """Yield the rows in order, so many at a time; once."""
        return map(self._examples, self.files.parts(rows))

    def _examples(self, part: Split) -> Examples:
        images = Rows({self.name: torch.from_numpy(part.images)}, kinds=self.kinds)
        return Examples(images, torch.from_numpy(part.labels), self.classes, self.target)


@dataclass(frozen=True)
class Stream:
    """The three splits of files in folders by class, of which none has been read yet.

    Attributes:
        params: What they were drawn by.
        splits: By name, the first two shuffled.
    """

    params: FilesParams
    splits: dict[str, Files]

    @property
    def rows(self) -> dict[str, Streamed]:
        """The splits as rows of one input, for a network of one's own."""
        params, target = self.params, Classes(balanced=self.params.balanced)
        kinds = {params.input: params.kind}
        return {
            name: Streamed(files, params.input, kinds, params.names, target)
            for name, files in self.splits.items()
        }

    def check(self) -> list[str]:
        """Return what to tell of the files, once all were read.

        Raises:
            DecantError: One cannot be read, and that is an error; a split or a class has none left to learn
                from; or the same content is in two splits, and that is an error.
        """
        params, splits = self.params, self.splits
        one = splits["train"].kind.one
        broken = sorted(each for split in splits.values() for each in split.broken)
        told = _told(broken, sum(map(len, splits.values())), one, params.bad == "fail")
        if empty := [name for name, split in splits.items() if not split.labels]:
            raise DecantError(f"{params.folder}: no {one} of {', '.join(empty)} can be read; repair them")
        parts.check_learned(splits["train"].labels, params.names, params.folder, one)
        sums = {name: np.frombuffer(each.sums, f"S{parts.DIGEST}") for name, each in splits.items()}
        leak = parts.check_sums(sums, params.leak == "fail")
        shares = (
            parts.shares(name, len(splits[name].labels), splits[name].labels, params.names, f"{one}s")
            for name in SPLITS
        )
        return [*told, *filter(None, [leak]), *shares]


def stream(params: FilesParams, seed: int, kind: Kind, read: Callable[[Path], NDArray[Any]]) -> Stream:
    """Return the splits `train`, `validation` and `test` of files in folders by class, none of them read.

    Files that turn out not to be readable are left out of the split that they were drawn for.

    Args:
        params: Where the files lie.
        seed: Non-negative; the same one gives the same splits.
        kind: What they hold.
        read: Returns one file as an array of the kind's shape and type; called by several threads.

    Raises:
        DecantError: There is no such folder, fewer than two classes, or an empty one; or a split would be
            empty.
    """
    files = in_folders(params, kind)
    rows = rows_of(files.split, files.target, files.source, np.arange(len(files.paths)), seed)
    numbers = {name: number for number, name in enumerate(params.names)}
    labels = [numbers[str(word)] for word in files.source.words(CLASS)]
    return Stream(
        params,
        {
            name: Files(kind, read, [files.paths[row] for row in chosen], [labels[row] for row in chosen])
            for name, chosen in rows.items()
        },
    )


def in_folders(params: FilesParams, kind: Kind) -> Listed:
    """Return the files in order of their names; what is hidden, or none of the kind by its name, is left out.

    Raises:
        DecantError: There is no such folder, fewer than two classes, or one without files.
    """
    for place in params.places:
        if not place.is_dir():
            raise DecantError(
                f"No folder {place} here; put the {kind.one}s there, in a folder for each class"
            )
    names = params.names
    if len(names) < 2:
        raise DecantError(
            f"{params.folder} has {len(names)} class, expected two or more folders with {kind.one}s of one "
            "class each; there is nothing to tell apart"
        )
    found = [file for place in params.places for file in _in_place(params, place, names, kind)]
    if empty := parts.without((label for _, label, _ in found), names):
        rid = "take it out of `classes`" if params.classes else "take its folder away"
        raise DecantError(
            f"{params.folder}: no {kind.one}s ({', '.join(kind.endings)}) of {', '.join(empty)}; give the "
            f"class some, or {rid}"
        )
    columns = {FOLDER: [split for *_, split in found], CLASS: [names[label] for _, label, _ in found]}
    source = Source.of(Path(params.folder), table_of(columns, params.folder))
    split = ByColumn(column=FOLDER) if isinstance(params.split, ByFolder) else params.split
    target = OfClasses(column=CLASS, names=names, balanced=params.balanced)
    return Listed([path for path, *_ in found], source, target, split)


def _in_place(
    params: FilesParams, place: Path, names: Sequence[str], kind: Kind
) -> Iterator[tuple[Path, int, str]]:
    """Yield path, class and split of each file in the classes' folders."""
    split = place.name if isinstance(params.split, ByFolder) else ""
    strangers = {path.name for path in place.iterdir() if path.is_dir() and path.name[0] != "."} - {*names}
    if strangers:
        raise DecantError(
            f"{place} has the folder {min(strangers)}, which `classes` do not name; add it there"
        )
    for label, name in enumerate(names):
        for path in sorted((place / name).rglob("*")):
            hidden = any(part[0] == "." for part in path.relative_to(place / name).parts)
            if path.suffix.lower() in kind.endings and path.is_file() and not hidden:
                yield path, label, split


def by_table(params: FilesParams, table: Beside, kind: Kind) -> Listed:
    """Return the files that a table names, in its order.

    Raises:
        DecantError: The table cannot be read, a row names no file, or one outside the folder.
    """
    folder = Path(params.folder)
    if not folder.is_dir():
        raise DecantError(f"No folder {folder} here; put the {kind.one}s there that {table.file} names")
    wanted = (table.path, *table.numbers, *table.categories, *answers(params.target), *sorting(params.split))
    source, paths = Source(Path(table.file), wanted), list[Path]()
    for row, word in enumerate(source.words(table.path), start=1):
        if word is None:
            raise DecantError(f"{table.file}, row {row}: {table.path} is missing; leave such rows out")
        path = Path(word)
        if path.is_absolute() or ".." in path.parts:
            raise DecantError(
                f"{table.file}, row {row}: {table.path} is {word!r}, expected a path below {folder}"
            )
        paths.append(folder / path)
    assert not isinstance(params.split, ByFolder)
    return Listed(paths, source, params.target, params.split)


def _content(
    paths: Sequence[Path], kind: Kind, read: Callable[[Path], NDArray[Any]], fail: bool
) -> tuple[NDArray[Any], parts.Rows, list[str]]:
    """Return all files as one array [N, ...], which of them could be read [M], and what to tell of others."""
    content = room.empty((len(paths), *kind.shape), kind.dtype)
    content[:] = 0
    kept, broken = list[int](), list[str]()
    with progress_bar(None, f"{kind.one}s", f"{kind.one}s", total=len(paths)) as bar:
        for place, found in enumerate(_each(paths, kind, read)):
            if isinstance(found, str):
                broken.append(found)
            else:
                content[place] = found
                kept.append(place)
            bar.update()
    return content, np.array(kept, np.intp), _told(broken, len(paths), kind.one, fail)


def _each(
    paths: Sequence[Path], kind: Kind, read: Callable[[Path], NDArray[Any]]
) -> Iterator[NDArray[Any] | str]:
    """Yield each file as an array, in order; or a line that says why it cannot be read."""

    def one(path: Path) -> NDArray[Any] | str:
        try:
            return read(path)
        except kind.errors as error:
            return f"{path}: {one_line(error)}"

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(paths), AHEAD):
            yield from pool.map(one, paths[start : start + AHEAD])


def _told(broken: Sequence[str], count: int, one: str, fail: bool) -> list[str]:
    """Return a list of the files that cannot be read, in lines.

    Raises:
        DecantError: There are some, and they are an error, or there are no others.
    """
    if not broken:
        return []
    more = [f"and {len(broken) - LISTED:,} more"] if len(broken) > LISTED else []
    lines = [f"{len(broken):,} of {count:,} {one}s cannot be read:", *broken[:LISTED], *more]
    if fail or len(broken) == count:
        hint = "Repair them" if len(broken) == count else "Repair them, take them away, or say `bad: skip`"
        raise DecantError("\n  ".join(lines) + f"\n{hint}")
    return [f"{lines[0]} they are skipped", *(f"  {line}" for line in lines[1:])]
