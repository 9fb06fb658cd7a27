"""Stage `illustrate`: python -m tasks.illustrate"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from decant.outputs import write_text
from tasks.illustrate import reasons, stable
from tasks.illustrate.curves import corruptions_csv, deletion_csv, reliability_csv
from tasks.illustrate.picture import draw, save
from tasks.pipeline.params import read_section
from tasks.pipeline.stage import run

REPORT = Path("report")


def main() -> None:
    """Read what `explain` and `stability` wrote of every model; write the picture, and curves."""
    names = [reasons.TEACHER, *sorted(read_section("models", dict[str, Any]))]
    explained, measured = reasons.read(names), stable.read(names)
    write_text(REPORT / "explanations.csv", deletion_csv(explained))
    write_text(REPORT / "corruptions.csv", corruptions_csv(measured))
    write_text(REPORT / "reliability.csv", reliability_csv(measured))
    save(draw(explained), REPORT / "explanations.png")


if __name__ == "__main__":
    run(main)
