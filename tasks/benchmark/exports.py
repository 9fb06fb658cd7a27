"""Every model as ONNX, checked against PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import md5
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from decant.checkpoints.checkpoint import Checkpoint
from decant.errors import DecantError
from decant.examples import Examples
from decant.export.deploy import check_same, deploy
from decant.export.kernels import Forms
from decant.export.runtime import open_session

FLOATS = 1000
"""Test images that a model in float32 is checked on; all where anything is rounded or packed."""

T = TypeVar("T")


@dataclass(frozen=True)
class Export:
    """One model as it ships.

    Attributes:
        model: The model in PyTorch.
        content: The ONNX file.
        forms: How each layer is multiplied, by its name.
        rounds: Whether anything is computed on other numbers than float32.
        session: The file, opened in ONNX Runtime.
    """

    model: Checkpoint
    content: bytes
    forms: Forms
    rounds: bool
    session: Any

    @cached_property
    def md5(self) -> str:
        """The file's sum, as DVC computes it."""
        return md5(self.content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Failure:
    """What went wrong with one model, and with no other."""

    reason: str


def export(
    names: Sequence[str], load: Callable[[str], Checkpoint], test: Examples, threads: int
) -> tuple[dict[str, Export], dict[str, Failure]]:
    """Return each model's export, and the failure of each that cannot be loaded or deployed.

    Models are traced one after another, and checked at the same time, as many as there are cores for.

    Args:
        names: Of the models.
        load: Returns a model by its name, in eval mode.
        test: The images to check them on.
        threads: Of one model.
    """
    made = {name: attempt(_export, load, name, threads) for name in tqdm(names, desc="export")}
    failed, traced = divided(made)
    checks = at_once(partial(attempt, _check, traced, test), list(traced), threads)
    wrong, _ = divided(dict(zip(traced, tqdm(checks, "check", len(traced)), strict=True)))
    return {name: each for name, each in traced.items() if name not in wrong}, failed | wrong


def attempt(function: Callable[..., T], *arguments: Any) -> T | Failure:
    """Return what the function returns, or how it failed: of whatever kind, it is this model's alone."""
    try:
        return function(*arguments)
    except DecantError as error:
        return Failure(str(error))
    except Exception as error:  # libraries raise whatever they like at a model that they cannot read or run
        first = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), "nothing more is known"
        )
        return Failure(f"{type(error).__name__}: {first}")


def divided(made: Mapping[str, T | Failure]) -> tuple[dict[str, Failure], dict[str, T]]:
    """Return the failures and what was made, by name."""
    failed = {name: each for name, each in made.items() if isinstance(each, Failure)}
    return failed, {name: each for name, each in made.items() if not isinstance(each, Failure)}


def at_once(function: Callable[[str], T], names: Sequence[str], threads: int) -> Iterator[T]:
    """Yield what the function returns for each name, in order; as many run at once as there are cores for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # A new thread does not know of the number that the main one has set.
    with ThreadPoolExecutor(
        max(1, cores // threads), initializer=partial(torch.set_num_threads, threads)
    ) as pool:
        yield from pool.map(function, names)


def _export(load: Callable[[str], Checkpoint], name: str, threads: int) -> Export:
    model = load(name)
    made = deploy(model)
    content = made.content
    return Export(model, content, made.forms, made.rounds, open_session(content, threads))


def _check(exports: Mapping[str, Export], test: Examples, name: str) -> None:
    """Check that ONNX Runtime computes what PyTorch does."""
    made = exports[name]
    images = test.images if made.rounds else test.at_most(FLOATS).images
    check_same(name, made.model, made.session, images)
