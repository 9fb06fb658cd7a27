"""Students: one proposed from a budget in the teacher's family, and weights that begin as the teacher's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Discriminator, Tag, model_validator

from decant.distill.depth import counterparts
from decant.errors import DecantError
from decant.lazy import torch
from decant.networks.architectures import Architecture, Lenet300100, Mlp, OwnArchitecture, Resnet, Shape
from decant.networks.devices import CPU
from decant.schema import Amount, Section

if TYPE_CHECKING:
    from torch import Tensor, nn

    from decant.checkpoints.checkpoint import Checkpoint
    from decant.compression.coupling import ChannelGroup
    from decant.examples import Examples

BYTES = 4
"""Of a weight in float32."""

IMAGES, DAMPING = 1000, 0.01
"""What channels are chosen by: so many first training examples, and a share of their Hessians' diagonals."""


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
        DecantError: The family has no widths, not even a width of 1 is within the budget, or the teacher's
            own architecture is less than it, so that the student would be one more of the teacher's size.
    """
    widest, of_width = narrower(teacher)
    cost, budget = _cost(student.budget, shape, classes)
    unit = 1024 if student.budget.kib else 1
    if (whole := cost(of_width(widest))) < budget:
        raise DecantError(
            f"student.budget: {student.budget.told} is more than the teacher's own architecture has, "
            f"{whole / unit:,.1f}; lower it, or name the student"
        )
    low, high = 0, widest  # low is within the budget, above high is not asked for
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(of_width(middle)) <= budget else (low, middle - 1)
    if not low:
        least = cost(of_width(1)) / unit
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


def narrowed(
    teacher: Checkpoint,
    groups: Sequence[ChannelGroup],
    student: nn.Module,
    architecture: Any,
    train: Examples,
    device: str = CPU,
) -> nn.Module:
    """Return the teacher with as many channels as a student has: those that `prune` would keep.

    As with the criterion `reconstruction`, a channel is scored by what the layers that read it lose without
    it once they are solved anew, and those are solved for the channels that stay. What the student has no
    counterpart of stays whole.

    Args:
        teacher: The model; untouched.
        groups: Its channels that can go.
        student: The network, whose shapes alone are looked at.
        architecture: Its description.
        train: Training examples, of which the first `IMAGES` are looked at, without labels.
        device: Where the teacher answers.

    Raises:
        DecantError: The network does not run a layer, or one receives NaN or infinity.
    """
    from decant.compression.channel_scores import by_reconstruction, refitted
    from decant.compression.coupling import kept_of
    from decant.compression.surgery import cut_

    module = copy.deepcopy(teacher.module)
    shapes = {
        other: student.state_dict()[name].shape
        for name, other in counterparts(
            student.state_dict(), architecture, module.state_dict(), teacher.built_by
        )
    }
    fewer = [group for group in groups if _left(group, shapes) < group.count]
    if not fewer:
        return module
    images = train.at_most(IMAGES).images
    scores = by_reconstruction(module, fewer, images, DAMPING, device=device)
    gone = {group.name: _lowest(scores[group.name], group.count - _left(group, shapes)) for group in fewer}
    weights = refitted(module, fewer, gone, images, DAMPING, device=device)
    with torch.no_grad():
        for name, weight in weights.items():
            module.get_parameter(name).copy_(weight)
    cut_(module, kept_of(module, fewer, gone))
    return module


def _left(group: ChannelGroup, shapes: dict[str, Sequence[int]]) -> int:
    """Return how many of a group's channels a student has, given the shape of each counterpart."""
    sizes = [
        shapes[name][dim] // indices.shape[1]
        for name, dim, indices in sorted(group.members, key=lambda member: member[1])
        if len(shapes.get(name, ())) > dim
    ]
    return max(1, sizes[0]) if sizes else group.count


def _lowest(scores: Tensor, count: int) -> Tensor:
    """Return which channels [C] have the lowest scores; of equal ones the later."""
    order = scores.flip(0).argsort(stable=True)[:count]
    found = torch.zeros(len(scores), dtype=torch.bool)
    found[len(scores) - 1 - order] = True
    return found


def inherit_(student: Any, architecture: Any, teacher: Any, of_teacher: Any) -> int:
    """Copy the first channels of the teacher's tensors into a student, in place; return how many parameters.

    Which layers are one another's says `counterparts`. A tensor is copied where it has as many dimensions and
    none is longer than the teacher's.

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
    for name, other in counterparts(own, architecture, found, of_teacher):
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
