"""The source `text`: lines of a file or a column of a table, as tokens and what masks them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from decant.errors import DecantError
from decant.examples import Examples, Rows
from decant.inputs import IDS, LENGTH, MASK, Inputs, TensorInput
from decant.targets import Tokens, next_tokens
from tasks.prepare import own_tables, readers
from tasks.prepare.asked import OfTokens, answers
from tasks.prepare.columns import Source
from tasks.prepare.owned import LINES
from tasks.prepare.params import TextParams
from tasks.prepare.tokens import Coded, Coder, encoded, read_tokenizer
from tasks.prepare.ways import sorting

COLUMN = "text"
"""What the column of a file of lines is called."""


BATCH = 1 << 10
"""Texts that become tokens together."""


class Drawn(NamedTuple):
    """What came out of texts.

    Attributes:
        splits: By name; `train` and `validation` are shuffled.
        sizes: Of texts whose next tokens are predicted, bytes of each, by split; None of others.
    """

    splits: Mapping[str, own_tables.Split]
    sizes: dict[str, Tensor] | None


def draw(params: TextParams, seed: int) -> tuple[Drawn, list[str]]:
    """Return the splits `train`, `validation` and `test` of texts, and lines to tell.

    Raises:
        DecantError: A file is missing or broken; a text is empty or no UTF-8, and none is to be skipped; or
            as of a table.
    """
    coder = Coder(read_tokenizer(Path(params.tokenizer)), params.length)
    column = params.column or COLUMN
    source = _source(Path(params.file), (column, *answers(params.target), *sorting(params.split)))
    wrong: dict[int, str] = {}
    coded = encoded(coder, _texts(source, column, wrong))
    least = 2 if isinstance(params.target, OfTokens) else 1
    for row in np.flatnonzero(coded.lengths < least).tolist():
        wrong.setdefault(row, f"has {coded.lengths[row]} tokens, expected {least} or more")
    notes = _bad(params, wrong, column, len(source))
    rows = _left(own_tables.rows_of(params.split, params.target, source, np.arange(len(source)), seed), wrong)
    notes.append(_lengths(coded, params, coder.vocabulary))
    known = _known(params, source, rows, coder.vocabulary)
    texts = Texts(coded, inputs_of(coded, coder.vocabulary, params.fixed))
    found, more = own_tables.divided(texts, known, rows, params.leak == "fail")
    sizes = None
    if isinstance(known.target, Tokens):
        sizes = {name: torch.from_numpy(coded.sizes[rows[name]]) for name in rows}
        found = {name: _with_next(each) for name, each in found.items()}
    return Drawn(found, sizes), [*notes, *more]


@dataclass(frozen=True)
class Texts:
    """Tokens and masks of all texts, which lie there without their padding.

    Attributes:
        coded: The tokens.
        inputs: What a network takes of them.
    """

    coded: Coded
    inputs: Inputs

    def __len__(self) -> int:
        return len(self.coded.lengths)

    def __getitem__(self, rows: slice | Tensor) -> Rows:
        """Return tokens and masks [M, L] of some texts."""
        places = np.arange(len(self))[rows] if isinstance(rows, slice) else rows.numpy()
        found = {IDS: self.coded.ids(places), MASK: self.coded.mask(places)}
        tensors = {name: torch.from_numpy(each) for name, each in found.items()}
        return Rows(tensors, self.inputs, dict.fromkeys(tensors, "text"))


def _source(path: Path, columns: Sequence[str]) -> Source:
    """Return the table, or a file's lines as one of a single column of bytes."""
    if path.suffix != LINES:
        return Source(path, columns, long=True)
    if not path.is_file():
        raise DecantError(f"No {path} here; put the file there, or name another")
    if path.stat().st_size > readers.SMALL:
        return Source.of(path, readers.lines(path, COLUMN))
    lines = [line.removesuffix(b"\r") for line in path.read_bytes().removesuffix(b"\n").split(b"\n")]
    return Source.of(path, pa.table({COLUMN: pa.array(lines, pa.binary())}))


