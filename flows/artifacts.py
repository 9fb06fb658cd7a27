"""What a run leaves in Prefect's UI: tables of stages and of metrics, what changed, the picture, the page."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from decant.errors import DecantError
from decant.sealed import one_line
from flows.compare import compare, markdown


def publish(folder: Path, stages: Iterable[dict[str, Any]], base: str) -> list[str]:
    """Create the artifacts of the current flow run; return what could not be shown, and why.

    Args:
        folder: The workspace, with metrics and report.
        stages: One row for each stage, in the order of the graph.
        base: The Git revision that metrics are compared with.
    """
    stages = list(stages)
    create_table_artifact(key="stages", table=stages, description="What became of each stage")
    missing = []
    if rows := metrics(folder):
        create_table_artifact(key="metrics", table=rows, description="Every model on the test split")
    else:
        missing.append("no metrics/*.json, so no table of metrics")
    try:
        create_markdown_artifact(key="changes", markdown=markdown(compare(folder, base)))
    except DecantError as error:
        missing.append(f"not compared with {base}: {error}")
    if (picture := folder / "report" / "tradeoff.png").is_file():
        create_markdown_artifact(key="tradeoff", markdown=embed(picture))
    else:
        missing.append("no report/tradeoff.png, so no picture")
    if any(stage["stage"] == "report" for stage in stages):
        missing += link_page(folder)
    return missing


def link_page(folder: Path) -> list[str]:
    """Write the page of all models and link it; return why it could not be, if so."""
    command = [sys.executable, "-m", "tasks.report.page"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        told = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return [f"no page of all models: {one_line(told[-1].removeprefix('error: '))}"]
    page = (folder / "report" / "index.html").resolve()
    create_link_artifact(key="report", link=page.as_uri(), description=f"All models on one page: {page}")
    return []


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return one row for each model with all its measures."""
    files = sorted((folder / "metrics").glob("*.json"))
    return [{"model": file.stem} | json.loads(file.read_text(encoding="utf-8")) for file in files]


def embed(picture: Path) -> str:
    """Return Markdown that holds the picture itself: the UI's server cannot read our files."""
    content = base64.b64encode(picture.read_bytes()).decode()
    return f"![Accuracy against size of every model](data:image/png;base64,{content})\n"
