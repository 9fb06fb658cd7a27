"""Weights of networks of transformers, whose names that package itself keeps up with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from decant.adoption.weights import SHOWN, place_
from decant.errors import DecantError
from decant.networks.answering import Answering
from decant.networks.packages import Transformers, offline
from decant.networks.python import blaming


def place_pretrained_(
    module: nn.Module, architecture: Transformers, tensors: Mapping[str, Tensor], origin: str
) -> list[str]:
    """Put tensors into a network of transformers in place; return what its user should know of it.

    transformers knows by which names older versions of it wrote them, and which it needs no longer.

    Raises:
        DecantError: A tensor has no place, a place no tensor, or a shape differs; or one holds NaN.
    """
    assert isinstance(module, Answering)
    model, found = _loaded(architecture, tensors, 0)
    again, _ = _loaded(architecture, tensors, 1)
    # Of some, transformers does not say that they are missing, and draws them.
    drawn = {name for name in model if not _same(model[name], again[name])}
    if wrong := [*_misplaced(found, drawn, architecture)]:
        rest = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise DecantError(
            f"{origin} does not fit {architecture.origin}, in {len(wrong)} places: "
            f"{'; '.join(wrong[:SHOWN])}{rest}"
        )
    left = sorted(found["unexpected_keys"])
    notes = [f"without {', '.join(left[:SHOWN])}{' and more' if len(left) > SHOWN else ''}"] if left else []
    types = {str(each.dtype) for each in tensors.values() if each.is_floating_point()} - {"torch.float32"}
    return [*notes, *(f"stored as {each}" for each in sorted(types)), *place_(module.network, model, origin)]


def _misplaced(found: Mapping[str, Any], drawn: set[str], architecture: Transformers) -> Iterator[str]:
    """Yield each weight that is missing, of another shape, or without a place."""
    yield from (f"{name} is missing" for name in sorted(drawn | set(found["missing_keys"])))
    for name, there, own in sorted(found["mismatched_keys"]):
        yield f"{name} has the shape {[*there]}, the network's {[*own]}"
    # The class that config.json names has a place for every tensor; a part of it is taken by naming the part.
    if architecture.class_ == (architecture.config.get("architectures") or [""])[0]:
        yield from (f"{name} has no place" for name in sorted(found["unexpected_keys"]))
    yield from map(str, found["error_msgs"])


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _loaded(
    architecture: Transformers, tensors: Mapping[str, Tensor], seed: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state of a network with these weights, others drawn, and what transformers says of them."""
    kind, config = architecture.found()
    with (
        blaming(architecture.origin, "transformers cannot take the weights"),
        offline(),
        _quiet(),
        torch.random.fork_rng(devices=[]),
    ):
        torch.manual_seed(seed)
        model, found = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # so that all are told at once
            output_loading_info=True,
        )
    return model.state_dict(), found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from writing a table of what is told here in a sentence."""
    from transformers.utils import logging

    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()
