"""The stage `prepare`: read a source of images, write data/{train,validation,test}.parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from decant.seeds import derive_seed
from tasks.pipeline.params import read_section
from tasks.pipeline.stage import run
from tasks.prepare import splits, tables
from tasks.prepare.params import PrepareParams
from tasks.prepare.sources import SOURCES


def main() -> None:
    """Read the sections `data` and `seed`; write the three tables, or leave those there as they are."""
    params = read_section("data", PrepareParams)
    seed = read_section("seed", int)
    source = SOURCES[params.source]
    splits_drawn = splits.draw(source, params.validation, derive_seed(seed, "prepare"))
    drawn = {name: read_section(name, Any) for name in ("data", "seed")}
    tables.write(splits_drawn, Path("data"), source, drawn)


if __name__ == "__main__":
    run(main)
