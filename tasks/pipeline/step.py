"""What operations do around their mathematics: read block and parent; check, print and write the child."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.files import DEPLOYED, save
from decant.compression.invariants import check_invariants
from decant.compression.ledger import Entry, Tables, as_json, chosen, compare, show
from decant.compression.surgery import Kept
from decant.errors import DecantError
from decant.lowering.integers import exact_sums, settled
from decant.outputs import replacing, write_json
from decant.schema import Section
from decant.seeds import derive_seed
from decant.training.resume import Scratch, scratch
from tasks.pipeline import splits
from tasks.pipeline.determinism import make_deterministic
from tasks.pipeline.models import MODELS
from tasks.pipeline.params import read_section

B = TypeVar("B", bound=Section)


@dataclass(frozen=True)
class Step(Generic[B]):
    """One run of one operation.

    Attributes:
        name: The model that it makes.
        op: The operation.
        block: The model's block of params.yaml.
        seed: Of this model alone, derived from the name.
        threads: How many threads every sum is split over; the bits depend on it.
    """

    name: str
    op: str
    block: B
    seed: int
    threads: int

    @property
    def recipe(self) -> dict[str, Any]:
        """All that the result depends on beside files: what the lineage tells and the scratch is found by."""
        block = self.block.model_dump(mode="json", by_alias=True)
        return {"name": self.name, "op": self.op, **block, "seed": self.seed, "threads": self.threads}

    def scratch(self, *parents: str) -> Scratch:
        """Return where a training of this step keeps its state; `parents` are the models that it reads."""
        files = [MODELS / parent / file for parent in parents for file in DEPLOYED]
        return scratch(self.name, self.recipe, [splits.TRAIN, splits.VALIDATION, *files])


def begin(name: str, section: str, op: str, schema: type[B]) -> Step[B]:
    """Read the block of `name` and make the process deterministic."""
    seed, threads = read_section("seed", int), make_deterministic(op)
    return Step(name, op, read_section(section, schema), derive_seed(seed, name), threads)


def begin_model(name: str, schema: type[B]) -> Step[B]:
    """Read the block of a compressed model, one of those under `models`."""
    op = read_section(f"models.{name}.op", str)
    expected = schema.model_fields["op"].annotation
    if op not in getattr(expected, "__args__", ()):
        raise DecantError(f"{name} is made by {op}: run `python -m tasks.{op} {name}`")
    return begin(name, f"models.{name}", op, schema)


def finish(
    step: Step[B],
    parent: Checkpoint,
    child: Checkpoint,
    untouched: Mapping[str, str],
    curve: Sequence[Mapping[str, float]] = (),
    tables: Tables | None = None,
    kept: Kept | None = None,
    facts: Mapping[str, Any] | None = None,
    note: str = "",
) -> None:
    """Check the child against its parent, print the ledger, and write the child to `models/<name>`.

    Biases are written as integer kernels add them, so that what is measured from now on is what is deployed.
    `tables` says of parameters what was chosen for them and what was tried, `kept` what is left of the
    parent's tensors where channels were removed, `facts` what else the lineage should tell of the step, and
    `note` what else its user should know, which is printed and kept nowhere.
    """
    child = settled(child)
    check_invariants(parent, child, kept)
    ledger = chosen(compare(parent, child, untouched, kept), tables or {})
    write(step, child, ledger, curve, facts)
    for words in filter(None, (note, exact_sums(child))):
        print(f"  note: {words}")


def write(
    step: Step[B],
    child: Checkpoint,
    ledger: Sequence[Entry],
    curve: Sequence[Mapping[str, float]] = (),
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Print the ledger and write `models/<name>`: the model, its ledger, and a curve where it was trained."""
    show(f"{step.name}: {step.op}", ledger)
    if facts:
        print(f"  {', '.join(f'{name} {value}' for name, value in facts.items())}")
    entry = {**step.recipe, "data": _sum(splits.TRAIN), "versions": {"torch": torch.__version__}}
    entry |= facts or {}
    with replacing(MODELS / step.name) as folder:
        folder.mkdir()
        save(replace(child, lineage=(*child.lineage, entry)), folder)
        write_json(folder / "ledger.json", as_json(ledger))
        if curve:
            _write_curve(folder / "curve.csv", curve)


def _write_curve(path: Path, curve: Sequence[Mapping[str, float]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, curve[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: float(f"{value:.6g}") for key, value in row.items()} for row in curve)


def _sum(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
