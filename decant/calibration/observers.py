"""The numbers that a range is taken from: weights that no mask holds, or what layers receive from images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from decant.checkpoints.constraints import Range
from decant.examples import Batch
from decant.lazy import torch
from decant.networks.devices import A_PASS, CPU, computing_on, fed, find, moved, placed
from decant.networks.execution import answers

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH = 250
"""Images that go through the network at once: fixed, as the last bits of a mean depend on it."""

KEPT = 2**18
"""How many of a layer's inputs are kept, at most, over all its channels and images."""


@dataclass(frozen=True)
class Sample:
    """Numbers that share one range, and what is known of all of them.

    Attributes:
        values: All of them, or a fair draw where there are too many [N], float64.
        low: The least of all.
        high: The largest of all.
        mean: Of all.
        sigma: The standard deviation of all, over N and not N - 1.
        symmetric: Whether they will be rounded to levels on both sides of zero alike, as weights are, or to
            a grid from the low end to the high one, as the inputs of layers are.
    """

    values: Tensor
    low: float
    high: float
    mean: float
    sigma: float
    symmetric: bool

    @property
    def largest(self) -> float:
        """The largest size of all."""
        return max(abs(self.low), abs(self.high))

    @property
    def one_sided(self) -> bool:
        """Whether the whole grid goes to numbers from zero up, as behind a rectified linear unit."""
        return not self.symmetric and self.low >= 0

    def cut(self, low: float, high: float) -> Sample:
        """Return what is left of it between two ends."""
        values = self.values.clamp(low, high)
        ends = min(max(self.low, low), high), min(max(self.high, low), high)
        return Sample(values, *ends, values.mean().item(), values.std(correction=0).item(), self.symmetric)

    def within(self, threshold: float) -> tuple[float, float]:
        """Return the part of [-threshold, threshold] that lies within the extremes."""
        return min(max(self.low, -threshold), self.high), max(min(self.high, threshold), self.low)


@dataclass(frozen=True)
class Samples:
    """One sample for the whole tensor, or one for each of its channels, or for each group of neighbours.

    Attributes:
        each: The samples, in the order of the channels, and within these of the groups.
        shape: Of their bounds: as it broadcasts against the tensor, or [O, G] for groups; None where one
            range serves all.
    """

    each: tuple[Sample, ...]
    shape: tuple[int, ...] | None

    def range(self, bounds: Sequence[tuple[float, float]]) -> Range:
        """Return the range of these bounds, one pair for each sample, in the nearest float32.

        A bound on disk is then the bound that was cut at.
        """
        low, high = torch.tensor(bounds, dtype=torch.float32).unbind(1)
        if self.shape is None:
            return Range(low.item(), high.item())
        return Range(low.reshape(self.shape), high.reshape(self.shape))

    def cut(self, low: float, high: float) -> Samples:
        """Return the samples between two ends."""
        if (low, high) == (-math.inf, math.inf):
            return self
        return Samples(tuple(sample.cut(low, high) for sample in self.each), self.shape)

    def extremes(self) -> Range:
        """Return from the least to the largest number of each sample."""
        return self.range([(sample.low, sample.high) for sample in self.each])


