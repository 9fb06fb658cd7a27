"""The source `python`: the rows that a function yields as the three splits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from decant.errors import DecantError
from decant.examples import Rows
from decant.inputs import inputs_of
from decant.schema import did_you_mean
from tasks.prepare.columns import Source, table_of
from tasks.prepare.generators import generate
from tasks.prepare.own_tables import Drawn, divided, known_of, rows_of
from tasks.prepare.params import PythonParams


def draw(params: PythonParams, seed: int) -> tuple[Drawn, str]:
    """Return the splits `train`, `validation` and `test`, the first two shuffled; and the sum of the code.

    Raises:
        DecantError: As `generate`; or a split would be empty, or a class cannot be learned.
    """
    made = generate(params, seed)
    images = _rows(made.inputs, params)
    source = Source.of(Path(params.file), table_of(made.aside, params.file))
    rows = rows_of(params.split, params.target, source, np.arange(len(images)), seed)
    known = known_of(params.target, source, rows)
    splits, notes = divided(images, known, rows, params.leak == "fail")
    return Drawn(splits, [f"{params.file}: the sum of its code is {made.code}", *notes], {}), made.code


def _rows(inputs: Mapping[str, NDArray[Any]], params: PythonParams) -> Rows:
    """Return the inputs of all rows [N, ...]."""
    if strange := sorted({*params.kinds} - {*inputs}):
        raise DecantError(
            f"data.kinds: {params.function} yields no {strange[0]!r}{did_you_mean(strange[0], inputs)}"
        )
    found = Rows({name: torch.from_numpy(each) for name, each in inputs.items()}, kinds=params.kinds)
    try:
        inputs_of(found.tensors, found.kinds)
    except ValueError as error:
        raise DecantError(f"{params.file}: {error}") from None
    return found
