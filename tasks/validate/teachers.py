"""Teachers that an ensemble names and cannot have: told before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from decant.distill.params import DistillParams
from decant.schema import did_you_mean
from tasks.validate.chains import TEACHER


def absent_teachers(models: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each ensemble that has one teacher alone, or one that its student does not wait for.

    dvc.yaml lets a model wait for the one in `from`, and so for all that this one descends from. It has no
    place for others, as DVC's templates know no lists of dependencies.

    Args:
        models: The blocks of params.yaml, by name; without cycles.
    """
    for name, block in models.items():
        if isinstance(block, DistillParams) and block.together is not None:
            yield from (f"models.{name}.ensemble{line}" for line in _wrong(block, models))


def _wrong(block: DistillParams, models: Mapping[str, Any]) -> Iterator[str]:
    ensemble, before = block.together, _descent(block.from_, models)
    assert ensemble is not None
    for each in ensemble.teachers:
        if each not in before:
            yield (
                f": from, {block.from_}, does not descend from {each!r}, so nothing would wait for it"
                f"{did_you_mean(each, before)}"
            )
    members = {block.from_, *ensemble.teachers}
    several = ensemble.seeds and any(
        models[each].seeds > 1 for each in members if each in models and each in before
    )
    if ensemble.seeds and not several:
        yield (".seeds: none of its teachers is made by several seeds; give one seeds: 2, or leave it out")
    elif len(members) == 1 and block.from_ == TEACHER:
        yield ": from is the teacher itself; start from a student of it, or leave it out"
    elif len(members) == 1 and not several:
        yield ": from is the only teacher that it names; name more, or leave it out"


def _descent(name: str, models: Mapping[str, Any]) -> list[str]:
    """Return a model and all that it descends from."""
    found = [name]
    while found[-1] in models:
        found.append(models[found[-1]].from_)
    return found
