"""Put the table of the default run into README.md: python -m benchmarks.readme"""

from __future__ import annotations

import re
from pathlib import Path

README, REPORT = Path("README.md"), Path("report/README.md")
BEGIN, END = "<!-- report: python -m benchmarks.readme -->", "<!-- /report -->"


def with_table(readme: str, report: str) -> str:
    """Return the readme with the report's table between the two marks.

    Raises:
        ValueError: The readme lacks the marks, or the report has no table.
    """
    table = re.search(r"(?:^\|.*\n)+", report, re.MULTILINE)
    if table is None or BEGIN not in readme or END not in readme:
        raise ValueError(f"{README} needs the marks {BEGIN} and {END}, and {REPORT} a table")
    before, after = readme.split(BEGIN)[0], readme.split(END)[1]
    return f"{before}{BEGIN}\n{table[0]}{END}{after}"


if __name__ == "__main__":
    text = with_table(README.read_text(encoding="utf-8"), REPORT.read_text(encoding="utf-8"))
    README.write_text(text, encoding="utf-8")
