"""The batches of an epoch: which examples, in which order, augmented, on the device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from decant.examples import Batch, Examples, Rows, tensors_in
from decant.networks.devices import moved, sent
from decant.row_groups import full, order
from decant.training.loading import loaded
from decant.training.recipe import Training
from decant.training.spread import Spread
from decant.training.teaching import Teaching

WINDOW = 32
"""How many batches of texts are sorted by length at a time."""


def batches(
    train: Examples, training: Training, seed: int, device: torch.device, spread: Spread | None = None
) -> Iterator[tuple[Batch, Tensor | None]]:
    """Yield augmented batches, on a device, in a random order; the last is left out where it is not full.

    A batch of texts has as many places as the longest of its own, and holds texts of like lengths. Of several
    processes each has its share of the examples, and all labels.
    """
    generator, spread = torch.Generator().manual_seed(seed), spread or Spread()
    place = tensors_in(train.images)[0].device
    chosen = (moved(rows, place) for rows in _chosen(train, training, generator))
    mine = _mine(spread, taken_in(train, training), training.batch_size)
    for images, labels in loaded(train, chosen, partial(spread.rows, size=training.batch_size)):
        images, labels = sent((images, labels), device)
        if isinstance(images, Tensor):
            images = training.augmentation.apply(images, generator, mine)
        elif isinstance(images, Rows) and (own := images.lengths) is not None:
            longest = max(1, int(spread.processes.stacked(own.max()).max()))
            images, labels = images.cut(longest), _first_places(labels, longest)
        yield images, labels


def _mine(spread: Spread, taken: int, size: int) -> Tensor | None:
    """Return which examples of a step [N] a process has, as bool; None where it has all of them."""
    if not spread.several:
        return None
    found = torch.zeros(taken, dtype=torch.bool)
    found[spread.rows(torch.arange(taken), size)] = True
    return found


def _chosen(train: Examples, training: Training, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield which examples each step of an epoch takes [B], on the processor, as the generator says."""
    size = taken_in(train, training)
    windows = full(order(len(train), train.width, generator), size)
    if (lengths := lengths_in(train.images)) is not None:
        windows = (bucketed(rows, lengths.cpu(), size, generator) for rows in windows)
    return (rows for window in windows for rows in window.split(size))


def told_rows(
    teaching: Teaching | None, train: Examples, training: Training, seed: int
) -> Iterator[Tensor | None]:
    """Yield which examples the batches of the same seed have, where a loss has to know; else None."""
    if teaching is None or not teaching.needs_rows:
        return itertools.repeat(None)
    return _chosen(train, training, torch.Generator().manual_seed(seed))


def lengths_in(images: Batch) -> Tensor | None:
    """Return how many tokens each text has [N]; None of what is no text of free length."""
    return images.lengths if isinstance(images, Rows) else None


def bucketed(order: Tensor, lengths: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return rows in an order in which those of a batch are of like lengths, batches in random order.

    `WINDOW` batches are sorted at a time, so that a text meets others in each epoch.

    Args:
        order: Rows in random order [M], M a multiple of `size`.
        lengths: Of all rows [N].
        size: Of a batch.
        generator: Draws the order of the batches.
    """
    windows = [rows[lengths[rows].argsort(stable=True)] for rows in order.split(WINDOW * size)]
    batched = torch.cat(windows).reshape(-1, size)
    return batched[torch.randperm(len(batched), generator=generator)].flatten()


def _first_places(labels: Tensor | None, length: int) -> Tensor | None:
    """Return the labels of the first places where each place has one, a token, and others as they are."""
    if labels is None or labels.dim() == 1 or labels.is_floating_point():
        return labels
    return labels[:, :length]


def steps_in(train: Examples, training: Training) -> int:
    """Return the number of full steps in an epoch; at least one, of all there is."""
    return len(train) // taken_in(train, training)


def taken_in(train: Examples, training: Training) -> int:
    """Return the number of images of a step."""
    return min(training.batch_size * training.accumulate, len(train))
