"""The grids on which the inputs of layers are rounded, and the hooks that clamp and round them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decant.checkpoints.constraints import Range
from decant.checkpoints.gradients import passed, within
from decant.networks.devices import CPU
from decant.networks.layer_inputs import Arguments, first_of, with_first
from decant.networks.recurrence import steppable, stepped

NOTHING = 1e-30
"""The largest input of a row that has nothing but zeros, so that nothing is divided by 0."""


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
        if torch.compiler.is_exporting():  # torch's own operator has no form for a batch of unknown size
            return self._by_arithmetic(inputs)
        if inputs.requires_grad and inputs.device.type == CPU and inputs.dtype == torch.float32:
            rounded: Tensor = _Rounded.apply(inputs, self)
            return rounded
        return torch.fake_quantize_per_tensor_affine(inputs, self.scale, self.zero_point, 0, 2**self.bits - 1)

    def _by_arithmetic(self, inputs: Tensor) -> Tensor:
        """Return the same to the bit, without gradients."""
        steps = torch.round(inputs * (1 / torch.tensor(self.scale)))
        return steps.clamp(-self.zero_point, 2**self.bits - 1 - self.zero_point) * self.scale

    def describe(self) -> str:
        """Return the grid as a short text."""
        return f"{self.bits} bits, step {self.scale:.3g}"


def on_grid(inputs: Tensor, step: Tensor, first: int, last: int) -> Tensor:
    """Return what `InputGrid` gives, to the bit, without gradients and without reading the step.

    Args:
        inputs: Of any shape.
        step: The scale [], float32, where the inputs lie.
        first: The least multiple of it, `-zero_point`.
        last: The largest one.
    """
    if inputs.dtype != torch.float32:  # bfloat16 cannot count the steps of 8 bits
        return torch.empty_like(inputs).copy_(on_grid(inputs.float(), step, first, last))
    return _steps(inputs, step).clamp_(first, last).mul_(step)


def _steps(inputs: Tensor, step: Tensor) -> Tensor:
    """Return the inputs in steps, rounded, lying in memory as the inputs do: the next layer goes by that."""
    # A product of its own would forget in which order images of one channel lie, as it fits both layouts.
    return torch.mul(inputs.detach(), step.reciprocal(), out=torch.empty_like(inputs)).round_()


class _Rounded(torch.autograd.Function):
    """`InputGrid` on the processor, where torch's own operator takes twice as long."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, grid: InputGrid) -> Tensor:
        step, first, last = torch.tensor(grid.scale), -grid.zero_point, 2**grid.bits - 1 - grid.zero_point
        steps = _steps(inputs, step)
        ctx.save_for_backward(steps)
        ctx.ends = torch.tensor(float(first)), torch.tensor(float(last))
        return steps.clamp(first, last).mul_(step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (steps,) = ctx.saved_tensors
        return within(gradients[0], steps, *ctx.ends), None


@dataclass(frozen=True)
class DynamicGrid:
    """A grid over the range that the inputs of this very batch have, widened to hold 0.

    It is what ONNX's DynamicQuantizeLinear does: no calibration, and an image's answer depends a little on
    the images beside it.

    Attributes:
        bits: Width of a code, unsigned; signed by rows.
        rows: Each row, which is all that lies along the last dimension, has a range of its own, symmetric
            about 0; so no row depends on those beside it.
    """

    bits: int
    rows: bool = False

    def __post_init__(self) -> None:
        """Refuse a width that a code cannot have."""
        if not 1 + self.rows <= self.bits <= 8 or not isinstance(self.rows, bool):
            raise ValueError(f"A grid has 1 to 8 bits, and by rows at least 2, got {self}")

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the rounded inputs; gradients pass."""
        return passed(self._by_rows(inputs) if self.rows else self._by_batch(inputs), inputs)

    def _by_rows(self, inputs: Tensor) -> Tensor:
        top = 2 ** (self.bits - 1) - 1
        largest = inputs.detach().abs().amax(-1, keepdim=True).clamp(min=NOTHING)
        # torch takes a number over a tensor as the reciprocal times the number: the last bit is another.
        return torch.round(inputs * (torch.full_like(largest, top) / largest)) * (largest / top)

    def _by_batch(self, inputs: Tensor) -> Tensor:
        top = 2**self.bits - 1
        low, high = inputs.detach().aminmax()
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        scale = (high - low) / top
        scale = torch.where(scale > 0, scale, 1.0)
        zero_point = torch.round(-low / scale).clamp(0, top)
        codes = (torch.round(inputs / scale) + zero_point).clamp(0, top)
        return (codes - zero_point) * scale

    def describe(self) -> str:
        """Return the grid as a short text."""
        return f"{self.bits} bits, range of each {'row' if self.rows else 'batch'}"


@dataclass(frozen=True)
class RecurrentGrid:
    """Grids over the range of this batch in layers of an LSTM: of what comes in, and each step's state.

    It is what ONNX Runtime's DynamicQuantizeLSTM does.

    Attributes:
        bits: Width of a code, unsigned.
        layers: Which of the layers that run one after another, from 0.
    """

    bits: int
    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse a width that a code cannot have, and no layers at all."""
        if not (1 <= self.bits <= 8 and self.layers and min(self.layers) >= 0):
            raise ValueError(f"A grid has 1 to 8 bits, and layers from 0 on, got {self}")

    def describe(self) -> str:
        """Return the grid as a short text."""
        return f"{self.bits} bits, range of each batch and step in layers {', '.join(map(str, self.layers))}"


Grid = InputGrid | DynamicGrid | RecurrentGrid


def stepped_weights(module: nn.Module, grids: Mapping[str, Grid]) -> dict[str, RecurrentGrid]:
    """Return the weights in layers of LSTMs that round what they multiply, by name, and how."""
    within = {name: grid for name, grid in grids.items() if isinstance(grid, RecurrentGrid)}
    layers = steppable(module) if within else {}
    return {
        weight: grid for name, grid in within.items() for at in grid.layers for weight in layers[name][at]
    }


def attach_(module: nn.Module, grids: Mapping[str, Grid], clamps: Mapping[str, Range] | None = None) -> None:
    """Make each named layer clamp its inputs, then round them, in place; copies of the module do it too.

    What a layer did to its inputs before is replaced, not added to: a clamp that came after a grid would
    otherwise cut what is rounded already, and leave values that are on no grid.
    """
    clamps = clamps or {}
    detach_(module, {**grids, **clamps})
    for name in {**grids, **clamps}:
        layer = module.get_submodule(name)
        grid = grids.get(name)
        if isinstance(grid, RecurrentGrid):
            layer.register_forward_hook(_Steps(grid), with_kwargs=True)
            grid = None
        layer.register_forward_pre_hook(_Inputs(clamps.get(name), grid), with_kwargs=True)


def detach_(module: nn.Module, names: Iterable[str]) -> None:
    """Have the named layers take their inputs as they come, in place."""
    for layer in map(module.get_submodule, names):
        for key, hook in list(layer._forward_pre_hooks.items()):
            if isinstance(hook, _Inputs):
                del layer._forward_pre_hooks[key]
                layer._forward_pre_hooks_with_kwargs.pop(key, None)
        for key, after in list(layer._forward_hooks.items()):
            if isinstance(after, _Steps):
                del layer._forward_hooks[key]
                layer._forward_hooks_with_kwargs.pop(key, None)


@dataclass(frozen=True)
class _Steps:
    """Has an LSTM answer with rounded states, which its own kernel has no place for."""

    grid: RecurrentGrid

    def __call__(self, layer: Any, given: tuple[Any, ...], named: dict[str, Any], _: Any) -> Any:
        return stepped(layer, self.grid.layers, DynamicGrid(self.grid.bits), *given, **named)


@dataclass(frozen=True)
class _Inputs:
    clamp: Range | None
    grid: InputGrid | DynamicGrid | None

    def __call__(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Arguments:
        return with_first(self._rounded(first_of(given, named)), given, named)

    def _rounded(self, inputs: Tensor) -> Tensor:
        clamped = inputs if self.clamp is None else self.clamp.project(inputs)
        return clamped if self.grid is None else self.grid(clamped)
