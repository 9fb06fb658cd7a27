"""How many bits each layer gets: what every width costs, one layer at a time, and the best choice."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from decant.checkpoints.activations import InputGrid, stepped_weights
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import FREE, Constraints
from decant.checkpoints.files import save, size_bytes
from decant.compression.ledger import Tables
from decant.costs.divergence import distance
from decant.errors import DecantError
from decant.examples import Batch, Examples
from decant.networks.execution import predict
from decant.networks.record import record_of
from decant.progress import progress_bar
from decant.quantize.mixed_precision.knapsack import cheapest
from decant.quantize.mixed_precision.params import Mixed
from decant.quantize.quantizable import rounded_layers

FLOAT = 32
"""Bits of a weight, or of an input, that is not rounded."""

LONGEST = 1.1754943508222875e-38
"""The step of a grid that takes the most digits to write; one that is learned later may have as many."""

Options = Mapping[str, Mapping[int, Constraints]]
"""The constraints on each weight at each width that it may have, by its name and the bits."""

Rounded = Callable[[Mapping[str, Constraints]], Checkpoint]
"""Returns the start with the named weights rounded to levels, by the recipe's own method."""


@dataclass(frozen=True)
class WidthAllocation:
    """A width for each weight, within a budget.

    Attributes:
        widths: Bits by the weight's name.
        tables: For the ledger: the width of each weight that had a choice, and what each one costs.
            Empty where nothing had to be traded.
        measure: What the budget counts: `bytes` or `bit_operations`.
        limit: The most that is allowed.
        widest: Whether the budget allows the largest width everywhere.
    """

    widths: Mapping[str, int]
    tables: Tables
    measure: str
    limit: int
    widest: bool

    def check(self, child: Checkpoint) -> dict[str, str]:
        """Return, for the lineage, how much of the budget the finished model uses.

        Raises:
            DecantError: It is more than the budget: something was added that the start did not have.
        """
        if over := self.exceeded(child):
            raise DecantError(over[0])
        message = f"{spent(child, self.measure):,} of {self.limit:,} {_unit(self.measure)}"
        return {"budget": f"{message}, every layer at its widest" if self.widest else message}

    def exceeded(self, child: Checkpoint) -> list[str]:
        """Return by how much a model is above the budget; nothing where it is not."""
        if (used := spent(child, self.measure)) <= self.limit:
            return []
        return [
            f"mixed.budget: the model has {used:,} {_unit(self.measure)} and {self.limit:,} are allowed; "
            f"lower the budget by {used - self.limit:,}"
        ]


def allocate(
    start: Checkpoint,
    options: Options,
    rounded: Rounded,
    *,
    mixed: Mixed,
    teacher: Checkpoint,
    validation: Examples,
    learned: bool = False,
) -> WidthAllocation:
    """Return the widths whose summed cost is least within the budget.

    The cost of a width is the `distance` of the outputs, of classes KL(start || rounded) of the logits in
    nats, with one weight alone rounded so.
    What it takes of the budget is measured as well, on disk by writing it, and before anything is rounded.
    Where the budget allows the largest width everywhere, that is taken and no cost is measured.

    Args:
        start: The network before its weights are rounded, and otherwise as it will be written: folded, with
            the grids of its layers' inputs. Untouched.
        options: What each weight may be. One with a single width has no choice and counts into the budget.
        rounded: Rounds some weights of the start.
        mixed: The budget, and how many images.
        teacher: What shares are of.
        validation: Images that chose nothing else.
        learned: Whether a training follows, which may learn the steps of grids: they count as many digits
            as they can have.

    Raises:
        DecantError: The budget is below the least that is possible, which is named; or logits are NaN.

    References:
        Yao et al., HAWQ-V3, 2020. https://arxiv.org/abs/2011.10680
    """
    measure = mixed.budget.measure
    limit = mixed.budget.limit(spent(teacher, measure))
    widest = {name: max(row) for name, row in options.items()}
    counted = _longest(start) if learned else start
    most = spent(counted.narrowed({name: options[name][bits] for name, bits in widest.items()}), measure)
    if most <= limit:
        return WidthAllocation(widest, {}, measure, limit, widest=True)
    sizes = _sizes(counted, options, measure)
    # Whatever no choice changes; of the largest model, whose table of streams on disk is the longest.
    fixed = most - sum(sizes[name][bits] for name, bits in widest.items())
    if (least := fixed + sum(min(row.values()) for row in sizes.values())) > limit:
        raise DecantError(
            f"mixed.budget: {limit:,} {_unit(measure)} cannot be met: the least that these widths leave is "
            f"{least:,}; ask for that or more, allow fewer bits, or skip fewer layers"
            + (
                ", or round the inputs of layers too"
                if measure == "bit_operations" and not start.grids
                else ""
            )
        )
    costs = _costs(start, options, rounded, validation.first(mixed.images).images)
    widths = cheapest(costs, sizes, limit - fixed)
    tables = {
        name: (f"{widths[name]} bits", {f"{bits} bits": cost for bits, cost in row.items()})
        for name, row in costs.items()
        if len(row) > 1
    }
    return WidthAllocation(widths, tables, measure, limit, widest=False)


