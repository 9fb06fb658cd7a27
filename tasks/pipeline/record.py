"""The code that an operation consists of: every file of ours that it imports, and a sum over what it does."""

from __future__ import annotations

import ast
from functools import cache
from hashlib import sha256
from pathlib import Path

from decant.meaning import Silent

OURS = ("decant", "tasks")
ROOT = Path(__file__).resolve().parents[2]
"""The folder that the packages lie in, wherever a stage runs."""


def record(operation: str, root: Path = Path()) -> str:
    """Return a line for each file that `python -m tasks.<operation>` imports: its sum and its path."""
    files = sorted(closure(Path("tasks", operation, "__main__.py"), root))
    return "".join(f"{meaning(root / file)}  {file.as_posix()}\n" for file in files)


def closure(file: Path, root: Path = Path()) -> set[Path]:
    """Return the file and every file of ours that running it reads, the packages' `__init__.py` included."""
    seen: set[Path] = set()
    waiting = [file]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += [parent / "__init__.py" for parent in current.parents if parent != Path()]
            waiting += [found for name in imported(root / current) if (found := _file(name, root))]
    return seen


@cache
def imported(path: Path) -> frozenset[str]:
    """Return the full names of all that a file imports anywhere, functions included."""
    names: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


@cache
def meaning(path: Path) -> str:
    """Return a sum over what a file does: without comments, layout, docstrings and sentences of errors."""
    return meaning_of(path.read_text(encoding="utf-8"))


def meaning_of(source: str) -> str:
    """Return the sum of a file with this text."""
    return sha256(ast.dump(Silent().visit(ast.parse(source))).encode()).hexdigest()[:16]


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _file(module: str, root: Path) -> Path | None:
    """Return the file of a module of ours, relative to the root; None for a library's."""
    base = Path(*module.split("."))
    if base.parts[0] not in OURS:
        return None
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if (root / p).is_file()), None)
