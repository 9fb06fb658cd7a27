"""Students: one proposed from a budget in the teacher's family, and weights that begin as the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

from pydantic import Discriminator, Tag, model_validator

from decant.errors import DecantError
from decant.lazy import torch
from decant.networks.architectures import Architecture, Lenet300100, Mlp, OwnArchitecture, Resnet, Shape
from decant.schema import Amount, Section

BYTES = 4
"""Of a weight in float32."""


class StudentBudget(Section):
    """What a student may have at most: exactly one of these.

    Attributes:
        kib: KiB of its parameters in float32, biases and batch norms included.
        macs: Multiplications for one image.
    """

    kib: Amount | None = None
    macs: Amount | None = None

    @model_validator(mode="after")
    def _one(self) -> StudentBudget:
        if (self.kib is None) == (self.macs is None):
            raise ValueError("give exactly one of kib and macs")
        return self

    @property
    def told(self) -> str:
        """Its measure and amount."""
        return f"{self.macs:g} macs" if self.kib is None else f"{self.kib:g} KiB"


class Proposed(Section):
    """The widest network of the teacher's family within a budget: all its widths times the same share."""

    budget: StudentBudget


def _form(value: Any) -> str:
    budget = value.get("budget") if isinstance(value, dict) else getattr(value, "budget", None)
    return "architecture" if budget is None else "proposed"


Student = Annotated[
    Annotated[Architecture, Tag("architecture")] | Annotated[Proposed, Tag("proposed")], Discriminator(_form)
]


def narrower(architecture: Any) -> tuple[int, Callable[[int], OwnArchitecture]]:
    """Return the widest layer of a network, and the network whose widest layer has so many channels.

    Raises:
        DecantError: The architecture has no widths.
    """
    if isinstance(architecture, Lenet300100):
        architecture = Mlp(hidden=(300, 100))
    if not isinstance(architecture, Resnet | Mlp):
        kind = getattr(architecture, "kind", "this network")
        raise DecantError(
            f"student.budget: {kind} has no widths to make smaller; name the student, or take a resnet or "
            "mlp as teacher"
        )
    field = "widths" if isinstance(architecture, Resnet) else "hidden"
    whole: tuple[int, ...] = getattr(architecture, field)

    def of_width(width: int) -> OwnArchitecture:
        scaled = tuple(max(1, round(each * width / max(whole))) for each in whole)
        return architecture.model_copy(update={field: scaled})

    return max(whole), of_width


def propose(student: Proposed, teacher: Any, shape: Shape, classes: int) -> OwnArchitecture:
    """Return the widest network of the teacher's family within the budget.

    Raises:
        DecantError: The family has no widths, or not even a width of 1 is within the budget.
    """
    widest, of_width = narrower(teacher)
    cost, budget = _cost(student.budget, shape, classes)
    low, high = 0, widest  # low is within the budget, above high is not asked for
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(of_width(middle)) <= budget else (low, middle - 1)
    if not low:
        least = cost(of_width(1)) / (1024 if student.budget.kib else 1)
        raise DecantError(
            f"student.budget: {student.budget.told} is less than the narrowest network of the teacher's "
            f"family has, {least:,.1f}; raise it, or name a student"
        )
    return of_width(low)


def _cost(budget: StudentBudget, shape: Shape, classes: int) -> tuple[Callable[[Any], int], float]:
    from decant.costs.counts import macs, parameters
    from decant.networks.architectures import build

    def in_bytes(architecture: Any) -> int:
        with torch.device("meta"):
            return BYTES * parameters(architecture.build(shape, classes))

    if budget.kib is not None:
        return in_bytes, 1024 * budget.kib
    assert budget.macs is not None
    return lambda architecture: macs(build(architecture, shape, classes, 0).eval()), budget.macs


def inherit_(student: Any, architecture: Any, teacher: Any, of_teacher: Any) -> int:
    """Copy the first channels of the teacher's tensors into a student, in place; return how many parameters.

    Layers of one name are one another's; blocks of a residual stage are counted within it. A tensor is copied
    where it has as many dimensions and none is longer than the teacher's.

    Args:
        student: The network.
        architecture: Its description.
        teacher: The network that it begins from.
        of_teacher: Its description.

    Raises:
        DecantError: Not one tensor fits.
    """
    own, found, count = student.state_dict(), teacher.state_dict(), 0
    weights = dict(student.named_parameters())
    for name, other in _counterparts(own, architecture, of_teacher):
        tensor, source = own[name], found.get(other)
        if source is None or source.dim() != tensor.dim() or not tensor.dim():
            continue
        if all(few <= many for few, many in zip(tensor.shape, source.shape, strict=True)):
            tensor.copy_(source[tuple(slice(size) for size in tensor.shape)])
            count += name in weights
    if not count:
        raise DecantError(
            "start: teacher: no tensor of the student fits into one of the teacher's; leave it out"
        )
    return count


def _counterparts(names: Any, architecture: Any, of_teacher: Any) -> Iterator[tuple[str, str]]:
    """Yield each name and that of the teacher's tensor, which the teacher may not have."""
    both = isinstance(architecture, Resnet) and isinstance(of_teacher, Resnet)
    blocks = _blocks(architecture, of_teacher) if both else {}
    for name in names:
        parts = name.split(".")
        if both and parts[0] == "stages":
            parts[1] = str(blocks.get(int(parts[1]), -1))
        yield name, ".".join(parts)


def _blocks(one: Resnet, other: Resnet) -> dict[int, int]:
    """Return which block of another network each residual block is, by its place in its stage."""
    places = [
        [(stage, block) for stage, count in enumerate(each.blocks) for block in range(count)]
        for each in (one, other)
    ]
    return {at: places[1].index(place) for at, place in enumerate(places[0]) if place in places[1]}
