"""Files in folders by class, or with a table beside them: which there are, and what is known of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from decant.errors import DecantError
from decant.examples import Rows
from decant.progress import progress_bar
from decant.sealed import one_line
from tasks.prepare import parts
from tasks.prepare.columns import Source, table_of
from tasks.prepare.own_tables import Drawn, columns_of, divided, rows_of, with_target
from tasks.prepare.params import AnyAnswer, Beside, ByColumn, ByFolder, ByShares, FilesParams, OfClasses

LISTED = 20
MOST_BYTES = 1 << 36
"""Of all files once they are read: they lie in memory together."""

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
    """Return the splits `train`, `validation` and `test`, the first two shuffled.

    Args:
        params: Where the files lie, and what is to be predicted.
        seed: Non-negative; the same one gives the same splits.
        kind: What they hold.
        read: Returns one file as an array of the kind's shape and type.

    Raises:
        DecantError: There is no such folder or table; a file cannot be read; a class has no file, or none to
            train on; or a split would be empty.
    """
    files = in_folders(params, kind) if params.table is None else by_table(params, params.table, kind)
    content, kept, notes = _content(files.paths, kind, read, params.bad == "fail")
    rows = rows_of(files.split, files.target, files.source, kept, seed)
    inputs, words = {params.input: torch.from_numpy(content)}, dict[str, list[str]]()
    if params.table is not None:
        columns, told, words = columns_of(params.table, files.source, rows)
        inputs, notes = inputs | columns, [*notes, *told]
    examples = with_target(files.target, files.source, Rows(inputs), rows, kind.one)
    found, told = divided(examples, rows, params.leak == "fail", f"{kind.one}s")
    return Drawn(found, [*notes, *told], words)


def in_folders(params: FilesParams, kind: Kind) -> Listed:
    """Return the files in order of their names; what is none of the kind by its name is left out.

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
        raise DecantError(
            f"{params.folder}: no {kind.one}s ({', '.join(kind.endings)}) of {', '.join(empty)}; give the "
            "class some, or take its folder away"
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
            if path.suffix.lower() in kind.endings and path.is_file():
                yield path, label, split


def by_table(params: FilesParams, table: Beside, kind: Kind) -> Listed:
    """Return the files that a table names, in its order.

    Raises:
        DecantError: The table cannot be read, a row names no file, or one outside the folder.
    """
    folder = Path(params.folder)
    if not folder.is_dir():
        raise DecantError(f"No folder {folder} here; put the {kind.one}s there that {table.file} names")
    source, paths = Source(Path(table.file)), list[Path]()
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
    size = len(paths) * math.prod(kind.shape) * np.dtype(kind.dtype).itemsize
    if size > MOST_BYTES:
        raise DecantError(
            f"{len(paths):,} {kind.one}s take {size:,} bytes, at most {MOST_BYTES:,}; make each of them less"
        )
    content = np.zeros((len(paths), *kind.shape), kind.dtype)
    kept, broken = list[int](), list[str]()
    with progress_bar(None, f"{kind.one}s", f"{kind.one}s", total=len(paths)) as bar:
        for place, path in enumerate(paths):
            try:
                content[place] = read(path)
                kept.append(place)
            except kind.errors as error:
                broken.append(f"{path}: {one_line(error)}")
            bar.update()
    return content, np.array(kept, np.intp), _told(broken, len(paths), kind.one, fail)


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
