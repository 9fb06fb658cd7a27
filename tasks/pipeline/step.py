"""What stages do around an operation: read block, parent and images, call it, print and write the model."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.files import DEPLOYED, load, save
from decant.checkpoints.lineage import read_lineage
from decant.compression.finish import Result
from decant.compression.ledger import as_json, lines
from decant.compression.promises import check_written
from decant.errors import DecantError
from decant.networks.architectures import FOREIGN
from decant.networks.devices import CPU, find, made_on
from decant.networks.execution import make_deterministic
from decant.networks.processes import leave, number, together
from decant.outputs import json_text, replacing
from decant.recipes import counted
from decant.schema import Block, Section
from decant.seeds import derive_seed
from decant.training.resume import SCRATCH, Scratch, scratch
from decant.training.run import Run
from tasks.pipeline import splits
from tasks.pipeline.lineages import MODELS, SEEDS, TEACHER, written
from tasks.pipeline.models import load_models, load_seeds
from tasks.pipeline.networks import with_functions
from tasks.pipeline.params import read_section, read_yaml
from tasks.pipeline.processes import PROCESSES, asked, in_processes, without
from tasks.pipeline.record import ROOT, record

S = TypeVar("S", bound=Section)
B = TypeVar("B", bound=Block)


@dataclass(frozen=True)
class Step(Generic[S]):
    """One run of one operation.

    Attributes:
        name: The model that it makes.
        op: The operation.
        block: The model's block of params.yaml, with no more images in any place than there are.
        seed: Of this model alone, derived from the name.
        threads: How many threads every sum is split over; the bits depend on it.
        params: What params.yaml says of this step, as it is written there.
        number: Which of the seeds it is that the block asks for; the first makes the model.
    """

    name: str
    op: str
    block: S
    seed: int
    threads: int
    params: Mapping[str, Any]
    number: int = 1

    def repeated(self, seeds: int) -> list[Step[S]]:
        """Return the step, and again with other seeds, so many in all."""
        more = (replace(self, number=n, seed=derive_seed(self.seed, f"{n}")) for n in range(2, seeds + 1))
        return [self, *more]

    @property
    def place(self) -> Path:
        """Where trainings keep their state; a point stands in no model's name."""
        return SCRATCH / (self.name if self.number == 1 else f"{self.name}.{self.number}")

    @property
    def recipe(self) -> dict[str, Any]:
        """All that the result depends on beside files: what the lineage says and the scratch is found by."""
        block = self.block.model_dump(mode="json", by_alias=True)
        return {"name": self.name, "op": self.op, **block, "seed": self.seed, "threads": self.threads}

    def run(self, *parents: str) -> Run:
        """Return the run for the operation; `parents` are the models that it reads."""
        return Run(self.name, self.seed, lambda: self._scratch(parents))

    def _scratch(self, parents: Sequence[str]) -> Scratch:
        files = [MODELS / parent / file for parent in parents for file in DEPLOYED]
        code, recipe = record(self.op, ROOT), without(self.recipe, PROCESSES)  # goes on with any number
        return scratch(self.place, recipe, [splits.TRAIN, splits.VALIDATION, *files], code)


def begin(name: str, section: str, op: str, schema: type[S]) -> Step[S]:
    """Read the block of `name` and make the process deterministic; start others where it asks for several.

    Raises:
        DecantError: The block is not valid, asks for a device that is not there, or for another number of
            processes than were started; or these are not alike.
    """
    seed, threads = read_section("seed", int), read_section(f"threads.{op}", int)
    make_deterministic(threads)
    block = read_section(section, schema)
    in_processes(count := asked(block))
    step = Step(name, op, block, derive_seed(seed, name), threads, written(name, read_yaml())["params"])
    together(count, find(getattr(block, "device", CPU)), _alike(step) if count > 1 else {})
    return step


def _alike(step: Step[Any]) -> dict[str, str]:
    """Return what has to be the same in all processes of a stage, by what it is."""
    code = hashlib.sha256(record(step.op, ROOT).encode()).hexdigest()[:12]
    return {"recipe": json.dumps(step.params, sort_keys=True), "seed": str(step.seed), "tasks": code}


