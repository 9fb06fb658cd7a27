"""The source `text`: lines of a file or a column of a table, as tokens and what masks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from decant.errors import DecantError
from decant.examples import Examples, Rows
from decant.inputs import IDS, LENGTH, MASK, TensorInput
from decant.targets import Tokens, next_tokens
from tasks.prepare import own_tables
from tasks.prepare.columns import LONG_READERS, Source
from tasks.prepare.params import LINES, OfTokens, TextParams
from tasks.prepare.tokens import Coded, encoded, read_tokenizer

COLUMN = "text"
"""What the column of a file of lines is called."""


class Drawn(NamedTuple):
    """What came out of texts.

    Attributes:
        splits: By name; `train` and `validation` are shuffled.
        sizes: Of texts whose next tokens are predicted, bytes of each, by split; None of others.
    """

    splits: dict[str, Examples]
    sizes: dict[str, Tensor] | None


def draw(params: TextParams, seed: int) -> tuple[Drawn, list[str]]:
    """Return the splits `train`, `validation` and `test` of texts, and lines to tell.

    Raises:
        DecantError: A file is missing or broken; a text is empty or no UTF-8, and none is to be skipped; or
            as of a table.
    """
    tokenizer = read_tokenizer(Path(params.tokenizer))
    source = _source(Path(params.file))
    column = params.column or COLUMN
    texts, wrong = readable(source.raw(column))
    coded = encoded(tokenizer, [text or "" for text in texts], params.length)
    least = 2 if isinstance(params.target, OfTokens) else 1
    for row in np.flatnonzero(coded.lengths < least).tolist():
        wrong.setdefault(row, f"has {coded.lengths[row]} tokens, expected {least} or more")
    notes = _bad(params, wrong, column, len(source))
    rows = _left(own_tables.rows_of(params.split, params.target, source, np.arange(len(source)), seed), wrong)
    inputs = _rows(coded, params.fixed)
    notes.append(_lengths(coded, params))
    examples = _with_target(params, source, inputs, rows, coded.vocabulary)
    found, more = own_tables.divided(examples, rows, params.leak == "fail")
    sizes = None
    if isinstance(examples.target, Tokens):
        sizes = {name: torch.from_numpy(coded.sizes[rows[name]]) for name in rows}
    return Drawn(found, sizes), [*notes, *more]


def _source(path: Path) -> Source:
    """Return the table, or a file's lines as one of a single column of bytes."""
    if path.suffix != LINES:
        return Source(path, LONG_READERS)
    if not path.is_file():
        raise DecantError(f"No {path} here; put the file there, or name another")
    lines = [line.removesuffix(b"\r") for line in path.read_bytes().removesuffix(b"\n").split(b"\n")]
    return Source.of(path, pa.table({COLUMN: pa.array(lines, pa.binary())}))


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


def _rows(coded: Coded, fixed: bool) -> Rows:
    """Return tokens and masks [N, L], and what a network takes of them."""
    places = coded.ids.shape[1]
    shape = {"shape": [places]} if fixed else {"shape": [LENGTH], "example": [places]}
    inputs = {
        name: TensorInput.model_validate({"dtype": "int64", "at_least": 0, "below": below} | shape)
        for name, below in ((IDS, coded.vocabulary), (MASK, 2))
    }
    mask = np.arange(places) < coded.lengths[:, None]
    return Rows({IDS: torch.from_numpy(coded.ids), MASK: torch.from_numpy(mask.astype(np.int64))}, inputs)


def _with_target(
    params: TextParams,
    source: Source,
    rows: Rows,
    parts: Mapping[str, NDArray[np.intp]],
    vocabulary: int,
) -> Examples:
    if not isinstance(params.target, OfTokens):
        return own_tables.with_target(params.target, source, rows, parts)
    labels = next_tokens(rows.tensors[IDS][:], rows.tensors[MASK][:])
    return Examples(rows, labels, (), Tokens(vocabulary=vocabulary))


def _lengths(coded: Coded, params: TextParams) -> str:
    middle, full = int(np.median(coded.lengths)), int((coded.lengths == params.length).sum())
    return (
        f"{len(coded.lengths):,} texts of {middle:,} tokens in the middle, {full:,} of {params.length:,} or "
        f"more; {coded.vocabulary:,} tokens in all"
    )
