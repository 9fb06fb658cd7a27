"""The verdict on today's inputs: features, answers and ranges, each held against the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.given import misfit
from decant.costs.likeness import cosines
from decant.errors import DecantError
from decant.examples import Batch, Rows
from decant.inputs import TensorInput
from decant.networks.architectures import Takes
from decant.networks.execution import make_deterministic, predict
from decant.sealed import one_line
from tasks.drift import cuts
from tasks.drift.features import Column, features
from tasks.drift.shifts import Shift, shifts
from tasks.pipeline import splits
from tasks.pipeline.arrays import ENDINGS, read_arrays
from tasks.pipeline.lineages import TEACHER
from tasks.pipeline.models import load_models
from tasks.pipeline.params import read_section

ALPHA, LEAST, CUT, ROWS = 0.01, 0.1, 0.01, 10_000
FEWEST = 30
"""Rows of a file below which nothing can be said."""

IMAGE = "image"
"""What pictures are called in a file of named tensors."""


@dataclass(frozen=True)
class Settings:
    """When something counts as moved.

    Attributes:
        alpha: The largest share of false discoveries among the features that are told, in (0, 1).
        least: The smallest size of a shift that is told, in [0, 1]: with many rows even a tiny one is sure.
        cut: How much larger the share of a layer's inputs that its range cuts may become, in [0, 1].
        rows: How many rows of each file are looked at, the first ones.
    """

    alpha: float = ALPHA
    least: float = LEAST
    cut: float = CUT
    rows: int = ROWS

    def __post_init__(self) -> None:
        """Refuse so few rows that nothing could be said.

        Raises:
            DecantError: There are fewer than `FEWEST`.
        """
        if self.rows < FEWEST:
            raise DecantError(
                f"{self.rows} rows of each file, of which nothing can be said; give {FEWEST} or more"
            )


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        model: Its name.
        rows: How many rows of the reference, and of today.
        shifts: Of inputs and answers, the surest first.
        cut: The share of each layer's inputs that its range cuts, in the reference and today.
        agreement: What of the answers is the teacher's, in the reference and today: the share of rows of the
            same class, or the mean cosine; None of the teacher, and where one number is answered.
        settings: When something counts as moved.
        difference: Of a model that answers one number: how far it is from the teacher's, the mean over rows,
            in the reference and today.
    """

    model: str
    rows: tuple[int, int]
    shifts: tuple[Shift, ...]
    cut: Mapping[str, tuple[float, float]]
    agreement: tuple[float, float] | None
    settings: Settings
    difference: tuple[float, float] | None = None

    @property
    def shifted(self) -> list[Shift]:
        """The features that have moved."""
        return [each for each in self.shifts if self.tells(each)]

    @property
    def cut_more(self) -> list[str]:
        """The layers whose ranges cut more than they did."""
        return [name for name, (then, now) in self.cut.items() if now - then > self.settings.cut]

    @property
    def moved(self) -> bool:
        """Whether anything has."""
        return bool(self.shifted or self.cut_more)

    def tells(self, shift: Shift) -> bool:
        """Say whether a shift is both sure and large enough."""
        return shift.p <= self.settings.alpha and shift.size >= self.settings.least

    def content(self) -> dict[str, Any]:
        """Return all figures, for a JSON file."""
        return {
            "model": self.model,
            "moved": self.moved,
            "rows": dict(zip(("reference", "today"), self.rows, strict=True)),
            "settings": asdict(self.settings),
            "shifts": [{**asdict(each), "moved": self.tells(each)} for each in self.shifts],
            "cut": {name: {"reference": then, "today": now} for name, (then, now) in self.cut.items()},
            "agreement": self.agreement,
            "difference": self.difference,
        }


def judge(reference: Path, today: Path, model: str, settings: Settings | None = None) -> Verdict:
    """Return what has moved between two files for a model of params.yaml.

    Raises:
        DecantError: A file or model is missing or broken, a file has fewer than `FEWEST` rows, or other
            tensors than the network takes.
    """
    settings = settings or Settings()
    make_deterministic(read_section("threads.evaluate", int))
    models = load_models(*dict.fromkeys((model, TEACHER)))
    batches = [_read(path, models[model], settings.rows) for path in (reference, today)]
    looked = [_looked_at(batch, batches[0], models, model) for batch in batches]
    shares = [cuts.shares_cut(models[model], batch) for batch in batches]
    return Verdict(
        model,
        (len(batches[0]), len(batches[1])),
        tuple(shifts(looked[0].columns, looked[1].columns)),
        {name: (shares[0][name], shares[1][name]) for name in shares[0]},
        _pair(looked[0].agreement, looked[1].agreement),
        settings,
        _pair(looked[0].difference, looked[1].difference),
    )


