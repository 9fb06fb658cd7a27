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


def export(
    models: Mapping[str, Checkpoint], test: Examples, threads: int
) -> tuple[dict[str, Export], list[str]]:
    """Return each model's export, and a sentence for each model that cannot be deployed.

    Models are traced one after another, and checked at the same time, as many as there are cores for.

    Args:
        models: By name, in eval mode.
        test: The images to check them on.
        threads: Of one model.
    """
    failed: dict[str, DecantError] = {}
    traced: dict[str, Export] = {}
    for name, model in tqdm(models.items(), desc="export"):
        try:
            traced[name] = _export(model, threads)
        except DecantError as error:
            failed[name] = error
    checks = at_once(partial(_failure, traced, test), list(traced), threads)
    failed |= {
        name: error for name, error in zip(traced, tqdm(checks, "check", len(traced)), strict=True) if error
    }
    good = {name: made for name, made in traced.items() if name not in failed}
    return good, [f"{name}: {failed[name]}" for name in models if name in failed]


def at_once(function: Callable[[str], T], names: Sequence[str], threads: int) -> Iterator[T]:
    """Yield what the function returns for each name, in order; as many run at once as there are cores for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # A new thread does not know of the number that the main one has set.
    with ThreadPoolExecutor(
        max(1, cores // threads), initializer=partial(torch.set_num_threads, threads)
    ) as pool:
        yield from pool.map(function, names)


def _export(model: Checkpoint, threads: int) -> Export:
    made = deploy(model)
    content = made.content
    return Export(model, content, made.forms, made.rounds, open_session(content, threads))


def _failure(exports: Mapping[str, Export], test: Examples, name: str) -> DecantError | None:
    """Return why ONNX Runtime does not compute what PyTorch does, if so."""
    made = exports[name]
    images = test.images if made.rounds else test.at_most(FLOATS).images
    try:
        check_same(name, made.model, made.session, images)
    except DecantError as error:
        return error
    return None
