"""Stage `report`: python -m tasks.report"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from decant.outputs import write_json, write_text
from tasks.pipeline.params import read_section
from tasks.pipeline.stage import run
from tasks.report.pictures import draw, save
from tasks.report.rows import TEACHER, pareto_front, read_curves, read_rows
from tasks.report.tables import curves_csv, readme, tradeoff

REPORT = Path("report")


def main() -> None:
    """Read every model's metrics, lineage and curve; write the table, the picture and data for plots."""
    names = [TEACHER, *sorted(read_section("models", dict[str, Any]))]
    rows = read_rows(names)
    columns = rows[0].measured.curve
    front = pareto_front(rows)
    write_text(REPORT / "README.md", readme(rows, front))
    write_json(REPORT / "tradeoff.json", tradeoff(rows, front))
    write_text(REPORT / "curves.csv", curves_csv(read_curves(names, columns), columns))
    figure = draw(rows, front)
    save(figure, REPORT / "tradeoff.svg")
    save(figure, REPORT / "tradeoff.png")


if __name__ == "__main__":
    run(main)
