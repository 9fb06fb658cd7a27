"""What our modules import, read from the files without running them."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
OPERATIONS = ("clip", "prune", "quantize", "distill", "finetune")


@cache
def file_of(module: str) -> Path | None:
    """Return the file of a module of ours, relative to the root; None for a library's."""
    base = Path(*module.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if (ROOT / path).is_file()), None)


@cache
def parsed(file: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


@cache
def nodes_of(file: Path) -> tuple[ast.AST, ...]:
    """Return all nodes of a file's syntax tree."""
    return tuple(ast.walk(parsed(file)))


@cache
def imported_by(file: Path) -> frozenset[str]:
    """Return the full names of the modules that a file imports anywhere, functions included."""
    names: set[str] = set()
    for node in nodes_of(file):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute"
            assert node.module is not None
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def modules_of(file: Path) -> Iterator[Path]:
    """Yield the files of ours that a file names in its imports; a package that only leads there is none."""
    found = {path for name in imported_by(file) if (path := file_of(name)) is not None}
    for path in found:
        inner = path.name == "__init__.py" and any(path.parent in other.parents for other in found - {path})
        if not inner and path != file:
            yield path


def closure(file: Path) -> set[Path]:
    """Return the file and every file of ours that running it reads, the packages' `__init__.py` included."""
    seen: set[Path] = set()
    waiting = [file]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        waiting += [parent / "__init__.py" for parent in current.parents if parent != Path()]
        waiting += [path for name in imported_by(current) if (path := file_of(name)) is not None]
    return seen
