"""What each model will be, as far as recipes say it, and which operation cannot do its work on that."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from decant.calibration.ranges import Sparsity
from decant.clip.params import ClipParams
from decant.compression.selection import unskipped
from decant.errors import DecantError
from decant.networks.architectures import Architecture, Resnet, WeightShapes
from decant.prune.channels.structure import Channels
from decant.prune.params import PruneParams
from decant.prune.schedules import OneShot, Rewind
from decant.prune.structures import Blocks, Masked, NOfM, split
from decant.quantize.params import QuantizeParams
from decant.quantize.schemes import Integer
from tasks.validate.images import Data, too_few, untrainable

TEACHER = "teacher"


@dataclass(frozen=True)
class Known:
    """A model, as far as its recipe and those of its ancestors say what it will be.

    Attributes:
        root: The ancestor that was trained from fresh weights: `teacher` or a student.
        architecture: The root's.
        weights: The shapes of the root's weights, by name; none of a network of one's own.
        epochs: Of the teacher's training.
        folded: Whether batch norms are folded.
        cut: Whether channels were removed, so that shapes are smaller than `weights`.
        levels: Which model rounded a weight, by its name.
        grouped: Weights of which a scale is shared by a group of inputs.
        inputs: Which model rounded what a weight is multiplied with, by the weight's name.
        pattern: The model that has a pattern of n of m or of blocks; empty where none has.
        zeros: How many weights are zero at least, of these weights together.
        budgets: What earlier budgets allow at most, by measure and by whether it is a share.
    """

    root: str
    architecture: Architecture
    weights: WeightShapes
    epochs: int
    folded: bool = False
    cut: bool = False
    levels: Mapping[str, str] = field(default_factory=dict)
    grouped: frozenset[str] = frozenset()
    inputs: Mapping[str, str] = field(default_factory=dict)
    pattern: str = ""
    zeros: tuple[tuple[frozenset[str], int], ...] = ()
    budgets: Mapping[tuple[str, bool], float] = field(default_factory=dict)

    @property
    def readers(self) -> frozenset[str]:
        """The weights that lose inputs where channels are removed: all but the first, which reads images."""
        return frozenset([*self.weights][1:])

    def least(self, names: Sequence[str]) -> int:
        """Return how many of these weights are zero at least."""
        return max((count for where, count in self.zeros if where <= {*names}), default=0)


def impossible(name: str, block: Any, parent: Known, data: Data) -> tuple[list[str], Known]:
    """Return why a block cannot be carried out on its parent, each with a place in it, and what it makes.

    Args:
        name: The model's.
        block: Its block, with one of the operations that work on a parent's weights.
        parent: What is known of the model in `from`.
        data: The images.
    """
    if not parent.weights:  # a network of one's own, which nothing is known of before it is built
        return [], parent
    wrong = [*untrainable(block, parent.architecture, parent.folded, data), *too_few(block, data)]
    if getattr(block, "statistics", False) and (parent.folded or not isinstance(parent.architecture, Resnet)):
        why = "an ancestor folded them" if parent.folded else f"{parent.architecture.kind} has none"
        wrong.append(f"statistics: there are no batch norms to estimate them of: {why}")
    try:
        chosen = unskipped(list(parent.weights), getattr(block, "skip", ()))
    except DecantError as error:
        return [*wrong, f"skip: {error}"], parent
    match block:
        case QuantizeParams():
            found = _quantize(name, block, parent, chosen)
        case PruneParams():
            found = _prune(name, block, parent, chosen)
        case ClipParams():
            found = [], _clipped(block, parent, chosen)
        case _:
            found = [], parent
    return [*wrong, *found[0]], found[1]


# --- quantize


def _quantize(
    name: str, block: QuantizeParams, parent: Known, chosen: Sequence[str]
) -> tuple[list[str], Known]:
    wrong = []
    if again := [weight for weight in chosen if weight in parent.levels]:
        wrong.append(
            f"from: {parent.levels[again[0]]} is quantized already; start from its ancestor, or name "
            f"the layers in skip that have levels"
        )
    elif block.activations and (again := [weight for weight in chosen if weight in parent.inputs]):
        wrong.append(
            f"activations: {parent.inputs[again[0]]} rounds the inputs of {_layer(again[0])} already; start "
            f"from its ancestor, or leave activations out"
        )
    every = list(parent.weights)
    ends = {every[0], every[-1]} if block.ends else set()
    grouped = {
        weight
        for weight in chosen
        if isinstance(scheme := block.ends if weight in ends else block.scheme, Integer) and scheme.group
    }
    child = replace(
        parent,
        folded=parent.folded or (block.fold and isinstance(parent.architecture, Resnet)),
        levels={**dict.fromkeys(chosen, name), **parent.levels},
        grouped=parent.grouped | grouped,
        inputs={**(dict.fromkeys(chosen, name) if block.activations else {}), **parent.inputs},
    )
    return wrong, child


# --- prune


def _prune(name: str, block: PruneParams, parent: Known, chosen: Sequence[str]) -> tuple[list[str], Known]:
    if isinstance(block.structure, Channels):
        wrong = [*_no_channels(block.structure, parent, chosen), *_no_way_back(block, parent)]
        child = replace(parent, cut=True, zeros=())
    else:
        names, refused = split(block.structure, {each: parent.weights[each] for each in chosen})
        wrong = [] if parent.cut else [*_no_masks(block, block.structure, parent, names, refused)]
        wrong += _no_way_back(block, parent)
        pattern = name if isinstance(block.structure, NOfM | Blocks) else ""
        child = replace(parent, pattern=parent.pattern or pattern, zeros=_zeros(block, parent, names))
    if block.budget is None:
        return wrong, child
    measure, amount = block.budget.measure, block.budget.amount
    allowed = parent.budgets.get(key := (measure, amount < 1), math.inf)
    if measure in ("macs", "nonzeros") and amount >= allowed:
        wrong.append(f"budget: {measure} {amount:g} is met already: an ancestor has at most {allowed:g}")
    return wrong, replace(child, budgets={**parent.budgets, key: min(amount, allowed)})


def _no_way_back(block: PruneParams, parent: Known) -> Iterator[str]:
    """Yield what keeps a model from going back to how the teacher was trained, where it asks for that."""
    rewind = block.schedule if isinstance(block.schedule, Rewind) else None
    if rewind is None and not block.criterion.fresh:
        return
    place = f"criterion: {block.criterion.kind} goes" if rewind is None else "schedule: rewind goes"
    if parent.root != TEACHER:
        yield f"{place} back to the teacher's training, and {parent.root} had another one"
    if parent.cut:
        yield f"{place} back to the teacher's training, which had all the channels that an ancestor removed"
    if rewind is not None and rewind.weights and parent.folded:
        yield f"{place} back to weights with batch norms, which an ancestor folded: add weights: false"
    if rewind is not None and rewind.epoch >= parent.epochs:
        yield f"schedule.epoch: must be less than the teacher's {parent.epochs} epochs, got {rewind.epoch}"


def _no_channels(structure: Channels, parent: Known, chosen: Sequence[str]) -> Iterator[str]:
    """Yield why no channel can be removed, or not without breaking what an ancestor did."""
    if grouped := sorted(parent.grouped & parent.readers):
        yield (
            f"structure: {parent.levels[grouped[0]]} has a scale for each group of inputs of "
            f"{_layer(grouped[0])}, which would shift: remove channels first, and quantize what is left"
        )
    if parent.pattern:
        yield (
            f"structure: {parent.pattern} has a pattern of weights that lie side by side, which would shift: "
            f"remove channels first"
        )
    steps = 1 if structure.round_to == "auto" else structure.round_to
    floor = -(-structure.minimum // steps) * steps
    last = [*parent.weights][-1]
    counts = {weight: parent.weights[weight][0] for weight in chosen if weight != last}
    if not counts:
        yield "skip: no channel can be removed: all other layers make logits; skip fewer"
    elif max(counts.values()) <= floor:
        yield (
            f"structure: no channel can be removed: layers have at most {max(counts.values())}, and "
            f"{floor} may be left; lower round_to or minimum"
        )


def _no_masks(
    block: PruneParams, structure: Masked, parent: Known, names: Sequence[str], refused: Mapping[str, str]
) -> Iterator[str]:
    """Yield why no weight can be removed so."""
    if not names:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        yield f"structure: no layer can be pruned so: {reasons}"
    elif block.budget is not None and block.budget.sparsity is not None:
        yield from _sparsity(block.budget.sparsity, block, structure, parent, names)


def _sparsity(
    sparsity: float, block: PruneParams, structure: Masked, parent: Known, names: Sequence[str]
) -> Iterator[str]:
    """Yield why a sparsity cannot be met: it would empty a layer, or there are as many zeros already."""
    total = sum(math.prod(parent.weights[each]) for each in names)
    units, asked = total // structure.size, round(sparsity * total / structure.size)
    if asked > units - len(names):
        nearest = (units - len(names)) / units
        yield (
            f"budget: sparsity {sparsity} leaves less than one unit for each of {len(names)} layers; the "
            f"nearest possible is {nearest:.6g}"
        )
    zeros = parent.least(names) // structure.size
    if asked < zeros or (asked == zeros and isinstance(block.schedule, OneShot)):
        yield (
            f"budget: sparsity {sparsity} is there already: {zeros * structure.size:,} of the {total:,} "
            f"weights are zero in an ancestor; ask for a higher sparsity, or prune an ancestor"
        )


def _zeros(block: PruneParams, parent: Known, names: Sequence[str]) -> tuple[tuple[frozenset[str], int], ...]:
    """Return what is known of zeros once these weights are pruned."""
    if parent.cut or not names:
        return parent.zeros
    shapes = [parent.weights[each] for each in names]
    if isinstance(block.structure, NOfM):
        count = sum(block.structure.fixed(shape) for shape in shapes)
    elif block.budget is not None and block.budget.sparsity is not None:
        size = getattr(block.structure, "size", 1)
        count = round(block.budget.sparsity * sum(map(math.prod, shapes)) / size) * size
    else:
        return parent.zeros
    return (*parent.zeros, (frozenset(names), count))


# --- clip


def _clipped(block: ClipParams, parent: Known, chosen: Sequence[str]) -> Known:
    if parent.cut or not isinstance(block.cut, Sparsity):
        return parent
    count = sum(round(block.cut.sparsity * math.prod(parent.weights[each])) for each in chosen)
    return replace(parent, zeros=(*parent.zeros, (frozenset(chosen), count)))


def _layer(weight: str) -> str:
    return weight.removesuffix(".weight")