def of_weight(
    weight: Tensor,
    mask: Tensor | None,
    *,
    per_channel: bool,
    group: int | None = None,
    axis: int = 0,
    symmetric: bool = True,
) -> Samples:
    """Return the weights that no mask holds at zero: zeros say nothing of how the others spread.

    Args:
        weight: Weights of any shape.
        mask: True where a weight survives; None where all do.
        per_channel: Whether each output channel is a sample of its own.
        group: How many neighbours in a row of `weight.flatten(1)` are a sample of their own instead; the
            last one of a row has what is left.
        axis: Which dimension of the weight the output channels are.
        symmetric: Whether the levels will lie on both sides of zero alike.

    Raises:
        ValueError: A weight is NaN or infinite.
    """
    weight = weight.detach()
    if not torch.isfinite(weight).all():
        raise ValueError("The weight holds NaN or infinity; there is no range to find in it")
    shape: tuple[int, ...] | None = None
    if group is not None:
        shape = (len(weight), -(-weight[0].numel() // group))
    elif per_channel:
        shape = tuple(-1 if dim == axis else 1 for dim in range(weight.dim()))
    parts = _parts(weight, per_channel, group, axis)
    masks = [None] * len(parts) if mask is None else _parts(mask, per_channel, group, axis)
    return Samples(tuple(_of(part, kept, symmetric) for part, kept in zip(parts, masks, strict=True)), shape)


def of_inputs(
    module: nn.Module,
    layers: Sequence[str],
    images: Batch,
    *,
    per_channel: bool = False,
    device: str = CPU,
) -> dict[str, Samples]:
    """Return what each named layer receives over images, in all of its calls, by the layer's name.

    Least, largest, mean and deviation are exact. The values are a draw of at most about `KEPT` for each
    layer, the same in each run, so that memory does not grow with the images: from each batch as many as
    its share of the images, at places drawn with a fixed seed.

    Args:
        module: The network, in eval mode.
        layers: Which layers to watch; what they do to their inputs already, they do before.
        images: What is sent through.
        per_channel: Whether each input channel is a sample of its own.
        device: Where the network runs; what is kept of its inputs is on the processor.

    Raises:
        DecantError: The device is not there, or has too little memory.
        ValueError: There are no images; or a layer receives NaN or infinity, and is named.
    """
    if not len(images):
        raise ValueError("there are no training images to find the ranges of layers' inputs with")
    from decant.networks.layer_inputs import channel_axis

    calls = _calls(module)
    watched = {
        name: _Watched(
            name,
            len(images) * calls.get(name, 1),
            channel_axis(module.get_submodule(name)) if per_channel else None,
        )
        for name in layers
    }
    with computing_on(there := find(device), A_PASS):
        module = placed(module, there)
        handles = [
            module.get_submodule(name).register_forward_pre_hook(layer.record, with_kwargs=True)
            for name, layer in watched.items()
        ]
        try:
            with torch.no_grad():
                for batch in images.split(BATCH):
                    for layer in watched.values():
                        layer.rows = len(batch)
                    answers(fed(module, there), batch)
        finally:
            for handle in handles:
                handle.remove()
    return {name: layer.samples() for name, layer in watched.items()}


def _calls(module: nn.Module) -> dict[str, int]:
    """Return how often a pass runs each layer with a weight of its own, as far as that is known."""
    from decant.networks.record import has_example, record_of

    weights = record_of(module).weights.values() if has_example(module) else ()
    return {weight.layer: weight.calls for weight in weights if weight.layer}


@dataclass
class _Watched:
    """What one layer has received so far.

    Attributes:
        name: Of the layer.
        images: How many there are, times how often it runs for each.
        axis: Which dimension the channels are, from the end; None where one range serves all.
        rows: How many images go through the network at the moment.
    """

    name: str
    images: int
    axis: int | None
    rows: int = 0
    drawn: list[Tensor] = field(default_factory=list)
    shape: tuple[int, ...] | None = None
    count: int = 0
    low: Tensor = field(default_factory=lambda: torch.tensor(math.inf))
    high: Tensor = field(default_factory=lambda: torch.tensor(-math.inf))
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.double))
    squares: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.double))

    def record(self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Take in one call."""
        from decant.networks.layer_inputs import first_of

        batch: Tensor = first_of(given, named).detach()
        rows = batch.flatten()[None]
        if self.axis is not None:
            rows = batch.movedim(self.axis, 0).reshape(batch.shape[self.axis], -1)
        if not torch.isfinite(rows).all():
            raise ValueError(f"inputs of {self.name}: they hold NaN or infinity; there is no range to find")
        if self.axis is not None:
            self.shape = (-1, *[1] * (-1 - self.axis))
        low, high = moved((rows.amin(1), rows.amax(1)), CPU)
        self.low, self.high = self.low.minimum(low), self.high.maximum(high)
        self._add_moments(rows.double())
        self.drawn.append(moved(self._draw(rows), CPU))

    def _add_moments(self, rows: Tensor) -> None:
        """Merge mean and sum of squared differences; sums of squares would lose digits far from zero.

        References:
            Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample
            Variances, 1979.
        """
        before, added = self.count, rows.shape[1]
        self.count += added
        means = rows.mean(1)
        mean, squares = moved((means, (rows - means[:, None]).square().sum(1)), CPU)
        gap = mean - self.mean
        self.squares = self.squares + squares
        self.squares = self.squares + gap.square() * before * added / self.count
        self.mean = self.mean + gap * added / self.count

    def _draw(self, rows: Tensor) -> Tensor:
        """Return a share of [rows, N] at drawn places, not at even steps, which would see the same pixels."""
        quota = max(1, KEPT * self.rows // (self.images * len(rows)))
        if rows.shape[1] <= quota:
            return rows.clone()
        generator = torch.Generator().manual_seed(len(self.drawn))
        return rows[:, moved(torch.randint(rows.shape[1], (quota,), generator=generator), rows.device)]

    def samples(self) -> Samples:
        if not self.drawn:
            raise ValueError(f"inputs of {self.name}: there are none, the network does not run this layer")
        sigma = (self.squares / self.count).sqrt()
        ends = zip(self.low.tolist(), self.high.tolist(), self.mean.tolist(), sigma.tolist(), strict=True)
        rows = torch.cat(self.drawn, 1).double()
        each = tuple(Sample(row, *numbers, symmetric=False) for row, numbers in zip(rows, ends, strict=True))
        return Samples(each, self.shape)


def _parts(tensor: Tensor, per_channel: bool, group: int | None, axis: int) -> Sequence[Tensor]:
    """Return what shares a range: the whole, each channel, or each group of neighbours in a row."""
    if group is not None:
        return [part for row in tensor.flatten(1) for part in row.split(group)]
    return tensor.movedim(axis, 0).unbind() if per_channel else (tensor,)


def _of(weight: Tensor, mask: Tensor | None, symmetric: bool) -> Sample:
    """Return the sample of all surviving weights, or of one zero where none survives."""
    survivors = weight.flatten() if mask is None else weight[mask]
    values = survivors.double() if len(survivors) else torch.zeros(1, dtype=torch.double)
    low, high = values.min().item(), values.max().item()
    return Sample(values, low, high, values.mean().item(), values.std(correction=0).item(), symmetric)
