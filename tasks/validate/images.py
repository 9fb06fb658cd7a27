"""Which trainings and ranges ask the images for more than they can give, known before any of them is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from decant.calibration.ranges import Best
from decant.clip.params import ClipParams
from decant.networks.architectures import Architecture, Resnet, Shape
from decant.networks.augmentation import Augmentation
from decant.quantize.params import QuantizeParams
from decant.quantize.schemes import Stepped
from decant.schema import Section
from decant.training.recipe import Training

S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Data:
    """The images that there are.

    Attributes:
        shape: One of them [C, H, W]; None of data of one's own, which are not known before they are read.
        training: How many are trained on.
    """

    shape: Shape | None
    training: int


def untrainable(block: Section, architecture: Architecture, folded: bool, data: Data) -> Iterator[str]:
    """Yield why a training in a block cannot be run on a network, whose batch norms may be folded."""
    if data.shape is None:
        return
    sides = data.shape[1:]
    for place, training in _sections(block, Training):
        batch = min(training.batch_size, data.training)
        normalized = not folded and training.epochs > 0
        if normalized and isinstance(architecture, Resnet) and architecture.fewest(data.shape, batch) == 1:
            yield (
                f"{place}batch_size: {batch} image shrinks to one pixel in this network, and a batch norm "
                f"needs two numbers or more; take a larger batch, or fewer stages"
            )
    for place, augmentation in _sections(block, Augmentation):
        if (shift := augmentation.shift) >= min(sides):
            yield (
                f"{place}shift: {shift} moves images of {sides[0]} x {sides[1]} pixels out of "
                f"sight; take less than {min(sides)}"
            )


def _sections(block: Section, kind: type[S], place: str = "") -> Iterator[tuple[str, S]]:
    """Yield every section of a kind inside a block, with its place in it, such as `schedule.training.`."""
    for name in type(block).model_fields:
        value, inside = getattr(block, name), f"{place}{name}."
        if isinstance(value, kind):
            yield inside, value
        elif isinstance(value, Section):
            yield from _sections(value, kind, inside)


def too_few(block: Any, data: Data) -> Iterator[str]:
    """Yield where `best` needs more images than are left beside those that ranges are taken from."""
    for place, best, used in _bests(block):
        asked, rest = min(best.images, data.training), data.training - min(used, data.training)
        if asked > rest:
            yield (
                f"{place}: best needs {asked:,} training images beside the {used:,} that ranges are taken "
                f"from, and there are {data.training:,}; lower one of the two `images`"
            )


def _bests(block: Any) -> Iterator[tuple[str, Best, int]]:
    """Yield each range that is chosen on images, its place, and how many images were used before."""
    if isinstance(block, ClipParams) and isinstance(block.cut, Best):
        yield "cut.images", block.cut, block.images if block.target == "activations" else 0
    if not isinstance(block, QuantizeParams):
        return
    used = block.images if block.activations is not None else 0
    if isinstance(block.scheme, Stepped) and isinstance(block.scheme.range, Best):
        yield "scheme.range.images", block.scheme.range, used
    if block.activations is not None and isinstance(block.activations.range, Best):
        yield "activations.range.images", block.activations.range, used