def _texts(source: Source, column: str, wrong: dict[int, str]) -> Iterator[list[str]]:
    """Yield texts some at a time, empty where there is none; note what is wrong by row."""
    start = 0
    for values in source.raw(column, BATCH):
        texts, found = readable(values)
        wrong.update({start + row: what for row, what in found.items()})
        start += len(values)
        yield [text or "" for text in texts]


def readable(values: Sequence[bytes | None]) -> tuple[list[str | None], dict[int, str]]:
    """Return texts, None where there is none, and what is wrong by row.

    Args:
        values: Texts in UTF-8.
    """
    texts: list[str | None] = []
    wrong: dict[int, str] = {}
    for row, value in enumerate(values):
        text = None
        try:
            text = None if value is None else value.decode()
        except UnicodeDecodeError as error:
            wrong[row] = f"is no UTF-8: the byte {error.object[error.start]:#04x} at {error.start}"
        texts.append(text if text and text.strip() else None)
        if texts[-1] is None:
            wrong.setdefault(row, "is empty")
    return texts, wrong


def _bad(params: TextParams, wrong: Mapping[int, str], column: str, count: int) -> list[str]:
    """Return a line on texts that are left out.

    Raises:
        DecantError: There are some, and none is to be; or all are.
    """
    if not wrong:
        return []
    first = min(wrong)
    place = f"line {first + 1}:" if Path(params.file).suffix == LINES else f"row {first + 1}: {column}"
    more = f" ({len(wrong):,} such of {count:,})" if len(wrong) > 1 else ""
    told = f"{params.file}, {place} {wrong[first]}{more}"
    if params.bad == "fail" or len(wrong) == count:
        raise DecantError(f"{told}; repair it, or say `bad: skip` in data to leave such texts out")
    return [f"left out: {told}"]


def _left(rows: dict[str, NDArray[np.intp]], wrong: Mapping[int, str]) -> dict[str, NDArray[np.intp]]:
    """Return the rows of each split without those that are wrong."""
    left = {name: each[~np.isin(each, [*wrong])] for name, each in rows.items()}
    if empty := [name for name, each in left.items() if not len(each)]:
        raise DecantError(f"data.split: {empty[0]} has no text that can be read; give it others")
    return left


def inputs_of(coded: Coded, vocabulary: int, fixed: bool) -> Inputs:
    """Return what a network takes of tokens and masks [N, L]."""
    places = coded.places
    shape = {"shape": [places]} if fixed else {"shape": [LENGTH], "example": [places]}
    return {
        name: TensorInput.model_validate(
            {"kind": "text", "dtype": "int64", "at_least": 0, "below": below} | shape
        )
        for name, below in ((IDS, vocabulary), (MASK, 2))
    }


def _known(
    params: TextParams, source: Source, rows: Mapping[str, NDArray[np.intp]], vocabulary: int
) -> own_tables.Known:
    if isinstance(params.target, OfTokens):
        return own_tables.Known(target=Tokens(vocabulary=vocabulary))
    return own_tables.known_of(params.target, source, rows)


def _with_next(split: own_tables.Split) -> own_tables.Split:
    """Return texts in memory with the next tokens as labels; others get them when they are read."""
    if not isinstance(split, Examples):
        return split
    assert isinstance(split.images, Rows)
    return replace(split, labels=next_tokens(*(split.images.tensors[name][:] for name in (IDS, MASK))))


def _lengths(coded: Coded, params: TextParams, vocabulary: int) -> str:
    middle, full = int(np.median(coded.lengths)), int((coded.lengths == params.length).sum())
    return (
        f"{len(coded.lengths):,} texts of {middle:,} tokens in the middle, {full:,} of {params.length:,} or "
        f"more; {vocabulary:,} tokens in all"
    )
