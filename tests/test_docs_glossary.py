"""The glossary and the paths in the documents: what they name is there."""

import ast
import re
from itertools import product
from pathlib import Path

import pytest

from tests.imports import ROOT

PAGE = ROOT / "docs" / "glossary.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| word ")
]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{page.name}" for page in PAGE.parent.glob("*.md")),
]


def names_of(file: Path) -> set[str]:
    """Return what a file defines at its top level."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def expanded(path: str) -> list[str]:
    """Return the paths that a path with `{a,b}` in it stands for."""
    parts = [part.split(",") for part in re.split(r"[{}]", path)]
    return ["".join(chosen) for chosen in product(*parts)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_word_is_defined_where_the_glossary_says(row: list[str]) -> None:
    _, meaning, where = row
    files = re.findall(r"\]\(([^)]+)\)", where)
    assert meaning
    assert files
    assert [file for file in files if not (PAGE.parent / file).is_file()] == []
    for name in re.findall(r"`(\w+)` in", where):
        assert name in names_of(PAGE.parent / files[0]), f"{files[0]} defines no {name}"


def test_each_word_is_explained_once() -> None:
    words = [row[0] for row in ROWS]
    assert len(words) == len(set(words)) > 30


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_first_pages_lead_to_the_glossary(page: str) -> None:
    assert "(docs/glossary.md)" in (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", DOCUMENTS)
def test_paths_in_the_documents_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:decant|tasks|flows|tests|benchmarks)/[\w./{},-]*)(?:::\w+)?`", text)
    paths = [path for name in named for path in expanded(name)]
    assert [path for path in paths if not (ROOT / path).exists()] == []
