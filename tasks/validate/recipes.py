"""The schema of the whole params.yaml, and what must hold between its blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from decant.clip.params import ClipParams
from decant.distill.params import DistillParams
from decant.distill.students import Proposed, propose
from decant.errors import DecantError
from decant.finetune.params import FinetuneParams
from decant.networks.architectures import FOREIGN, Lenet300100, Mlp, Resnet, Shape, check_size
from decant.prune.params import PruneParams
from decant.quantize.params import QuantizeParams
from decant.recipes import excesses
from decant.schema import Name, Section, did_you_mean, mistakes
from tasks.benchmark.params import BenchmarkParams
from tasks.pipeline.params import MOST_LINES, refuse
from tasks.prepare.params import AnyData, DataParams, FolderParams, PrepareParams
from tasks.prepare.sources import SOURCES, Source
from tasks.teacher.params import TeacherParams
from tasks.validate.chains import TEACHER, Known, impossible
from tasks.validate.gates import Gates
from tasks.validate.images import Data, untrainable
from tasks.validate.labels import unlabelled
from tasks.validate.layers import unknown_layers
from tasks.validate.networks import absent, unbuildable
from tasks.validate.teachers import absent_teachers

AnyBlock = Annotated[
    ClipParams | PruneParams | QuantizeParams | DistillParams | FinetuneParams, Field(discriminator="op")
]


ThreadCount = Annotated[int, Field(gt=0, le=1024)]


class Threads(Section):
    """How many threads each operation splits its sums over; the last bits depend on it."""

    teacher: ThreadCount
    clip: ThreadCount
    prune: ThreadCount
    quantize: ThreadCount
    distill: ThreadCount
    finetune: ThreadCount
    evaluate: ThreadCount


class Recipes(Section):
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]
    threads: Threads
    data: DataParams
    teacher: TeacherParams
    models: dict[Name, AnyBlock] = Field(min_length=1, max_length=10_000)
    benchmark: BenchmarkParams
    gates: Gates = Gates()


def check(content: dict[str, Any]) -> Recipes:
    """Return the recipes, or say everything that is wrong with them and where.

    Raises:
        DecantError: An unknown key or kind, a value out of range, a `from` that names no model, a cycle, a
            layer to skip or to compare that there is not, quantizing twice, a structure that fits no layer, a
            training to go back to that there was not, a network too large for the images, more images than
            there are, a gate for a model that there is not.
    """
    refuse([*mistakes(content, Recipes), *_broken_lineages(content.get("models"))])
    recipes = Recipes.model_validate(content)
    refuse(_impossible(recipes))
    return recipes


def _impossible(recipes: Recipes) -> list[str]:
    """Return what would fail only when it is used, perhaps minutes later, behind the teacher."""
    wrong = [*recipes.gates.strangers({TEACHER, *recipes.models}), *_too_many_images(recipes)]
    wrong += absent(recipes.data, recipes.teacher)
    wrong += unlabelled(recipes.data, recipes.teacher, recipes.models, recipes.gates)
    known, broken = _roots(recipes)
    wrong += broken
    children: dict[str, list[str]] = {}
    for name, block in recipes.models.items():
        if not isinstance(block, DistillParams):
            children.setdefault(block.from_, []).append(name)
    parents = list(known)
    for parent in parents:  # which grows, down to the youngest
        for name in children.get(parent, ()):
            found, known[name] = impossible(name, recipes.models[name], known[parent], _data(recipes))
            wrong += [f"models.{name}.{line}" for line in found]
            parents.append(name)
    wrong += _nothing_to_begin_from(recipes, known)
    return [*wrong, *unknown_layers(recipes.models, known, _pictures(recipes.data))]


def _data(recipes: Recipes) -> Data:
    if isinstance(recipes.data, FolderParams) and recipes.data.plain:
        return Data(recipes.data.shape, max(len(recipes.data.files), 1))
    if (known := _known(recipes.data)) is None:
        return Data(None, 1)
    source, held_out = known
    return Data(source.shape, max(source.training - held_out, 1))


def _known(data: AnyData) -> tuple[Source, int] | None:
    """Return a source whose numbers are known before it is read, and how many are held out."""
    if not isinstance(data, PrepareParams) or isinstance(data.validation, str):
        return None
    source = SOURCES.get(data.source)
    return None if source is None else (source, data.validation)


def _pictures(data: AnyData) -> tuple[Shape, int] | None:
    """Return the form of one picture and the number of classes; None where no pictures come in."""
    if isinstance(data, FolderParams):
        known = data.plain and (data.table is None or data.names)
        return (data.shape, len(data.names)) if known else None
    source = SOURCES.get(data.source)
    return None if source is None else (source.shape, len(source.classes))


def _other(data: AnyData) -> str:
    """Say what else than pictures of known classes there is."""
    if not isinstance(data, FolderParams):
        return f", and data.source is {data.source}"
    if data.plain:
        return " of classes that are known before the table is read: name them in data.target.names"
    return " and answers with classes, and the data have other columns or another target"


def _too_many_images(recipes: Recipes) -> list[str]:
    """Return where more images are asked for than the splits will have."""
    if (known := _known(recipes.data)) is None:
        return []
    there, held_out = known[0].training, known[1]
    if held_out >= there:
        return [f"data.validation: must leave some of the {there:,} training images, got {held_out:,}"]
    sizes = {"validation": held_out, "training": there - held_out}
    sections = {f"{TEACHER}.": recipes.teacher} | {
        f"models.{n}.": block for n, block in recipes.models.items()
    }
    return [line for place, section in sections.items() for line in excesses(section, sizes, place)]


def _roots(recipes: Recipes) -> tuple[dict[str, Known], list[str]]:
    """Return what is known of each network that is trained from fresh weights, and why others cannot be."""
    blocks = {TEACHER: (f"{TEACHER}.architecture", recipes.teacher.architecture)} | {
        name: (f"models.{name}.student", block.student)
        for name, block in recipes.models.items()
        if isinstance(block, DistillParams)
    }
    known: dict[str, Known] = {}
    wrong = [*absent_teachers(recipes.models)]
    pictures = _pictures(recipes.data)
    epochs = recipes.teacher.training.epochs if recipes.teacher.training else 0
    for name, (place, architecture) in blocks.items():
        if isinstance(architecture, Proposed):
            wrong += _unproposable(name, recipes, architecture)
            known[name] = Known(name, recipes.teacher.architecture, {}, epochs)
            continue
        if isinstance(architecture, FOREIGN):
            wrong += [f"{place}: {line}" for line in unbuildable(architecture, pinned=name != TEACHER)]
            known[name] = Known(name, architecture, {}, epochs)
            continue
        if pictures is None:
            wrong.append(f"{place}: {architecture.kind} takes pictures{_other(recipes.data)}")
            continue
        try:
            check_size(architecture, *pictures)
        except DecantError as error:
            wrong.append(f"{place}: {error}")
            continue
        weights = architecture.weights(*pictures)
        known[name] = Known(name, architecture, weights, epochs)
        section = recipes.teacher if name == TEACHER else recipes.models[name]
        inside = place.rpartition(".")[0]
        wrong += [f"{inside}.{line}" for line in untrainable(section, architecture, False, _data(recipes))]
    return known, wrong


def _unproposable(name: str, recipes: Recipes, student: Proposed) -> list[str]:
    """Return why no student can be proposed, where the teacher's architecture is known."""
    parent = recipes.models[name].from_
    block = recipes.models.get(parent)
    family = recipes.teacher.architecture if parent == TEACHER else getattr(block, "student", None)
    if family is None or isinstance(family, Proposed):
        return []
    if not isinstance(family, Resnet | Mlp | Lenet300100):
        return [
            f"models.{name}.student.budget: {family.kind} has no widths to make smaller; name the student"
        ]
    if (pictures := _pictures(recipes.data)) is None:
        return []
    try:
        check_size(family, *pictures)
        propose(student, family, *pictures)
    except DecantError as error:
        return [f"models.{name}.{error}"] if str(error).startswith("student.") else []
    return []


