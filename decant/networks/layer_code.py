"""Layers of Decant's that networks of one's own may have, and sums over what their code does.

No operation imports these files, so a change of one reruns nothing but what has a network with such a layer.
What else of Decant a network may be built of, as Resnet, every operation imports: their records have it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from decant.meaning import lasting_sum

PACKAGE = "decant"
LAYERS = ("networks/sound.py",)
"""Files of layers, below the package."""


def layer_sums(trees: Iterable[ast.Module]) -> dict[str, str]:
    """Return a sum over what each file of layers does whose layers some code names, by the file's path.

    Comments, docstrings and sentences of errors do not count: with other words a layer is the same.

    Args:
        trees: The code of a network. What imports nothing of Decant's, or none of its layers, gives none.
    """
    named = {word for tree in trees for word in _named(tree)}
    return {f"{PACKAGE}/{file}": _sum(file) for file in LAYERS if "*" in named or named & _names(file)}


def _named(tree: ast.Module) -> set[str]:
    """Return all words that may be names of Decant's; none where nothing of it is imported."""
    nodes = [*ast.walk(tree)]
    imported = {name for node in nodes for name in _imported(node)}
    if not any(name.split(".")[0] == PACKAGE for name in imported):
        return set()
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return attributes | {
        word for name in imported if name.split(".")[0] == PACKAGE for word in name.split(".")
    }


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def _names(file: str) -> frozenset[str]:
    """Return the names of a file's layers, and its own."""
    tree = ast.parse(_text(file))
    return frozenset({Path(file).stem, *(node.name for node in tree.body if isinstance(node, ast.ClassDef))})


def _sum(file: str) -> str:
    return lasting_sum(_text(file))


def _text(file: str) -> str:
    return (Path(__file__).resolve().parents[1] / file).read_text(encoding="utf-8")
