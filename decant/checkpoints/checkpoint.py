"""A model in memory: its module, the constraints on its weights and inputs, and its lineage."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from decant.checkpoints.activations import Grid, attach_
from decant.checkpoints.constraints import Constraints, Range, project_
from decant.errors import DecantError
from decant.networks.architectures import FOREIGN, Architecture, OwnArchitecture, Shape, Takes, build, example
from decant.networks.record import give_example_, has_example, record_of
from decant.networks.shapes import Shapes, differing, reshape_
from decant.networks.structure import check_called, drop_norms_
from decant.networks.ties import compact_, ties, unite_

SMALL = 1 << 20
"""Weights of a network that is built with numbers to see which batch norms may be folded."""


@dataclass(frozen=True)
class Checkpoint:
    """A model and all that is known of it.

    Attributes:
        architecture: What `build` makes the module of; a layer may have fewer channels since. None where
            nothing builds it: then it is not written to disk.
        shape: One picture [C, H, W], or each tensor that the network takes, by name.
        classes: The names of the classes; empty where it answers something else.
        module: The network, its weights as deployed, in eval mode.
        constraints: Those of each compressed weight, by its name.
        grids: The grid on which a layer's inputs are rounded, by the layer's name.
        clamps: The range that a layer's inputs are cut to before they are rounded, by the layer's name.
        lineage: One entry for each step from the teacher to here, oldest first.
        folded: Whether the batch norms are part of the layers before them: True where all are that may be, of
            an architecture of this package; else the names of those that are, by the weight of the layer.
    """

    architecture: Architecture | None
    shape: Takes
    classes: tuple[str, ...]
    module: nn.Module
    constraints: Mapping[str, Constraints] = field(default_factory=dict)
    grids: Mapping[str, Grid] = field(default_factory=dict)
    lineage: tuple[Mapping[str, Any], ...] = ()
    clamps: Mapping[str, Range] = field(default_factory=dict)
    folded: bool | Mapping[str, str] = False

    def __post_init__(self) -> None:
        """Tell the module what it takes, where nobody has; and lay its tensors out as files have them.

        Raises:
            DecantError: Parameters overlap in memory, and are not the same tensor.
        """
        unite_(self.module)
        compact_(self.module)
        if not has_example(self.module):
            give_example_(self.module, example(self.shape))

    @property
    def built_by(self) -> Architecture:
        """The architecture.

        Raises:
            DecantError: There is none.
        """
        if self.architecture is None:
            raise DecantError(
                "Nothing says how to build this network again; give the Checkpoint an architecture, as in "
                "decant.Python.of(build)"
            )
        return self.architecture

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
            DecantError: The network never calls a layer whose inputs are to be cut or rounded; or a weight is
                not of float32, and more than a mask is asked of it.
        """
        if grids or clamps:
            check_called(self.module, [*(grids or {}), *(clamps or {})])
        _check_types(self.module, changes)
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


def _check_types(module: nn.Module, changes: Mapping[str, Constraints]) -> None:
    """Refuse levels and ranges, which are of float32 numbers, on weights of other types."""
    for name, held in changes.items():
        dtype = module.get_parameter(name).dtype
        if dtype != torch.float32 and (held.levels is not None or held.range is not None):
            raise DecantError(
                f"{name} is of {str(dtype).removeprefix('torch.')}, and levels and ranges are of float32 "
                "numbers: convert the network with .float() before it is adopted"
            )


def blank(
    architecture: Architecture,
    shape: Takes,
    classes: int,
    *,
    folded: bool | Mapping[str, str] = False,
    shapes: Mapping[str, Sequence[int]] | None = None,
    device: str = "cpu",
) -> nn.Module:
    """Return a network of a checkpoint's form, in eval mode, whose numbers mean nothing yet.

    On the device `meta` a network of this package has no numbers at all, and takes no memory, however large
    it is. One of other people is built on the processor, as it may hold numbers that no file has.
    """
    with torch.device("cpu" if isinstance(architecture, FOREIGN) else device):
        module = build(architecture, shape, classes, seed=0).eval()
        unite_(module)  # as those of a checkpoint are
        if folded:
            drop_norms_(module, _folds(architecture, shape, classes) if folded is True else folded)
        reshape_(module, shapes or {})
    return module


def _folds(architecture: Architecture, shape: Takes, classes: int) -> Mapping[str, str]:
    """Return which batch norms may be folded into which layers of a network of this architecture."""
    if not isinstance(shape, tuple) or isinstance(architecture, FOREIGN):
        return record_of(build(architecture, shape, classes, seed=0).eval()).folds
    return _own_folds(architecture, shape, classes)


@functools.cache
def _own_folds(architecture: OwnArchitecture, shape: Shape, classes: int) -> Mapping[str, str]:
    # Without numbers torch imports its compiler at the first subtraction, which takes most of a second.
    weights = sum(map(math.prod, architecture.weights(shape, classes).values()))
    with torch.device("cpu" if weights <= SMALL else "meta"):
        return record_of(build(architecture, shape, classes, seed=0).eval()).folds


def altered(checkpoint: Checkpoint) -> Shapes:
    """Return the shapes in which a model is not what its architecture builds: channels were removed."""
    built = blank(
        checkpoint.built_by,
        checkpoint.shape,
        len(checkpoint.classes),
        folded=checkpoint.folded,
        device="meta",
    )
    return differing(checkpoint.module, built)


def state(module: nn.Module) -> dict[str, Tensor]:
    """Return what evaluation and training depend on: each tensor under the first of its names.

    A batch norm's count of batches is part of it only where its average is over all of them.

    Raises:
        DecantError: A module's state is not of tensors alone.
    """
    every, unread = module.state_dict(keep_vars=True), set(_counts(module))
    if others := [name for name, value in every.items() if not isinstance(value, Tensor)]:
        raise DecantError(
            f"{', '.join(others)}: a module keeps a state that is no tensor (get_extra_state), which is not "
            "written; keep what the network computes with in buffers"
        )
    return {name: every[name].detach() for name in ties(module) if name not in unread}


def not_a_number(module: nn.Module, name: str, tensor: Tensor) -> str:
    """Return what a tensor holds that it must not: NaN, and infinity where it is no buffer, as of a mask."""
    parameter = name in dict(module.named_parameters(remove_duplicate=False))
    wrong = ~torch.isfinite(tensor) if parameter else torch.isnan(tensor)
    return "NaN or infinity" if bool(wrong.any()) else ""


def _counts(module: nn.Module) -> Iterator[str]:
    """Yield the counts of batches that nothing depends on."""
    for name, layer in module.named_modules():
        if isinstance(layer, _NormBase) and layer.momentum is not None:
            yield f"{name}.num_batches_tracked".removeprefix(".")
