"""A model in memory: its module, the constraints on its weights and inputs, and its lineage."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from decant.checkpoints.activations import Grid, attach_
from decant.checkpoints.constraints import Constraints, Range, project_
from decant.networks.architectures import Architecture, Shape, build
from decant.networks.shapes import Shapes, differing, reshape_
from decant.networks.structure import drop_norms_


@dataclass(frozen=True)
class Checkpoint:
    """A model and all that is known of it.

    Attributes:
        architecture: What `build` makes the module of; a layer may have fewer channels since.
        shape: One input [C, H, W].
        classes: The names of the classes.
        module: The network, its weights as deployed, in eval mode.
        constraints: Those of each compressed weight, by its name.
        grids: The grid on which a layer's inputs are rounded, by the layer's name.
        clamps: The range that a layer's inputs are cut to before they are rounded, by the layer's name.
        lineage: One entry for each step from the teacher to here, oldest first.
        folded: Whether the batch norms are part of the convolutions before them.
    """

    architecture: Architecture
    shape: Shape
    classes: tuple[str, ...]
    module: nn.Module
    constraints: Mapping[str, Constraints] = field(default_factory=dict)
    grids: Mapping[str, Grid] = field(default_factory=dict)
    lineage: tuple[Mapping[str, Any], ...] = ()
    clamps: Mapping[str, Range] = field(default_factory=dict)
    folded: bool = False

    @property
    def narrowest(self) -> int:
        """The fewest bits of any weight; 32 where none is rounded."""
        widths = [held.levels.bits for held in self.constraints.values() if held.levels is not None]
        return min(widths, default=32)

    def narrowed(
        self,
        changes: Mapping[str, Constraints],
        grids: Mapping[str, Grid] | None = None,
        clamps: Mapping[str, Range] | None = None,
    ) -> Checkpoint:
        """Return a copy whose named weights satisfy `changes` and whose named layers clamp and round inputs.

        This checkpoint is untouched. A second clamp of a layer intersects with the first.

        Raises:
            ValueError: Two clamps do not meet.
        """
        module = copy.deepcopy(self.module)
        project_(module, changes)
        rounded, clamped = {**self.grids, **(grids or {})}, dict(self.clamps)
        for name, clamp in (clamps or {}).items():
            try:
                clamped[name] = clamp.intersect(clamped[name]) if name in clamped else clamp
            except ValueError as error:
                raise ValueError(f"inputs of {name}: {error}") from None
        attach_(module, rounded, clamped)
        return replace(
            self,
            module=module,
            constraints={**self.constraints, **changes},
            grids=rounded,
            clamps=clamped,
        )


def blank(
    architecture: Architecture,
    shape: Shape,
    classes: int,
    *,
    folded: bool = False,
    shapes: Mapping[str, Sequence[int]] | None = None,
    device: str = "cpu",
) -> nn.Module:
    """Return a network of a checkpoint's form, in eval mode, whose numbers mean nothing yet.

    On the device `meta` it has no numbers at all, and takes no memory, however large it is.
    """
    with torch.device(device):
        module = build(architecture, shape, classes, seed=0).eval()
        if folded:
            drop_norms_(module)
        reshape_(module, shapes or {})
    return module


def altered(checkpoint: Checkpoint) -> Shapes:
    """Return the shapes in which a model is not what its architecture builds: channels were removed."""
    built = blank(
        checkpoint.architecture,
        checkpoint.shape,
        len(checkpoint.classes),
        folded=checkpoint.folded,
        device="meta",
    )
    return differing(checkpoint.module, built)


def state(module: nn.Module) -> dict[str, Tensor]:
    """Return what evaluation depends on: parameters and buffers, without batch norm's count of batches."""
    return {
        name: tensor
        for name, tensor in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