def _nothing_to_begin_from(recipes: Recipes, known: Mapping[str, Known]) -> Iterator[str]:
    """Yield which students are to begin from a teacher that has no layer of a name of theirs."""
    for name, block in recipes.models.items():
        if isinstance(block, DistillParams) and block.start == "teacher":
            own, teacher = (known[each].weights if each in known else {} for each in (name, block.from_))
            if own and teacher and not own.keys() & teacher.keys():
                yield f"models.{name}.start: no layer of the student is one of its teacher's; leave it out"


def _broken_lineages(models: Any) -> list[str]:
    """Return what is wrong between blocks, as far as the blocks can be read at all."""
    blocks = models if isinstance(models, dict) else {}
    parents = {
        name: block["from"]
        for name, block in blocks.items()
        if isinstance(name, str) and isinstance(block, dict) and isinstance(block.get("from"), str)
    }
    known = {TEACHER, *(name for name in blocks if isinstance(name, str))}
    strangers = [name for name, parent in parents.items() if parent not in known]
    wrong = []
    for name in strangers[:MOST_LINES]:
        near = did_you_mean(parents[name], known - {name})
        wrong.append(f"models.{name}.from: there is no model {parents[name]!r}{near}")
    wrong += [f"models.{name}.from: there is no such model" for name in strangers[MOST_LINES:]]
    if TEACHER in blocks:
        wrong.append(f"models.{TEACHER}: the name belongs to the section {TEACHER}; choose another")
    parents.pop(TEACHER, None)
    return [*wrong, *(f"models.{path[0]}.from: a cycle, {' → '.join(path)}" for path in _cycles(parents))]


def _cycles(parents: dict[str, str]) -> list[list[str]]:
    """Return each cycle once, as the path from its first model in order of names back to itself."""
    cycles, seen = [], set[str]()
    for name in parents:
        path: dict[str, None] = {}  # in order, and quick to look into
        while name in parents and name not in seen:
            seen.add(name)
            path[name] = None
            name = parents[name]
        if name in path:
            cycle = [*path][[*path].index(name) :]
            first = cycle.index(min(cycle))
            cycles.append([*cycle[first:], *cycle[:first], cycle[first]])
    return sorted(cycles)
