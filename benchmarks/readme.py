"""Put the table of the default run and the table of reruns into README.md: python -m benchmarks.readme"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks import reruns

README, REPORT = Path("README.md"), Path("report/README.md")
BEGIN, END = "<!-- report: python -m benchmarks.readme -->", "<!-- /report -->"
RERUNS_BEGIN, RERUNS_END = "<!-- reruns: python -m benchmarks.readme -->", "<!-- /reruns -->"


COLUMNS = ("model", "accuracy %", "change", "agreement %", "size, KB", "MMACs")
"""The columns that decide; report/README.md has all of them."""


def with_table(readme: str, report: str) -> str:
    """Return the readme with the columns that decide of the report's table between the two marks.

    Raises:
        ValueError: The readme lacks the marks, or the report has no table, or one without these columns.
    """
    table = re.search(r"(?:^\|.*\n)+", report, re.MULTILINE)
    if table is None:
        raise ValueError(f"{REPORT} has no table")
    return between(readme, BEGIN, of_columns(table[0], COLUMNS), END)


def of_columns(table: str, titles: Sequence[str]) -> str:
    """Return some columns of a table in Markdown, in their order.

    Raises:
        ValueError: It lacks one of them.
    """
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines()]
    if missing := [title for title in titles if title not in rows[0]]:
        raise ValueError(f"{REPORT}'s table has no column {', '.join(missing)}")
    chosen = [rows[0].index(title) for title in titles]
    return "".join(f"{line([row[index] for index in chosen])}\n" for row in rows)


def line(cells: Sequence[str]) -> str:
    """Return a row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def between(readme: str, begin: str, text: str, end: str) -> str:
    """Return the readme with this text between two marks.

    Raises:
        ValueError: The readme lacks one of the marks.
    """
    if begin not in readme or end not in readme:
        raise ValueError(f"{README} needs the marks {begin} and {end}")
    before, after = readme.split(begin)[0], readme.split(end)[1]
    return f"{before}{begin}\n{text}{end}{after}"


def put(page: Path, begin: str, text: str, end: str) -> None:
    """Write a page anew, with this text between two of its marks."""
    page.write_text(between(page.read_text(encoding="utf-8"), begin, text, end), encoding="utf-8")


if __name__ == "__main__":
    content = with_table(README.read_text(encoding="utf-8"), REPORT.read_text(encoding="utf-8"))
    content = between(content, RERUNS_BEGIN, reruns.table(Path()), RERUNS_END)
    README.write_text(content, encoding="utf-8")