@dataclass(frozen=True)
class _Looked:
    columns: dict[str, Column]
    agreement: float | None = None
    difference: float | None = None


def _pair(then: float | None, now: float | None) -> tuple[float, float] | None:
    return None if then is None or now is None else (then, now)


def _looked_at(batch: Batch, reference: Batch, models: Mapping[str, Checkpoint], model: str) -> _Looked:
    """Return the columns of inputs and answers, and what of the answers is the teacher's."""
    columns, measured = features(batch, reference), models[model]
    outputs = _answers(model, measured, batch)
    if not bool(torch.isfinite(outputs).all()):
        row = int((~torch.isfinite(outputs)).any(1).nonzero()[0])
        raise DecantError(f"{model} answers NaN or infinity to row {row}; such inputs cannot be judged")
    columns |= _of_outputs(outputs, measured.classes)
    if model == TEACHER:
        return _Looked(columns)
    expected = _answers(TEACHER, models[TEACHER], batch)
    if expected.shape != outputs.shape:
        raise DecantError(
            f"{model} answers {outputs.shape[1]:,} numbers for each row and its teacher "
            f"{expected.shape[1]:,}; make it from this teacher"
        )
    if outputs.shape[1] == 1:  # the cosine of two numbers is their signs' alone
        apart = (outputs - expected).double().abs()[:, 0].numpy()
        return _Looked(columns | {"difference from the teacher": apart}, difference=float(apart.mean()))
    found = _agreements(outputs, expected, bool(measured.classes))
    return _Looked(columns | {"agreement with the teacher": found}, float(found.mean()))


def _answers(name: str, model: Checkpoint, batch: Batch) -> Tensor:
    """Return what a model answers to a batch [N, M]; a code that is in none of its tables is a mistake."""
    try:
        return predict(model.module, batch)
    except (IndexError, RuntimeError) as error:
        raise DecantError(
            f"{name} fails on such inputs, as it does where a code is none that it knows: {one_line(error)}"
        ) from None


def _of_outputs(outputs: Tensor, classes: tuple[str, ...]) -> dict[str, Column]:
    """Return the class answered, and each of the outputs [N, M], or of the first hundred."""
    names = [f"logit of {name}" for name in classes] or [f"output {n}" for n in range(outputs.shape[1])]
    columns: dict[str, Column] = {"class answered": outputs.argmax(1).numpy()} if classes else {}
    columns |= {name: outputs[:, n].double().numpy() for n, name in enumerate(names[:100])}
    return columns


def _agreements(outputs: Tensor, expected: Tensor, classes: bool) -> Column:
    """Return 1 for each row of the teacher's class, else 0; or the cosine of each row."""
    if classes:
        return (outputs.argmax(1) == expected.argmax(1)).long().numpy()
    return np.asarray(cosines(outputs, expected).numpy(), np.float64)


def _read(path: Path, model: Checkpoint, rows: int) -> Batch:
    """Return a file's first rows, once they are what the network takes."""
    batch = _named(path, model) if path.suffix in ENDINGS else splits.read(path).images
    if wrong := misfit(model.shape, _form(batch)):
        raise DecantError(f"{path} has {wrong[0]}, and the model takes {wrong[1]}")
    if len(batch) < FEWEST:
        raise DecantError(
            f"{path} has {len(batch)} rows, of which nothing can be said; give {FEWEST} or more"
        )
    return batch[:rows]


def _named(path: Path, model: Checkpoint) -> Batch:
    """Return the tensors of a file that the network takes, in its order."""
    tensors = read_arrays(path)
    names = [IMAGE] if isinstance(model.shape, tuple) else [*model.shape]
    if missing := [name for name in names if name not in tensors]:
        raise DecantError(f"{path} has no {', '.join(missing)}; it has {', '.join(tensors) or 'nothing'}")
    if not isinstance(model.shape, tuple):
        return Rows({name: tensors[name] for name in names})
    image = tensors[IMAGE]
    if image.dtype != torch.uint8 or image.dim() != 4:
        raise DecantError(
            f"{path}: {IMAGE} is {str(image.dtype).removeprefix('torch.')} {[*image.shape]}, expected uint8 "
            "[N, C, H, W] from 0 to 255, which is what the model was tested on"
        )
    return image


def _form(batch: Batch) -> Takes:
    """Return what takes such a batch, whatever the numbers in it."""
    if not isinstance(batch, Rows):
        channels, height, width = batch.shape[1:]
        return channels, height, width
    return {
        name: TensorInput.model_construct(
            shape=tuple(each.shape[1:]), dtype=str(each.dtype).removeprefix("torch.")
        )
        for name, each in batch.tensors.items()
    }
