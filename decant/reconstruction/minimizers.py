"""Where the least of a loss is: by all of its terms at each step, or by some of them at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from decant.progress import progress_bar

HISTORY = 20
"""Steps from which L-BFGS knows the curvature."""

BETAS = (0.9, 0.99)
"""Adam's: what it remembers of slopes and of their squares."""

Objective = Callable[[Tensor], tuple[float, Tensor]]
"""(values [n]) -> the loss there, and its slope [n]."""


@dataclass(frozen=True)
class Minimum:
    """Where a minimization ended.

    Attributes:
        values: The best that were seen [n].
        loss: There.
        before: At the start.
        iterations: Directions that were followed, or passes over all terms.
        evaluations: How often the loss of all terms and its slope were asked for, or as many in parts.
    """

    values: Tensor
    loss: float
    before: float
    iterations: int
    evaluations: int


def minimize(objective: Objective, start: Tensor, iterations: int) -> Minimum:
    """Return the values of the least loss that L-BFGS came by, which is never above that of the start.

    It is torch's, with a line search for the strong Wolfe conditions; no chance is involved.

    Args:
        objective: What is minimized.
        start: [n]; untouched.
        iterations: At most, from 1 on; with twice as many evaluations at most.

    Raises:
        ValueError: The loss is NaN or infinite at the start.

    References:
        Nocedal and Wright, Numerical Optimization, 2006, algorithms 3.5, 3.6 and 7.5.
    """
    values, seen = start.clone(), list[float]()
    best = start, math.inf

    def closure() -> float:
        nonlocal best
        bar.update()
        loss, values.grad = objective(values)
        if not seen:
            _check_first(loss)
        seen.append(loss)
        if loss < best[1]:
            best = values.clone(), loss
        return loss

    optimizer = torch.optim.LBFGS(
        [values],
        max_iter=iterations,
        max_eval=2 * iterations,
        tolerance_grad=1e-10,
        tolerance_change=1e-12,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )
    with progress_bar(None, "matching answers", "passes", total=2 * iterations) as bar:
        optimizer.step(closure)
    taken = optimizer.state[values].get("n_iter", 0)
    return Minimum(best[0], best[1], seen[0], taken, len(seen))


class Terms(Protocol):
    """A loss that is a mean over terms.

    Attributes:
        start: The values [n] that there are.
    """

    start: Tensor

    def __call__(self, values: Tensor) -> tuple[float, Tensor]:
        """Return the loss of all terms and its slope [n]."""

    def changed(self, seed: int) -> Terms:
        """Return the mean of terms that are changed once, as `part` changes them."""

    def __len__(self) -> int:
        """Return how many terms there are."""

    def loss(self, values: Tensor) -> float:
        """Return the loss of all terms."""

    def part(self, values: Tensor, rows: Tensor, generator: torch.Generator) -> tuple[float, Tensor]:
        """Return the mean of some terms [B], int64, and its slope [n]; the generator changes them."""

    def allowed(self, values: Tensor) -> Tensor:
        """Return the nearest values [n] that may be taken."""


def descend(terms: Terms, passes: int, *, batch_size: int, learning_rate: float, seed: int) -> Minimum:
    """Return where Adam ends, or the start where the loss of all terms is not less in the end.

    Each pass takes all terms in an order of its own, `batch_size` at a time, and leaves out what does not
    fill the last batch. After each step the values are brought back to what is allowed. The learning rate
    falls to zero by half a cosine over all steps.

    Args:
        terms: What is minimized.
        passes: From 1 on.
        batch_size: Terms in a step; all where there are fewer.
        learning_rate: Of the first step, in the unit of the values.
        seed: Of the orders, and of what changes terms; in [0, 2^63).

    Raises:
        ValueError: A loss is NaN or infinite.

    References:
        Kingma and Ba, Adam: A Method for Stochastic Optimization, 2014. https://arxiv.org/abs/1412.6980
        Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2016, equation 5.
        https://arxiv.org/abs/1608.03983
    """
    generator, size = torch.Generator().manual_seed(seed), min(batch_size, len(terms))
    steps = passes * (len(terms) // size)
    before, values = terms.loss(terms.start), terms.start.clone()
    _check_first(before)
    optimizer = torch.optim.Adam([values], learning_rate, betas=BETAS)
    with progress_bar(None, "matching answers", "steps", total=steps) as bar:
        for step in range(steps):
            if step % (steps // passes) == 0:
                order = torch.randperm(len(terms), generator=generator).split(size)
            optimizer.param_groups[0]["lr"] = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
            loss, values.grad = terms.part(values, order[step % (steps // passes)], generator)
            if not math.isfinite(loss):
                raise ValueError(f"The loss is {loss} in step {step + 1} of {steps}; lower learning_rate")
            optimizer.step()
            values.copy_(terms.allowed(values))
            bar.update()
    after = terms.loss(values)
    if not after < before:
        return Minimum(terms.start, before, before, passes, passes)
    return Minimum(values, after, before, passes, passes)


def _check_first(loss: float) -> None:
    if not math.isfinite(loss):
        raise ValueError(f"The loss is {loss} before anything has changed")
