"""From a source's own training and test sets to the three splits, drawn by a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decant.errors import DecantError
from tasks.prepare import files, idx
from tasks.prepare.files import Found
from tasks.prepare.sources import (
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    DigitsSource,
    IdxSource,
    Source,
)


@dataclass(frozen=True)
class Split:
    """Images and their labels.

    Attributes:
        images: Pixels [N, C, H, W], uint8 in [0, 255].
        labels: Classes [N], whole numbers of any width.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.integer[Any]]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """One image [C, H, W]."""
        return self.images.shape[1:]

    def parts(self, rows: int) -> Iterator[Split]:
        """Yield the images in order, `rows` at a time."""
        for start in range(0, len(self), rows):
            yield Split(self.images[start : start + rows], self.labels[start : start + rows])

    def take(self, rows: NDArray[np.intp]) -> Split:
        """Return these rows, in this order."""
        return Split(self.images[rows], self.labels[rows])


def draw(source: Source, validation: int, seed: int) -> dict[str, Split]:
    """Return the splits `train`, `validation` and `test` of a source.

    The first two are the source's training set in shuffled order, so that any first rows of them are a fair
    sample; `test` is the source's own test set, in its order.

    Args:
        source: Where the images come from.
        validation: How many training images to hold out, at least 1.
        seed: Non-negative; the same seed gives the same splits.

    Raises:
        DecantError: The files are not to be had or are broken, or no image would be left to train on.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    training, test = _digits(source, generator) if isinstance(source, DigitsSource) else _idx(source)
    if validation >= len(training):
        raise DecantError(
            f"params.yaml: data.validation holds out {validation} of the {len(training)} training images of "
            f"{source.name}, which leaves none to train on; it must be below {len(training)}"
        )
    rows = generator.permutation(len(training))
    return {
        "train": training.take(rows[validation:]),
        "validation": training.take(rows[:validation]),
        "test": test,
    }


def _idx(source: IdxSource) -> tuple[Split, Split]:
    found = files.find(source)
    training = _decode(found[TRAIN_IMAGES], found[TRAIN_LABELS], source)
    test = _decode(found[TEST_IMAGES], found[TEST_LABELS], source)
    if training.images.shape[1:] != test.images.shape[1:]:
        sizes = " and ".join("x".join(map(str, split.images.shape[2:])) for split in (training, test))
        raise DecantError(
            f"{found[TRAIN_IMAGES].origin} and {found[TEST_IMAGES].origin} hold images of different sizes, "
            f"{sizes} pixels; replace one of them"
        )
    return training, test


def _decode(images: Found, labels: Found, source: IdxSource) -> Split:
    pixels = idx.decode(images.content, 3, images.origin)
    classes = idx.decode(labels.content, 1, labels.origin)
    if pixels.size == 0:
        raise DecantError(f"{images.origin} holds no image; replace it")
    if len(pixels) != len(classes):
        raise DecantError(
            f"{images.origin} has {len(pixels)} images and {labels.origin} {len(classes)} labels; "
            "replace the one that is wrong"
        )
    unknown = np.flatnonzero(classes >= len(source.classes))
    if len(unknown):
        raise DecantError(
            f"{labels.origin} has the label {classes[unknown[0]]} at position {unknown[0]} ({len(unknown)} "
            f"such in all); {source.name} has the labels 0 to {len(source.classes) - 1}; replace the file"
        )
    return Split(pixels[:, np.newaxis], classes)


def _digits(source: DigitsSource, generator: np.random.Generator) -> tuple[Split, Split]:
    # Imported here because it takes seconds, which the other sources need not pay.
    from sklearn.datasets import load_digits

    digits = load_digits()
    levels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # the source counts 0 to 16
    all_of_them = Split(levels[:, np.newaxis], digits.target.astype(np.uint8))
    rows = generator.permutation(len(all_of_them))
    return all_of_them.take(rows[source.test :]), all_of_them.take(rows[: source.test])
