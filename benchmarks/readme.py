"""Put the table of the default run and the table of reruns into README.md: python -m benchmarks.readme"""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import reruns

README, REPORT = Path("README.md"), Path("report/README.md")
BEGIN, END = "<!-- report: python -m benchmarks.readme -->", "<!-- /report -->"
RERUNS_BEGIN, RERUNS_END = "<!-- reruns: python -m benchmarks.readme -->", "<!-- /reruns -->"


def with_table(readme: str, report: str) -> str:
    """Return the readme with the report's table between the two marks.

    Raises:
        ValueError: The readme lacks the marks, or the report has no table.
    """
    table = re.search(r"(?:^\|.*\n)+", report, re.MULTILINE)
    if table is None:
        raise ValueError(f"{REPORT} has no table")
    return between(readme, BEGIN, table[0], END)


def between(readme: str, begin: str, text: str, end: str) -> str:
    """Return the readme with this text between two marks.

    Raises:
        ValueError: The readme lacks one of the marks.
    """
    if begin not in readme or end not in readme:
        raise ValueError(f"{README} needs the marks {begin} and {end}")
    before, after = readme.split(begin)[0], readme.split(end)[1]
    return f"{before}{begin}\n{text}{end}{after}"


if __name__ == "__main__":
    content = with_table(README.read_text(encoding="utf-8"), REPORT.read_text(encoding="utf-8"))
    content = between(content, RERUNS_BEGIN, reruns.table(Path()), RERUNS_END)
    README.write_text(content, encoding="utf-8")