def begin_model(name: str, schema: type[B]) -> Step[B]:
    """Read the block of a compressed model, one of those under `models`."""
    op = read_section(f"models.{name}.op", str)
    expected = schema.model_fields["op"].annotation
    if op not in getattr(expected, "__args__", ()):
        raise DecantError(f"{name} is made by {op}: run `python -m tasks.{op} {name}`")
    return begin(name, f"models.{name}", op, schema)


def compress(name: str, schema: type[B], operation: Callable[..., Result]) -> None:
    """Read the block of a compressed model, its parent, the teacher and the images; write what comes out."""
    step = begin_model(name, schema)
    images = splits.read_splits()
    step = replace(step, block=counted(with_functions(step.block), images.sizes))
    ensemble = getattr(step.block, "together", None)
    names = tuple(dict.fromkeys((step.block.from_, TEACHER, *(ensemble.teachers if ensemble else ()))))
    models = load_models(*names, data=training_images())
    parent, teacher = models[step.block.from_], models[TEACHER]
    more, places = _others(models, (step.block.from_, TEACHER), seeds=ensemble is not None and ensemble.seeds)
    seals = {place: read_lineage(MODELS / place).seal for place in (*names, *places)}
    steps = step.repeated(step.block.seeds)
    made = [
        operation(parent, step.block, images, teacher=teacher, run=each.run(*seals), **more) for each in steps
    ]
    write(step, made[0], seals, [*zip(steps, made, strict=True)][1:])


def _others(
    models: Mapping[str, Checkpoint], parents: Collection[str], *, seeds: bool
) -> tuple[dict[str, Any], list[str]]:
    """Return what an operation is given beside its parents, and the folders of what other seeds made."""
    if not seeds:
        named = {each: model for each, model in models.items() if each not in parents}
        return ({"others": named} if named else {}), []
    made = {each: load_seeds(each) for each in models}
    places = [f"{each}/{SEEDS}/{at}" for each, found in made.items() for at in range(2, len(found) + 2)]
    return {"others": {each: [models[each], *found] for each, found in made.items()}}, places


def write(
    step: Step[S],
    result: Result,
    parents: Mapping[str, str] | None = None,
    others: Sequence[tuple[Step[S], Result]] = (),
) -> None:
    """Print the ledger and write `models/<name>`: the model, its ledger, and a curve where it was trained.

    What was written is read again, and compared with the model in memory and with what the recipe promises.
    Of several processes the first one alone does so.

    Args:
        step: What made it.
        result: What came out.
        parents: The seals of the models that it was made from, by name.
        others: What other seeds made; each is a model of its own in `seeds/<number>` of the folder.
    """
    leave()
    if number() > 0:
        return
    print("\n".join(lines(f"{step.name}: {step.op}", result.ledger)))
    if result.facts:
        print(f"  {', '.join(f'{name} {value}' for name, value in result.facts.items())}")
    with replacing(MODELS / step.name) as folder:
        folder.mkdir()
        _save(step, result, parents or {}, folder)
        for each, other in others:
            _save(each, other, parents or {}, folder / SEEDS / str(each.number))
    for note in result.notes:
        print(f"  note: {note}")
    for each in (step, *(each for each, _ in others)):
        Scratch(each.place).clear()


def _save(step: Step[S], result: Result, parents: Mapping[str, str], folder: Path) -> None:
    """Write one model, read it again, and compare."""
    entry = {
        **step.recipe,
        "params": step.params,
        "parents": dict(parents),
        "data": training_images(),
        "versions": {"torch": torch.__version__} | made_on(getattr(step.block, "device", CPU)),
    }
    model = replace(result.model, lineage=(*result.model.lineage, entry | dict(result.facts)))
    beside = {"ledger.json": json_text(as_json(result.ledger))}
    if result.curve:
        beside["curve.csv"] = _curve(result.curve)
    save(model, folder, beside)
    own = model.architecture if isinstance(model.architecture, FOREIGN) else None
    check_written(model, load(folder, build=own), result.promises)


def _curve(curve: Sequence[Mapping[str, float]]) -> str:
    """Return the rows of a curve as the text of a table."""
    writer = csv.DictWriter(file := io.StringIO(), curve[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: float(f"{value:.6g}") for key, value in row.items()} for row in curve)
    return file.getvalue()


def training_images() -> str:
    """Return the sum of the training images, as a lineage names it."""
    return f"sha256:{hashlib.sha256(splits.TRAIN.read_bytes()).hexdigest()}"
