"""The stage `prepare`: read a source of images, write data/{train,validation,test}.parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from decant.seeds import derive_seed
from decant.targets import Classes
from tasks.pipeline.params import read_section, validate
from tasks.pipeline.stage import run
from tasks.prepare import splits, tables
from tasks.prepare.params import ARRAYS, AnyData, DataParams, FolderParams, TableParams
from tasks.prepare.sources import SOURCES

DATA = Path("data")


def main() -> None:
    """Read the sections `data` and `seed`; write the three tables, or leave those there as they are."""
    seed = read_section("seed", int)
    drawn = {"data": read_section("data", Any), "seed": seed}
    params: AnyData = validate(drawn["data"], DataParams, "data")
    _write(params, derive_seed(seed, "prepare"), drawn)


def _write(params: AnyData, seed: int, drawn: Mapping[str, Any]) -> None:
    """Draw the splits of a source and write them; what reads it is imported where it is named alone."""
    if isinstance(params, TableParams):
        from tasks.prepare import own_tables

        table = own_tables.draw(params, seed)
        tables.write_rows(table.splits, DATA, drawn, params.source, table.words)
        _tell(table.notes)
    elif isinstance(params, FolderParams):
        from tasks.prepare import own_pictures

        pictures = own_pictures.draw(params, seed)
        origin, target = own_pictures.Origin(params.source, params.names), Classes(balanced=params.balanced)
        notes = list[str]()
        tables.write(
            pictures.splits, DATA, origin, drawn, target, check=lambda: notes.extend(pictures.check())
        )
        _tell(notes)
    elif params.source == ARRAYS:
        from tasks.prepare import arrays  # which imports torch

        tables.write_rows(arrays.draw(params, seed), DATA, drawn)
    else:
        assert isinstance(params.validation, int)
        source = SOURCES[params.source]
        tables.write(splits.draw(source, params.validation, seed), DATA, source, drawn)


def _tell(notes: Sequence[str]) -> None:
    for line in notes:
        print(f"  {line}")


if __name__ == "__main__":
    run(main)
