"""Rows that a benchmark keeps in its file one by one, and the page that is made of all that are there."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from decant.schema import did_you_mean


def parsed(
    parser: argparse.ArgumentParser,
    words: Sequence[str] | None,
    few: str = "few images",
    page: str = "the page",
) -> argparse.Namespace:
    """Return what a benchmark is asked for: its own options, and `--quick` or `--write`."""
    parser.add_argument("--quick", action="store_true", help=f"{few}, to see that it runs")
    parser.add_argument("--write", action="store_true", help=f"{page}, of all that is kept")
    chosen = parser.parse_args(words)
    if chosen.quick and chosen.write:
        parser.error("--quick measures nothing worth writing; leave out one of the two")
    return chosen


def named(known: Collection[str], about: str | None, words: Sequence[str] | None = None) -> list[str]:
    """Return the names that the command line lists, or all that are known where it lists none."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all, or of {', '.join(known)}")
    names: list[str] = parser.parse_args(words).names
    for name in names:
        if name not in known:
            parser.error(f"there is no {name!r}{did_you_mean(name, known)}")
    return names or [*known]


@contextmanager
def place_of(results: Path, quick: bool) -> Iterator[Path]:
    """Yield the file in which rows are kept: a throw-away one of this name where they mean nothing."""
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary) / results.name if quick else results
