"""What the page says of each model, from the files of other stages; what cannot be read is a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.files import load
from decant.checkpoints.lineage import read_beside
from decant.errors import DecantError
from decant.sealed import parsed
from tasks.pipeline.lineages import MODELS, TEACHER, chain
from tasks.pipeline.metrics import MetricSet
from tasks.pipeline.networks import network_of
from tasks.report.page.evidence import EXPLAIN, STABILITY, Evidence, read_evidence
from tasks.report.page.layers import Layer, layers_of
from tasks.report.page.recipes import block_of
from tasks.report.page.snippets import Snippet, snippets
from tasks.report.rows import ModelRow, read_curves, read_metrics


@dataclass(frozen=True)
class Model:
    """One model of params.yaml, or the teacher.

    Attributes:
        name: As in params.yaml.
        chain: The models from the teacher to this one.
        operation: The last step.
        block: Its recipe in params.yaml.
        row: Its metrics; None where there are none that can be read.
        layers: Every tensor on disk; empty where the model cannot be read.
        curve: Its training, an epoch a row; empty where there was none.
        stability: What the stage of that name found.
        explanations: The like.
        snippets: How to load it.
        problems: A sentence for each thing that could not be read.
    """

    name: str
    chain: tuple[str, ...]
    operation: str
    block: Any
    row: ModelRow | None = None
    layers: tuple[Layer, ...] = ()
    curve: tuple[Mapping[str, float], ...] = ()
    stability: Evidence = field(default_factory=Evidence)
    explanations: Evidence = field(default_factory=Evidence)
    snippets: tuple[Snippet, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def parent(self) -> str | None:
        """The model that it was made from."""
        return self.chain[-2] if len(self.chain) > 1 else None

    @property
    def values(self) -> dict[str, float]:
        """All flat numbers of it by their keys."""
        own = self.row.metrics if self.row else {}
        return {**self.explanations.figures, **self.stability.figures, **own}

    @property
    def measured(self) -> MetricSet | None:
        """The set that its metrics are of."""
        return self.row.measured if self.row else None


def read_models(params: Mapping[str, Any]) -> list[Model]:
    """Return the teacher, then every model in the order of params.yaml.

    Raises:
        DecantError: params.yaml has no models, or one descends from itself or from none.
    """
    models = params.get("models")
    if not isinstance(models, Mapping):
        raise DecantError("params.yaml has no section `models` with a block for each model")
    return [_read(name, params) for name in (TEACHER, *map(str, models))]


def _read(name: str, params: Mapping[str, Any]) -> Model:
    block = block_of(name, params)
    names = chain(name, params)
    problems: list[str] = []
    row = _row(name, [_operation(each, params) for each in names], problems)
    checkpoint = _checkpoint(name, params, problems)
    evidence = [read_evidence(folder, name) for folder in (STABILITY, EXPLAIN)]
    problems += [each.problem for each in evidence if each.problem]
    return Model(
        name=name,
        chain=tuple(names),
        operation=_operation(name, params),
        block=block,
        row=row,
        layers=tuple(layers_of(checkpoint, _ledger(name, problems))) if checkpoint else (),
        curve=tuple(_curve(name, row.measured, problems)) if row and checkpoint else (),
        stability=evidence[0],
        explanations=evidence[1],
        snippets=snippets(name, checkpoint) if checkpoint else (),
        problems=tuple(dict.fromkeys(problems)),
    )


def _operation(name: str, params: Mapping[str, Any]) -> str:
    block = block_of(name, params)
    return TEACHER if name == TEACHER else str(block.get("op")) if isinstance(block, Mapping) else "?"


def _row(name: str, operations: Sequence[str], problems: list[str]) -> ModelRow | None:
    try:
        return ModelRow(name, tuple(operations), read_metrics(name))
    except DecantError as error:
        problems.append(str(error))
        return None


def _checkpoint(name: str, params: Mapping[str, Any], problems: list[str]) -> Checkpoint | None:
    try:
        return load(MODELS / name, build=network_of(name, params))
    except DecantError as error:
        problems.append(str(error))
        return None


def _ledger(name: str, problems: list[str]) -> dict[str, Mapping[str, Any]]:
    """Return the ledger's entries by the parameter's name."""
    try:
        text = read_beside(MODELS / name, "ledger.json")
        entries = parsed(text.encode()) if text else []
        return {entry["name"]: entry for entry in entries}
    except (DecantError, ValueError, TypeError, KeyError) as error:
        problems.append(f"{Path(MODELS, name, 'ledger.json')} cannot be read: {error}")
        return {}


def _curve(name: str, measured: MetricSet, problems: list[str]) -> Iterable[Mapping[str, float]]:
    try:
        curves = read_curves([name], measured.curve)
        return [{key: float(value) for key, value in row.items() if key != "model"} for row in curves]
    except (DecantError, ValueError) as error:
        problems.append(str(error))
        return []
