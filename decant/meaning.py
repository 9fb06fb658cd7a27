"""What code does, apart from how it is written: no comments, layout, docstrings and sentences of errors."""

from __future__ import annotations

import ast
from hashlib import sha256
from typing import Any

WRITTEN = ("kind", "type_comment")
"""Fields of syntax that say how something is written."""


class Silent(ast.NodeTransformer):
    """Take out what nothing is computed from."""

    raising = False

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Leave out docstrings: written anew or taken away, they change nothing."""
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """Empty the sentences of an error."""
        return self._silenced(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Empty the sentences of a function that returns a message."""
        is_message = isinstance(node.returns, ast.Name) and node.returns.id == "Message"
        return self._silenced(node) if is_message else self.generic_visit(node)

    def _silenced(self, node: ast.AST) -> ast.AST:
        before, self.raising = self.raising, True
        self.generic_visit(node)
        self.raising = before
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        """Empty what an error is made of."""
        return ast.Constant("") if self.raising else self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """Empty what an error says."""
        return ast.Constant("") if self.raising and isinstance(node.value, str) else node


def lasting_sum(source: str) -> str:
    """Return the SHA-256 sum of what code with this text does, in any version of Python the same.

    `ast.dump` writes empty fields in one version and leaves them out in another; here they are left out.
    """
    return sha256(_spelled(Silent().visit(ast.parse(source))).encode()).hexdigest()


def _spelled(part: Any) -> str:
    if isinstance(part, list):
        return f"[{', '.join(map(_spelled, part))}]"
    if not isinstance(part, ast.AST):
        return repr(part)
    fields = (
        f"{name}={_spelled(value)}"
        for name, value in ast.iter_fields(part)
        if value is not None and value != [] and name not in WRITTEN
    )
    return f"{type(part).__name__}({', '.join(fields)})"
