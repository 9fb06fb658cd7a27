"""The source `python`: the rows that a function yields as the three splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from decant.errors import DecantError
from decant.examples import Rows
from decant.inputs import inputs_of
from tasks.prepare.columns import Source, table_of
from tasks.prepare.generators import Row, generate
from tasks.prepare.own_tables import Drawn, divided, rows_of, with_target
from tasks.prepare.params import PythonParams


def draw(params: PythonParams, seed: int) -> tuple[Drawn, str]:
    """Return the splits `train`, `validation` and `test`, the first two shuffled; and the sum of the code.

    Raises:
        DecantError: As `generate`; or a split would be empty, or a class cannot be learned.
    """
    found, code = generate(params, seed)
    aside = {name: [row[name] for row in found] for name in params.aside}
    source = Source.of(Path(params.file), table_of(aside, params.file))
    rows = rows_of(params.split, params.target, source, np.arange(len(found)), seed)
    examples = with_target(params.target, source, _stacked(found, params), rows)
    splits, notes = divided(examples, rows, params.leak == "fail")
    return Drawn(splits, [f"{params.file}: the sum of its code is {code}", *notes], {}), code


def _stacked(rows: Sequence[Row], params: PythonParams) -> Rows:
    """Return the inputs of all rows [N, ...]."""
    names = [name for name in rows[0] if name not in params.aside]
    found = Rows({name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in names})
    try:
        inputs_of(found.tensors)
    except ValueError as error:
        raise DecantError(f"{params.file}: {error}") from None
    return found
