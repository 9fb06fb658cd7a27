"""One training in several processes: each has its share of every batch, all take the step of the whole one.

Answers of all are brought together before a loss sees them, batch norms have the statistics of the whole
batch, and gradients are summed. So a step is that of one process but for the order of its sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.networks.draws import Stream, drawing
from decant.networks.processes import ALONE, Processes
from decant.seeds import derive_seed

DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d")
"""Functions of torch that multiply by what they draw: it is drawn for the whole batch."""


@dataclass
class Spread:
    """The processes of a training, and what they compute now.

    Attributes:
        processes: All of them, as this one sees them.
        batch: Examples of the batch that is computed now, in all of them together.
    """

    processes: Processes = ALONE
    batch: int = 0

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return self.processes.count > 1

    @property
    def own(self) -> slice:
        """Which examples of the batch this process has."""
        return self.processes.of(self.batch)

    def rows(self, rows: Tensor, size: int) -> Tensor:
        """Return the examples [n] of a step that are its own: a share of each batch of `size`, in order."""
        if not self.several:
            return rows
        return torch.cat([batch[self.processes.of(len(batch))] for batch in rows.split(size)])

    def whole(self, rows: Tensor) -> Tensor:
        """Return what all processes have for the batch [N, ...], of what this one has for its share [n, ...].

        Each takes the gradient of the whole loss: it goes to its own rows times the number of processes, as
        the loss is divided by it.
        """
        if not self.several:
            return rows
        found: Tensor = _Whole.apply(rows, self.processes, self.batch)
        return found

    def share(self, total: Tensor) -> Tensor:
        """Return the part of a loss [] of which this process takes gradients: they are summed over all."""
        return total / self.processes.count if self.several else total

    def sum_gradients_(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum gradients over all processes, in place; what has none in any of them has none afterwards."""
        if not self.several:
            return
        learned = [each for each in parameters if each.requires_grad]
        there = torch.tensor([float(each.grad is not None) for each in learned])
        having = [each for each, n in zip(learned, self.processes.summed(there).tolist(), strict=True) if n]
        for each in having:
            if each.grad is None:
                each.grad = torch.zeros_like(each)
        self.processes.sum_([each.grad for each in having if each.grad is not None])

    @contextmanager
    def drawing(self, seed: int, device: torch.device) -> Iterator[None]:
        """Have layers draw as a seed says, and compute as on the whole batch, not on a share of it.

        Dropout draws for the whole batch what one process would, and takes its rows. What other layers draw
        is of each process's own: the attention's dropout inside of torch, and noise.
        """
        if not self.several:
            with drawing(seed, device):
                yield
            return
        own = derive_seed(seed, f"process {self.processes.rank}")
        patched: dict[str, Callable[..., Tensor]] = {"batch_norm": self._batch_norm}
        stream = Stream(seed, device)
        patched |= {name: self._dropout(getattr(F, name), stream) for name in DROPOUTS}
        before = {name: getattr(F, name) for name in patched}
        try:
            for name, function in patched.items():
                setattr(F, name, function)
            with drawing(own, device):
                yield
        finally:
            for name, function in before.items():
                setattr(F, name, function)

    def _dropout(self, drop: Callable[..., Tensor], stream: Stream) -> Callable[..., Tensor]:
        """Return a dropout that draws for the whole batch: for rows, or so many numbers of each row."""

        def dropped(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
            own = self.own
            times, over = divmod(len(input), own.stop - own.start) if input.dim() else (0, 1)
            if not training or over:
                return drop(input, p, training, inplace)
            whole = input.new_ones(self.batch * times, *input.shape[1:])
            with stream.drawing():
                kept = drop(_laid_as(whole, input), p, True)
            kept = kept[own.start * times : own.stop * times]
            return input.mul_(kept) if inplace else input * kept

        return dropped

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Return torch's `batch_norm`, [n, C, ...], with the statistics of the whole batch."""
        tensors = running_mean, running_var, weight, bias
        if not training:
            return torch.batch_norm(
                input, weight, bias, running_mean, running_var, False, momentum, eps, True
            )
        scale, shift = (
            input.new_full((input.shape[1],), value, dtype=torch.float32) if each is None else each
            for each, value in ((weight, 1.0), (bias, 0.0))
        )
        outputs, mean, variance, count = _Normalized.apply(input, scale, shift, eps, self.processes)
        for running, found in zip(tensors[:2], (mean, variance * (count / (count - 1))), strict=True):
            if running is not None:
                running.lerp_(found.to(running.dtype), momentum)
        return outputs


def _laid_as(whole: Tensor, part: Tensor) -> Tensor:
    """Return a tensor that lies in memory as another one of fewer rows, where that is the channels last."""
    last = part.dim() == 4 and part.is_contiguous(memory_format=torch.channels_last)
    return whole.contiguous(
        memory_format=torch.channels_last if last and not part.is_contiguous() else torch.contiguous_format
    )


class _Whole(torch.autograd.Function):
    """The rows of all processes; the gradient is that of its own rows times their number."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, processes: Processes, batch: int) -> Tensor:
        ctx.own, ctx.count = processes.of(batch), processes.count
        sizes = [replace(processes, rank=rank).of(batch) for rank in range(processes.count)]
        longest = max(each.stop - each.start for each in sizes)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        stacked = processes.stacked(padded)
        return torch.cat([part[: s.stop - s.start] for part, s in zip(stacked, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.own] * ctx.count, None, None


class _Normalized(torch.autograd.Function):
    """A batch norm over the share of a batch that each process has, with the statistics of all shares.

    Means and variances of shares are put together by their distances from the common mean, so that no digits
    are lost (Chan et al., Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979).
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, eps: float, processes: Processes
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = _places(inputs)
        variance, mean = torch.var_mean(
            inputs.float() if inputs.dtype.itemsize < 4 else inputs, dims, correction=0
        )
        own = mean.new_full((1,), inputs.numel() / inputs.shape[1])
        found = processes.stacked(torch.cat([mean, variance, own]))
        (means, variances), counts = found[:, :-1].chunk(2, 1), found[:, -1:]
        shares = counts / counts.sum()
        mean = (shares * means).sum(0)
        variance = (shares * (variances + (means - mean).square())).sum(0)
        ctx.processes, ctx.total, ctx.eps = processes, counts.sum(), eps
        ctx.save_for_backward(inputs, weight, mean, variance)
        outputs = torch.batch_norm(inputs, weight, bias, mean, variance, False, 0.0, eps, True)
        ctx.mark_non_differentiable(mean, variance, ctx.total)
        return outputs, mean, variance, ctx.total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        inputs, weight, mean, variance = ctx.saved_tensors
        shape, dims = (1, -1, *[1] * (inputs.dim() - 2)), _places(inputs)
        spread = (variance + ctx.eps).rsqrt()
        gradient = gradients[0].to(mean.dtype)
        standard = (inputs - mean.view(shape)) * spread.view(shape)
        ours = torch.stack([gradient.sum(dims), (gradient * standard).sum(dims)])
        of_bias, of_weight = ctx.processes.summed(ours) / ctx.total
        inner = gradient - of_bias.view(shape) - standard * of_weight.view(shape)
        passed = inner * (weight * spread).view(shape)
        return passed.to(inputs.dtype), ours[1].to(weight.dtype), ours[0].to(weight.dtype), None, None


def _places(inputs: Tensor) -> list[int]:
    """Return the dimensions of [N, C, ...] that a batch norm's statistics are over."""
    return [0, *range(2, inputs.dim())]
