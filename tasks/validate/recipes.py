"""The schema of the whole params.yaml, and what must hold between its blocks."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt

from decant.clip.params import ClipParams
from decant.compression.selection import unskipped
from decant.distill.params import DistillParams
from decant.errors import DecantError
from decant.finetune.params import FinetuneParams
from decant.networks.architectures import WeightShapes
from decant.prune.params import PruneParams
from decant.prune.schedules import Rewind
from decant.prune.structures import Masked, split
from decant.quantize.params import QuantizeParams
from decant.schema import Name, Section, did_you_mean, mistakes
from tasks.benchmark.params import BenchmarkParams
from tasks.pipeline.params import refuse
from tasks.prepare.params import PrepareParams
from tasks.prepare.sources import SOURCES
from tasks.teacher.params import TeacherParams
from tasks.validate.gates import Gates

TEACHER = "teacher"

AnyBlock = Annotated[
    ClipParams | PruneParams | QuantizeParams | DistillParams | FinetuneParams, Field(discriminator="op")
]


class Threads(Section):
    """How many threads each operation splits its sums over; the last bits depend on it."""

    teacher: PositiveInt
    clip: PositiveInt
    prune: PositiveInt
    quantize: PositiveInt
    distill: PositiveInt
    finetune: PositiveInt
    evaluate: PositiveInt


class Recipes(Section):
    """All of params.yaml."""

    seed: NonNegativeInt
    threads: Threads
    data: PrepareParams
    teacher: TeacherParams
    models: dict[Name, AnyBlock] = Field(min_length=1)
    benchmark: BenchmarkParams
    gates: Gates = Gates()


def check(content: dict[str, Any]) -> Recipes:
    """Return the recipes, or say everything that is wrong with them and where.

    Raises:
        DecantError: An unknown key or kind, a value out of range, a `from` that names no model, a cycle, a
            layer to skip that there is not, quantizing twice, a structure that fits no layer, a training to
            go back to that there was not, a network too large for the images, a gate for a model that there
            is not.
    """
    refuse([*mistakes(content, Recipes), *_broken_lineages(content.get("models"))])
    recipes = Recipes.model_validate(content)
    refuse(_impossible(recipes))
    return recipes


def _impossible(recipes: Recipes) -> list[str]:
    """Return what would fail only when it is used, perhaps minutes later, behind the teacher."""
    networks, wrong = _weights_of_all(recipes)
    wrong += recipes.gates.strangers({TEACHER, *recipes.models})
    for name, block in recipes.models.items():
        line = _line_of(name, recipes)
        quantized = [other for other in line[1:] if _op(other, recipes) == "quantize"]
        if isinstance(block, QuantizeParams) and quantized and not block.skip:
            wrong.append(
                f"models.{name}.from: {quantized[0]} is quantized already; start from its ancestor, or name "
                f"the layers in skip that have levels"
            )
        if line[-1] in networks:
            try:
                chosen = unskipped(list(networks[line[-1]]), getattr(block, "skip", ()))
            except DecantError as error:
                wrong.append(f"models.{name}.skip: {error}")
            else:
                wrong += _unprunable(name, block, networks[line[-1]], chosen)
        if isinstance(block, PruneParams):
            wrong += _no_way_back(name, block, line[-1], recipes)
    return wrong


def _unprunable(name: str, block: Any, weights: WeightShapes, chosen: list[str]) -> list[str]:
    """Return that a structure fits no layer of the network, with the reason for each."""
    if not isinstance(block, PruneParams) or not isinstance(block.structure, Masked):
        return []
    fitting, refused = split(block.structure, {n: weights[n] for n in chosen})
    if fitting:
        return []
    reasons = "; ".join(f"{weight}: {reason}" for weight, reason in refused.items())
    return [f"models.{name}.structure: no layer can be pruned so: {reasons}"]


def _no_way_back(name: str, block: PruneParams, root: str, recipes: Recipes) -> list[str]:
    """Return what keeps a model from going back to how the teacher was trained, where it asks for that."""
    wrong, rewind = [], isinstance(block.schedule, Rewind)
    if (block.criterion.fresh or rewind) and root != TEACHER:
        place = "schedule: rewind goes" if rewind else f"criterion: {block.criterion.kind} goes"
        wrong.append(f"models.{name}.{place} back to the teacher's training, and {root} had another one")
    epochs = recipes.teacher.training.epochs
    if isinstance(block.schedule, Rewind) and block.schedule.epoch >= epochs:
        wrong.append(
            f"models.{name}.schedule.epoch: must be less than the teacher's {epochs} epochs, "
            f"got {block.schedule.epoch}"
        )
    return wrong


def _weights_of_all(recipes: Recipes) -> tuple[dict[str, WeightShapes], list[str]]:
    """Return the weights of each network that is trained from fresh ones, and why others cannot be built."""
    source = SOURCES[recipes.data.source]
    architectures = {f"{TEACHER}.architecture": recipes.teacher.architecture} | {
        f"models.{name}.student": block.student
        for name, block in recipes.models.items()
        if isinstance(block, DistillParams)
    }
    networks, wrong = {}, []
    for place, architecture in architectures.items():
        try:
            weights = architecture.weights(source.shape, len(source.classes))
        except DecantError as error:
            wrong.append(f"{place}: {error}")
        else:
            networks[place.removeprefix("models.").rpartition(".")[0]] = weights
    return networks, wrong


def _line_of(name: str, recipes: Recipes) -> list[str]:
    """Return the model and its ancestors up to the one that was trained from fresh weights."""
    line = [name]
    while _op(line[-1], recipes) not in (TEACHER, "distill"):
        line.append(recipes.models[line[-1]].from_)
    return line


def _op(name: str, recipes: Recipes) -> str:
    return TEACHER if name == TEACHER else recipes.models[name].op


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
