"""Rows that a function of one's own yields: its code is run where Git tracks it, and has to repeat itself.

Run as a module it is the second run: it prints a sum of each row.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decant.errors import DecantError
from decant.networks.python import function_of, sum_of_code, where
from decant.progress import progress_bar
from decant.schema import did_you_mean
from decant.sealed import one_line
from decant.seeds import derive_seed
from tasks.pipeline.networks import check_tracked
from tasks.pipeline.params import read_section, validate
from tasks.pipeline.stage import report_errors
from tasks.prepare.params import DataParams, PythonParams
from tasks.prepare.room import Growing

MOST_BYTES = 1 << 40
"""Of all rows: a function that yields for ever is told before the disk is full, where that is so large."""

SUM = 16
"""Bytes of the sum of a row."""

Row = dict[str, Any]
"""An array for each input, and plain values for what the network does not see."""


@dataclass(frozen=True)
class Generated:
    """Rows that a function yielded.

    Attributes:
        inputs: What the network sees, by name [N, ...]: large ones in files.
        aside: What it does not see, by name: a value for each row.
        code: The sum of the code.
    """

    inputs: dict[str, NDArray[Any]]
    aside: dict[str, list[Any]]
    code: str


def generate(params: PythonParams, seed: int) -> Generated:
    """Return the rows of two runs that yield the same, and the sum of the code.

    Before each run Python's, numpy's and torch's generators of random numbers get the same seed. The second
    is in another process, where sets and hashes have another order.

    Args:
        params: Names the function.
        seed: Non-negative.

    Raises:
        DecantError: Git does not track all of the code, or it has another sum than params.yaml says; the
            function fails, yields no row or what is none; or the two runs differ.
    """
    inputs: dict[str, Growing] = {}
    aside: dict[str, list[Any]] = {name: [] for name in params.aside}
    form: Row = {}
    sums = bytearray()
    for row in run_once(params, seed):
        form = form or row
        for name in aside:
            aside[name].append(row[name])
        for name in row.keys() - aside.keys():
            inputs.setdefault(name, Growing(row[name].dtype)).add(row[name])
        sums += bytes.fromhex(sum_of(row))
    code = sum_of_code(Path(params.file), Path())
    if not form:
        raise DecantError(f"{params.file}: {params.function} yields no row; give it some")
    _check_repeated(params, [sums[start : start + SUM].hex() for start in range(0, len(sums), SUM)])
    arrays = {name: inputs[name].array().reshape(-1, *form[name].shape) for name in form if name not in aside}
    return Generated(arrays, aside, code)


def _check_repeated(params: PythonParams, sums: Sequence[str]) -> None:
    """Refuse rows of which a second run yields others, by their sums."""
    for number, (first, second) in enumerate(zip_longest(sums, _second_run(params)), start=1):
        if first != second:
            raise DecantError(
                f"{params.file}: two runs of {params.function} differ, first at row {number}; draw from a "
                "generator with a seed of its own, sort sets and folders, and look at no clock"
            )


def run_once(params: PythonParams, seed: int) -> Iterator[Row]:
    """Yield the rows of one run.

    Raises:
        DecantError: As `generate`, but for what two runs show.
    """
    function = _function(params)
    with _seeded(seed), progress_bar(None, params.function, "rows") as bar:
        first, size = None, 0
        for number, given in enumerate(_guarded(function, params), start=1):
            row = _row(given, params, number)
            first = first or row
            _check_like(row, first, params, number)
            size += sum(each.nbytes for each in row.values() if isinstance(each, np.ndarray))
            if size > MOST_BYTES:
                raise DecantError(
                    f"{params.file}, row {number}: {size:,} bytes of rows, at most {MOST_BYTES:,}; yield less"
                )
            bar.update()
            yield row


def sum_of(row: Row) -> str:
    """Return a sum over names, types, shapes and values of a row."""
    found = hashlib.sha256()
    for name, value in row.items():
        array = isinstance(value, np.ndarray)
        described = f"{name} {value.dtype.str} {value.shape}" if array else f"{name} {value!r}"
        found.update(described.encode() + b"\0" + (value.tobytes() if array else b""))
    return found.hexdigest()[: 2 * SUM]


def _function(params: PythonParams) -> Any:
    """Return the function, once Git tracks all of its code."""
    named = params.named
    if not Path(params.file).is_file():
        raise DecantError(f"No {params.file} here; put it there, or name another")
    check_tracked(named)
    code = sum_of_code(Path(params.file), Path())
    if params.code not in ("", code):
        raise DecantError(f"data.code: {params.file} has the sum {code}, expected {params.code}")
    return function_of(named)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed what a function may draw from without saying so; afterwards all is as it was before."""
    import torch  # which most such functions import; before it the generator would be another

    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _guarded(function: Any, params: PythonParams) -> Iterator[Any]:
    """Yield what the function yields; whatever it raises is a sentence with its file and line."""
    number = 0
    try:
        for row in function(**params.with_):
            number += 1
            yield row
    except DecantError:
        raise
    except (Exception, SystemExit) as error:
        raise DecantError(
            f"{where(error, params.file) or params.file}: {params.function} fails after {number:,} rows: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from None


def _row(given: Any, params: PythonParams, number: int) -> Row:
    """Return a row with arrays for what the network sees.

    Raises:
        DecantError: It is no dict of names, or lacks what is to be predicted, or something is no array.
    """
    place = f"{params.file}, row {number}"
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise DecantError(
            f"{place}: {params.function} yields {type(given).__name__}, expected a dict of named tensors"
        )
    if lacking := [name for name in params.aside if name not in given]:
        raise DecantError(f"{place} has no {lacking[0]!r}{did_you_mean(lacking[0], {*given})}")
    if not (seen := [name for name in given if name not in params.aside]):
        raise DecantError(f"{place} has nothing that a network could see beside {', '.join(params.aside)}")
    arrays = {name: _array(given[name], f"{place}: {name}", params) for name in seen}
    return arrays | {name: _plain(given[name]) for name in params.aside}


def _array(value: Any, place: str, params: PythonParams) -> np.ndarray[Any, Any]:
    """Return a tensor, an array, a number or lists of them as an array; plain fractions become float32."""
    try:
        found = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DecantError(f"{place} is no array of numbers ({one_line(error)})") from None
    if found.dtype.kind not in "biuf":
        raise DecantError(f"{place} is of {found.dtype}, expected numbers")
    if not found.size:
        raise DecantError(f"{place} is of shape {[*found.shape]}, expected one number or more")
    if found.dtype == np.float64 and not hasattr(value, "dtype"):
        found = found.astype(np.float32)
    if found.dtype.kind == "f" and (np.isinf(found).any() or np.isnan(found).any()):
        if np.isinf(found).any():
            raise DecantError(f"{place} is infinite; leave such rows out")
        if params.missing == "fail":
            raise DecantError(
                f"{place} is NaN; leave such rows out; `missing: keep` lets NaN through to a network that "
                "knows it"
            )
    return np.array(found, dtype=found.dtype.newbyteorder("="), order="C")  # a copy: it may be filled anew


def _plain(value: Any) -> Any:
    """Return a value without an array around it; a set in order."""
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return value.tolist() if hasattr(value, "tolist") else value


def _check_like(row: Row, first: Row, params: PythonParams, number: int) -> None:
    """Refuse a row of other names, types or shapes than the first."""
    forms = [
        {n: (str(a.dtype), [*a.shape]) if isinstance(a, np.ndarray) else "" for n, a in each.items()}
        for each in (row, first)
    ]
    if list(forms[0].items()) != list(forms[1].items()):
        own, other = ({n: form for n, form in each.items() if form} for each in forms)
        raise DecantError(
            f"{params.file}, row {number} has {own}, and the first {other}; give all the same names, types "
            "and shapes, in one order"
        )


def _second_run(params: PythonParams) -> list[str]:
    """Return the sums of the rows of another process, in which hashes of words differ."""
    other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    path = os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path]))
    done = subprocess.run(
        [sys.executable, "-m", "tasks.prepare.generators"],
        env=os.environ | {"PYTHONHASHSEED": other, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        told = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise DecantError(
            f"{params.file}: a second run of {params.function} fails, the first did not: {told}"
        )
    return done.stdout.split()


def print_sums() -> None:
    """Print the sum of each row of the function that params.yaml names."""
    params = validate(read_section("data", Any), DataParams, "data")
    seed, printed = derive_seed(read_section("seed", int), "prepare"), sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        for row in run_once(params, seed):
            printed.write(f"{sum_of(row)}\n")


if __name__ == "__main__":
    with report_errors():
        print_sums()
