"""The schema of the whole params.yaml, and what must hold between its blocks."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt

from tasks.benchmark.params import BenchmarkParams
from tasks.clip.params import ClipParams
from tasks.distill.params import DistillParams
from tasks.errors import DecantError
from tasks.finetune.params import FinetuneParams
from tasks.params import PARAMS, Name, Section, did_you_mean, mistakes, validate
from tasks.prepare.params import PrepareParams
from tasks.prune.params import PruneParams
from tasks.quantize.params import QuantizeParams
from tasks.teacher.params import TeacherParams

TEACHER = "teacher"

AnyBlock = Annotated[
    ClipParams | PruneParams | QuantizeParams | DistillParams | FinetuneParams, Field(discriminator="op")
]


class Recipes(Section):
    """All of params.yaml."""

    seed: NonNegativeInt
    threads: PositiveInt
    data: PrepareParams
    teacher: TeacherParams
    models: dict[Name, AnyBlock] = Field(min_length=1)
    benchmark: BenchmarkParams


def check(content: dict[str, Any]) -> Recipes:
    """Return the recipes, or say everything that is wrong with them and where.

    Raises:
        DecantError: An unknown key or kind, a value out of range, a `from` that names no model, a cycle.
    """
    if wrong := [*mistakes(content, Recipes), *_broken_lineages(content.get("models"))]:
        raise DecantError(f"{PARAMS} is not valid:\n" + "\n".join(f"  {line}" for line in wrong))
    recipes: Recipes = validate(content, Recipes)
    return recipes


def _broken_lineages(models: Any) -> list[str]:
    """Return what is wrong between blocks, as far as the blocks can be read at all."""
    blocks = models if isinstance(models, dict) else {}
    parents = {
        name: block["from"]
        for name, block in blocks.items()
        if isinstance(name, str) and isinstance(block, dict) and isinstance(block.get("from"), str)
    }
    known = {TEACHER, *(name for name in blocks if isinstance(name, str))}
    wrong = [
        f"models.{name}.from: there is no model {parent!r}{did_you_mean(parent, known - {name})}"
        for name, parent in parents.items()
        if parent not in known
    ]
    if TEACHER in blocks:
        wrong.append(f"models.{TEACHER}: the name belongs to the section {TEACHER}; choose another")
    parents.pop(TEACHER, None)
    return [*wrong, *(f"models.{path[0]}.from: a cycle, {' → '.join(path)}" for path in _cycles(parents))]


def _cycles(parents: dict[str, str]) -> list[list[str]]:
    """Return each cycle once, as the path from its first model in order of names back to itself."""
    cycles = []
    for start in sorted(parents):
        path = [start]
        while (parent := parents.get(path[-1])) is not None and parent not in path:
            path.append(parent)
        if parent == start and start == min(path):
            cycles.append([*path, start])
    return cycles
