"""The stage `prepare`: read a source of images, write data/{train,validation,test}.parquet."""

from pathlib import Path

from tasks.params import derive_seed, read_section
from tasks.prepare import splits, tables
from tasks.prepare.params import PrepareParams
from tasks.prepare.sources import SOURCES
from tasks.stages import run


def main() -> None:
    """Read the sections `data` and `seed`; write the three tables, or leave those there as they are."""
    params = read_section("data", PrepareParams)
    seed = read_section("seed", int)
    source = SOURCES[params.source]
    drawn = splits.draw(source, params.validation, derive_seed(seed, "prepare"))
    tables.write(drawn, Path("data"), source)


if __name__ == "__main__":
    run(main)
