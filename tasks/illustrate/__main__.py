"""Stage `illustrate`: python -m tasks.illustrate"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from decant.outputs import write_text
from tasks.illustrate.curves import curves_csv
from tasks.illustrate.picture import draw, save
from tasks.illustrate.reasons import TEACHER, read
from tasks.pipeline.params import read_section
from tasks.pipeline.stage import run

REPORT = Path("report")


def main() -> None:
    """Read what the stage `explain` wrote of every model; write the picture, and curves for `dvc plots`."""
    found = read([TEACHER, *sorted(read_section("models", dict[str, Any]))])
    write_text(REPORT / "explanations.csv", curves_csv(found))
    save(draw(found), REPORT / "explanations.png")


if __name__ == "__main__":
    run(main)
