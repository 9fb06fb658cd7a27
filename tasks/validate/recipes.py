"""The schema of the whole params.yaml, and what must hold between its blocks."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt

from tasks.benchmark.params import BenchmarkParams
from tasks.clip.params import ClipParams
from tasks.distill.params import DistillParams
from tasks.errors import DecantError
from tasks.finetune.params import FinetuneParams
from tasks.params import Name, Section, did_you_mean, validate
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
    recipes: Recipes = validate(content, Recipes)
    parents = {name: block.from_ for name, block in recipes.models.items()}
    known = {TEACHER, *parents}
    wrong = [
        f"models.{name}.from: there is no model {parent!r}{did_you_mean(parent, known)}"
        for name, parent in parents.items()
        if parent not in known
    ]
    if TEACHER in parents:
        wrong.append(f"models.{TEACHER}: the name belongs to the section {TEACHER}; choose another")
    wrong += [f"models.{path[0]}.from: a cycle, {' → '.join(path)}" for path in _cycles(parents)]
    if wrong:
        raise DecantError("params.yaml is not valid:\n" + "\n".join(f"  {line}" for line in wrong))
    return recipes


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