def spent(model: Checkpoint, measure: str) -> int:
    """Return the model's bytes on disk, by writing it, or its bit operations for one image."""
    return bit_operations(model) if measure == "bit_operations" else sum(_written(model))


def bit_operations(model: Checkpoint) -> int:
    """Return the sum over layers of multiplications x bits of a weight x bits of an input, for one image.

    Zeros count as much as any other weight, and a weight of three levels has 2 bits.

    References:
        Yao et al., HAWQ-V3, 2020. https://arxiv.org/abs/2011.10680
    """
    record, layers, total = record_of(model.module), rounded_layers(model.module), 0
    within = stepped_weights(model.module, model.grids)
    for name in record.weights:
        levels = model.constraints.get(name, FREE).levels
        grid = within.get(name) or model.grids.get(layers.get(name, ""))
        bits = (FLOAT if levels is None else levels.bits) * (FLOAT if grid is None else grid.bits)
        total += record.macs_of(name) * bits
    return total


def _longest(start: Checkpoint) -> Checkpoint:
    """Return the start, to be written and not to be run, with grids that take the most bytes."""
    grids = {
        name: replace(grid, scale=LONGEST) if isinstance(grid, InputGrid) else grid
        for name, grid in start.grids.items()
    }
    return replace(start, grids=grids)


def _sizes(start: Checkpoint, options: Options, measure: str) -> dict[str, dict[int, int]]:
    """Return what each width takes of the budget beyond what the weight takes unrounded."""
    before = _counted(start, measure)
    return {
        name: {bits: _counted(start.narrowed({name: held}), measure) - before for bits, held in row.items()}
        for name, row in options.items()
    }


def _costs(
    start: Checkpoint, options: Options, rounded: Rounded, images: Batch
) -> dict[str, dict[int, float]]:
    """Return how far the outputs move, of classes in nats, with each weight alone at each of its widths."""
    expected, apart = predict(start.module, images).double(), distance(start.classes)
    costs = {name: dict.fromkeys(row, 0.0) for name, row in options.items()}
    cells = [(name, bits) for name, row in options.items() if len(row) > 1 for bits in row]
    for name, bits in progress_bar(cells, "widths", "roundings"):
        cost = apart(predict(rounded({name: options[name][bits]}).module, images), expected)
        if not math.isfinite(cost):
            raise DecantError(f"{name} at {bits} bits: the logits are NaN or infinite; skip its layer")
        costs[name][bits] = max(cost, 0.0)  # equal logits can give -1e-17
    return costs


def _counted(model: Checkpoint, measure: str) -> int:
    """Return the part of what is spent that adds up, to the last byte, over layers."""
    return bit_operations(model) if measure == "bit_operations" else _written(model)[0]


def _written(model: Checkpoint) -> tuple[int, int]:
    """Return the bytes on disk of description and numbers, and of the table of streams before the numbers.

    The table names the streams' lengths in digits and is padded: it alone is no sum over layers.
    """
    with tempfile.TemporaryDirectory(prefix="decant-size-") as folder:
        save(model, Path(folder))
        with (Path(folder) / "model.safetensors").open("rb") as file:
            table = 8 + int.from_bytes(file.read(8), "little")
        return size_bytes(Path(folder)) - table, table


def _unit(measure: str) -> str:
    return measure.replace("_", " ")
