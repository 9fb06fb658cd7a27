"""The stage `prepare`: read a source of examples, write data/{train,validation,test}.parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decant.examples import Examples
from decant.seeds import derive_seed
from decant.targets import Classes
from tasks.pipeline.params import read_section, validate
from tasks.pipeline.stage import run
from tasks.prepare import splits, tables
from tasks.prepare.of_files import FolderParams, SoundParams
from tasks.prepare.params import (
    ARRAYS,
    AnyData,
    DataParams,
    PrepareParams,
    PythonParams,
    TableParams,
    TextParams,
)
from tasks.prepare.sources import SOURCES

if TYPE_CHECKING:
    from tasks.prepare.own_tables import Drawn

DATA = Path("data")


def main() -> None:
    """Read the sections `data` and `seed`; write the three tables, or leave those there as they are."""
    seed = read_section("seed", int)
    drawn = {"data": read_section("data", Any), "seed": seed}
    params: AnyData = validate(drawn["data"], DataParams, "data")
    _write(params, derive_seed(seed, "prepare"), drawn)


def _write(params: AnyData, seed: int, drawn: Mapping[str, Any]) -> None:
    """Draw the splits of a source and write them.

    What reads it is imported where it is named alone: most of them import torch, or a library of their own.
    """
    if isinstance(params, PrepareParams) and params.source != ARRAYS:
        assert isinstance(params.validation, int)
        source = SOURCES[params.source]
        tables.write(splits.draw(source, params.validation, seed), DATA, source, drawn)
        return
    if isinstance(params, FolderParams) and params.table is None:
        _write_pictures(params, seed, drawn)
        return
    if isinstance(params, SoundParams) and params.table is None:
        _write_sounds(params, seed, drawn)
        return
    if isinstance(params, FolderParams) and params.plain:
        from tasks.prepare import own_pictures

        pictures = own_pictures.draw(params, seed)
        each = pictures.splits["train"]
        train = each if isinstance(each, Examples) else each.form
        origin = own_pictures.Origin(params.source, train.classes)
        tables.write(own_pictures.alone(pictures), DATA, origin, drawn, train.target)
        _tell(pictures.notes)
        return
    if isinstance(params, TextParams):
        from tasks.prepare import own_texts

        texts, notes = own_texts.draw(params, seed)
        tables.write_rows(texts.splits, DATA, drawn, params.source, sizes=texts.sizes)
        _tell(notes)
        return
    found, code = _drawn(params, seed)
    tables.write_rows(found.splits, DATA, drawn, params.source, found.words, code=code)
    _tell(found.notes)


def _write_pictures(params: FolderParams, seed: int, drawn: Mapping[str, Any]) -> None:
    """Write pictures in folders by class, each decoded when it is written."""
    from tasks.prepare import own_pictures

    pictures, notes = own_pictures.stream(params, seed), list[str]()
    origin, target = own_pictures.Origin(params.source, params.names), Classes(balanced=params.balanced)
    tables.write(pictures.splits, DATA, origin, drawn, target, lambda: notes.extend(pictures.check()))
    _tell(notes)


def _write_sounds(params: SoundParams, seed: int, drawn: Mapping[str, Any]) -> None:
    """Write sounds in folders by class, each read when it is written."""
    from tasks.prepare import own_sounds

    (sounds, reader), notes = own_sounds.stream(params, seed), list[str]()
    tables.write_rows(sounds.rows, DATA, drawn, params.source, check=lambda: notes.extend(sounds.check()))
    _tell([*reader.notes, *notes])


def _drawn(params: AnyData, seed: int) -> tuple[Drawn, str]:
    """Return rows of any tensors, and the sum of the code that made them."""
    if isinstance(params, TableParams):
        from tasks.prepare import own_tables

        return own_tables.draw(params, seed), ""
    if isinstance(params, FolderParams):
        from tasks.prepare import own_pictures

        return own_pictures.draw(params, seed), ""
    if isinstance(params, SoundParams):
        from tasks.prepare import own_sounds

        return own_sounds.draw(params, seed), ""
    if isinstance(params, PythonParams):
        from tasks.prepare import own_rows

        return own_rows.draw(params, seed)
    assert isinstance(params, PrepareParams)
    from tasks.prepare import arrays

    return arrays.draw(params, seed), ""


def _tell(notes: Sequence[str]) -> None:
    for line in notes:
        print(f"  {line}")


if __name__ == "__main__":
    run(main)
