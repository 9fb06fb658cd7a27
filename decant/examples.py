"""Examples as tensors, pictures or any others, and the two splits that compression may look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from decant.errors import DecantError
from decant.inputs import LENGTH, MASK, Inputs, Kind, inputs_of
from decant.lazy import torch
from decant.row_groups import RowGroups, in_groups
from decant.targets import CLASSES, Target

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Inputs of a network that are no pictures: named tensors of one length.

    Attributes:
        tensors: By name, [N, ...] each, of any type; a network is called with them in this order. Such as
            are larger than memory are in row groups; what is taken from them is not.
        inputs: What a network takes of them, where that is more than they show: free lengths, whole numbers
            that none of them holds.
        kinds: What they hold, by name, where that is more than tensors.

    Raises:
        DecantError: There are none, or their lengths differ.
    """

    tensors: Mapping[str, Tensor | RowGroups]
    inputs: Inputs | None = None
    kinds: Mapping[str, Kind] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse tensors that are no rows of one table."""
        lengths = {name: len(tensor) if tensor.dim() else 0 for name, tensor in self.tensors.items()}
        if len(set(lengths.values())) != 1:
            found = ", ".join(f"{name} has {length}" for name, length in lengths.items()) or "there are none"
            raise DecantError(f"Inputs need the same number of rows each, and {found}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: slice | Tensor) -> Rows:
        """Return some of the rows: of a slice, or at the indices [M], int64, or where a mask [N] is True."""
        return replace(self, tensors={name: tensor[rows] for name, tensor in self.tensors.items()})

    @cached_property
    def lengths(self) -> Tensor | None:
        """How many tokens each row has [N], int64; None where rows are no texts of free length."""
        free = self.inputs is not None and MASK in self.inputs and LENGTH in self.inputs[MASK].shape
        return torch.cat([group.sum(1) for group in in_groups(self.tensors[MASK])]) if free else None

    def cut(self, length: int) -> Rows:
        """Return the first `length` places of texts, of each tensor that has a place for each token."""
        if self.inputs is None:
            return self
        shapes = {name: each.shape for name, each in self.inputs.items()}
        return replace(
            self,
            tensors={
                name: tensor[:].narrow(1 + shapes[name].index(LENGTH), 0, length)
                if LENGTH in shapes[name]
                else tensor
                for name, tensor in self.tensors.items()
            },
        )

    def split(self, size: int) -> Iterator[Rows]:
        """Yield the rows in order, `size` at a time; none where there are none."""
        return (self[start : start + size] for start in range(0, len(self), size))


Batch: TypeAlias = "Tensor | RowGroups | Rows"
"""Inputs: pixels [N, C, H, W], uint8 in [0, 255], or rows of any tensors; either may lie in mapped files."""


def tensors_in(batch: Batch) -> tuple[Tensor | RowGroups, ...]:
    """Return the tensors of a batch as they lie there, in order."""
    return tuple(batch.tensors.values()) if isinstance(batch, Rows) else (batch,)


@dataclass(frozen=True)
class Examples:
    """Inputs of a network and their labels.

    Attributes:
        images: Pixels [N, C, H, W], uint8 in [0, 255], which a network sees in [0, 1]; or rows of any
            tensors, which it sees as they are.
        labels: Classes [N], int64 in [0, len(classes)), or the numbers or marks [N, K], float32, of another
            target; None where nothing is known but what a teacher answers.
        classes: The classes' names; empty where there are none.
        target: What the labels are.
        loaders: How many processes read batches ahead of a training; the batches are the same with any.

    Raises:
        DecantError: There is not one label for each, or one is no class.
    """

    images: Batch
    labels: Tensor | None
    classes: tuple[str, ...]
    target: Target = CLASSES
    loaders: int = 0

    def __post_init__(self) -> None:
        """Refuse labels that are none of these examples."""
        if self.labels is None:
            return
        if len(self.labels) != len(self.images):
            raise DecantError(
                f"There are {len(self.labels):,} labels of {len(self.images):,} examples; give one for each"
            )
        if self.classes and self.target.width is None and self.labels.dim() == 1 and len(self.labels):
            _check_classes(self.labels, len(self.classes))

    @property
    def shape(self) -> tuple[int, int, int] | Inputs:
        """Channels, height and width of one picture; or what takes these rows, by name."""
        if isinstance(self.images, Rows):
            return self.images.inputs or inputs_of(self.images.tensors, self.images.kinds)
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def known_labels(self) -> Tensor:
        """The labels [N].

        Raises:
            DecantError: There are none.
        """
        if self.labels is None:
            raise DecantError(
                "These examples have no labels; take what needs none, such as a loss on the teacher's outputs"
            )
        return self.labels

    def __len__(self) -> int:
        return len(self.images)

    @property
    def nbytes(self) -> int:
        """How many bytes the inputs take."""
        return sum(tensor.nbytes for tensor in tensors_in(self.images))

    @property
    def width(self) -> int:
        """How many bytes the inputs of one example take."""
        return self.nbytes // max(len(self), 1)

    def first(self, count: int) -> Examples:
        """Return the first `count` examples; they are a fair sample only where the order is random.

        Raises:
            DecantError: There are not as many.
        """
        if count > len(self):
            raise DecantError(f"{count:,} images are asked for, and there are {len(self):,}; ask for fewer")
        return self.at_most(count)

    def at_most(self, count: int) -> Examples:
        """Return the first `count` examples, or all where there are fewer."""
        if count >= len(self):
            return self
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, images=self.images[:count], labels=labels)


def _check_classes(labels: Tensor, count: int) -> None:
    """Refuse labels [N] that are no whole numbers in [0, count)."""
    if labels.dtype != torch.int64:
        found = str(labels.dtype).removeprefix("torch.")
        raise DecantError(f"Labels are {found}, expected the numbers of classes, int64 in [0, {count})")
    if not 0 <= int(labels.min()) <= int(labels.max()) < count:
        raise DecantError(
            f"Labels reach from {int(labels.min())} to {int(labels.max())}, and there are {count} classes, 0 "
            f"to {count - 1}; number the classes from 0"
        )


@dataclass(frozen=True)
class Splits:
    """What an operation may look at; the test split is for the final measurement alone.

    Attributes:
        train: Examples to learn from and to calibrate with, in random order.
        validation: Examples for curves, early stopping and the choice between candidates.
    """

    train: Examples
    validation: Examples

    @property
    def sizes(self) -> dict[str, int]:
        """How many examples each split has, by its name."""
        return {"training": len(self.train), "validation": len(self.validation)}


def pixels(images: Tensor, memory_format: torch.memory_format | None = None) -> Tensor:
    """Return uint8 images as float32 in [0, 1], which is what every network of pictures takes.

    Args:
        images: Of any shape.
        memory_format: How the result lies in memory; None for as the images do.

    Raises:
        DecantError: They are of another type, such as fractions in [0, 1], which would become black.
    """
    if images.dtype != torch.uint8:
        raise DecantError(
            f"Pictures are {str(images.dtype).removeprefix('torch.')}, expected uint8 in [0, 255]; give "
            "`(255 * pictures).round().to(torch.uint8)` of fractions in [0, 1], or call the network itself "
            "with these"
        )
    kept = torch.preserve_format if memory_format is None else memory_format
    return images.to(torch.float32, memory_format=kept).div_(255)


def arguments(batch: Batch, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """Return what a network is called with for a batch: new tensors, which it may change in place.

    Args:
        batch: Pictures, or rows; rows go in as they are, in order.
        dtype: Of all that are fractions, such as torch.float64; None keeps each one's own.
    """
    if isinstance(batch, Rows):
        found = tuple(t[:] if isinstance(t, RowGroups) else t.clone() for t in batch.tensors.values())
    else:
        found = (pixels(batch[:] if isinstance(batch, RowGroups) else batch),)
    return found if dtype is None else tuple(t.to(dtype) if t.is_floating_point() else t for t in found)
