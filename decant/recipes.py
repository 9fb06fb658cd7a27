"""Recipes from Python: the same keys as in a block of params.yaml, checked in the same way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from decant.errors import DecantError
from decant.schema import Block, CountOf, Section, mistakes

B = TypeVar("B", bound=Block)
S = TypeVar("S", bound=Section)


def recipe_of(schema: type[B], recipe: B | Mapping[str, Any], sizes: Mapping[str, int]) -> B:
    """Return the recipe as its schema; a mapping needs neither `op` nor `from`.

    Args:
        schema: The operation's.
        recipe: With the keys of params.yaml.
        sizes: How many images there are, by split.

    Raises:
        DecantError: An unknown key or kind, a value out of range, or more images than there are; one line
            for each mistake.
    """
    if isinstance(recipe, schema):
        return counted(recipe, sizes)
    if not isinstance(recipe, Mapping):
        raise DecantError(
            f"The recipe is {type(recipe).__name__}, expected a dict with the keys of params.yaml, or "
            f"{schema.__name__}"
        )
    (op,) = schema.model_fields["op"].annotation.__args__  # type: ignore[union-attr]
    content = {"op": op, "from": "parent", **recipe}
    if wrong := mistakes(content, schema):
        raise DecantError(f"The recipe for {op} is not valid:\n" + "\n".join(f"  {line}" for line in wrong))
    if content.get("seeds", 1) != 1:
        raise DecantError(
            f"The recipe for {op} has seeds: {content['seeds']}, and a call makes one model; leave it out, "
            "and call once for each with run=Run(seed=...)"
        )
    return counted(schema.model_validate(content), sizes)


def counted(recipe: S, sizes: Mapping[str, int]) -> S:
    """Return the recipe with as many images in each place as are used there.

    A number that was left out is what there is, where its default is more.

    Raises:
        DecantError: A number that was given is more than there is; one line for each.
    """
    if wrong := list(excesses(recipe, sizes)):
        lines = "\n".join(f"  {line}" for line in wrong)
        raise DecantError(f"The recipe asks for more images than there are; ask for fewer:\n{lines}")
    return _limited(recipe, sizes)


def excesses(recipe: Section, sizes: Mapping[str, int], place: str = "") -> Iterator[str]:
    """Yield a line for each number of images that was given and is more than there is.

    Args:
        recipe: Any part of params.yaml.
        sizes: How many images there are, by split; a split that is not named is not known and not compared.
        place: Where the recipe stands, to begin the lines with, such as `models.small.`.
    """
    for name, value in _fields(recipe):
        split, given = _split(recipe, name), name in recipe.model_fields_set
        if isinstance(value, Section):
            yield from excesses(value, sizes, f"{place}{name}.")
        elif given and split in sizes and value > sizes[split]:
            yield f"{place}{name}: {value:,} {split} images are asked for, and there are {sizes[split]:,}"


def _limited(recipe: S, sizes: Mapping[str, int]) -> S:
    """Return the recipe with defaults that are no more than there is."""
    changes: dict[str, Any] = {}
    for name, value in _fields(recipe):
        if isinstance(value, Section):
            changes[name] = _limited(value, sizes)
        elif split := _split(recipe, name):
            changes[name] = min(value, max(sizes[split], 1))
    return recipe.model_copy(update={n: v for n, v in changes.items() if v != getattr(recipe, n)})


def _fields(recipe: Section) -> list[tuple[str, Any]]:
    return [(name, getattr(recipe, name)) for name in type(recipe).model_fields]


def _split(recipe: Section, name: str) -> str:
    """Return the split whose images a field counts; empty where it counts none."""
    marks = (mark for mark in type(recipe).model_fields[name].metadata if isinstance(mark, CountOf))
    return next((mark.split for mark in marks), "")
