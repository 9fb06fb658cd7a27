"""Recipes from Python: the same keys as in a block of params.yaml, checked in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from decant.errors import DecantError
from decant.schema import Block, mistakes

B = TypeVar("B", bound=Block)


def recipe_of(schema: type[B], recipe: B | Mapping[str, Any]) -> B:
    """Return the recipe as its schema; a mapping needs neither `op` nor `from`.

    Raises:
        DecantError: An unknown key or kind, or a value out of range; one line for each mistake.
    """
    if not isinstance(recipe, Mapping):
        return recipe
    (op,) = schema.model_fields["op"].annotation.__args__  # type: ignore[union-attr]
    content = {"op": op, "from": "parent", **recipe}
    if wrong := mistakes(content, schema):
        raise DecantError(f"The recipe for {op} is not valid:\n" + "\n".join(f"  {line}" for line in wrong))
    return schema.model_validate(content)
