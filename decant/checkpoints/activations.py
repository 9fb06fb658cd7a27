"""The grids on which the inputs of layers are rounded, and the hooks that clamp and round them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decant.checkpoints.constraints import Range
from decant.checkpoints.gradients import passed


@dataclass(frozen=True)
class InputGrid:
    """The affine integer grid on which a layer's inputs are rounded: `(q - zero_point) * scale`.

    Attributes:
        bits: Width of q, which is unsigned: q in [0, 2^bits).
        scale: Step, positive.
        zero_point: The q that stands for exactly 0.
    """

    bits: int
    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        """Refuse a grid that does not hold 0, or no number at all."""
        if not (1 <= self.bits <= 8 and self.scale > 0 and 0 <= self.zero_point < 2**self.bits):
            raise ValueError(
                f"A grid has 1 to 8 bits, a positive step and a zero point among its points, got {self}"
            )

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the rounded inputs; gradients pass where the input lies inside the grid's range."""
        return torch.fake_quantize_per_tensor_affine(inputs, self.scale, self.zero_point, 0, 2**self.bits - 1)

    def describe(self) -> str:
        """Return the grid as a short text."""
        return f"{self.bits} bits, step {self.scale:.3g}"


@dataclass(frozen=True)
class DynamicGrid:
    """A grid over the range that the inputs of this very batch have, widened to hold 0.

    It is what ONNX's DynamicQuantizeLinear does: no calibration, and an image's answer depends a little on
    the images beside it.

    Attributes:
        bits: Width of a code, unsigned.
    """

    bits: int

    def __post_init__(self) -> None:
        """Refuse a width that a code cannot have."""
        if not 1 <= self.bits <= 8:
            raise ValueError(f"A grid has 1 to 8 bits, got {self.bits}")

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the rounded inputs; gradients pass."""
        top = 2**self.bits - 1
        low, high = inputs.detach().aminmax()
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        scale = (high - low) / top
        scale = torch.where(scale > 0, scale, 1.0)
        zero_point = torch.round(-low / scale).clamp(0, top)
        codes = (torch.round(inputs / scale) + zero_point).clamp(0, top)
        return passed((codes - zero_point) * scale, inputs)

    def describe(self) -> str:
        """Return the grid as a short text."""
        return f"{self.bits} bits, range of each batch"


Grid = InputGrid | DynamicGrid


def attach_(module: nn.Module, grids: Mapping[str, Grid], clamps: Mapping[str, Range] | None = None) -> None:
    """Make each named layer clamp its inputs, then round them, in place; copies of the module do it too.

    What a layer did to its inputs before is replaced, not added to: a clamp that came after a grid would
    otherwise cut what is rounded already, and leave values that are on no grid.
    """
    clamps = clamps or {}
    for name in {**grids, **clamps}:
        layer = module.get_submodule(name)
        for key, hook in list(layer._forward_pre_hooks.items()):
            if isinstance(hook, _Inputs):
                del layer._forward_pre_hooks[key]
        layer.register_forward_pre_hook(_Inputs(clamps.get(name), grids.get(name)))


@dataclass(frozen=True)
class _Inputs:
    clamp: Range | None
    grid: Grid | None

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        first = inputs[0] if self.clamp is None else self.clamp.project(inputs[0])
        return (first if self.grid is None else self.grid(first), *inputs[1:])
