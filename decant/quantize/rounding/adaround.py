"""AdaRound: whether each weight goes to the level below or above it is learnt, a layer at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from decant.checkpoints.constraints import Constraints
from decant.lazy import torch
from decant.quantize.rounding.by_outputs import ByOutputs
from decant.reconstruction.least_squares import NormalEquations
from decant.schema import Count, NotNegative, Positive

if TYPE_CHECKING:
    from torch import Tensor

GAMMA, ZETA = -0.1, 1.1
"""How far the sigmoid is stretched beyond 0 and 1, so that it reaches both: section 3.2 of the paper."""

WARM = 0.2
"""Share of the steps before anything draws to 0 or 1."""

BETA = (20.0, 2.0)
"""The regularizer's exponent, first and last: first only what is nearly decided is drawn on, then all."""

EDGE = math.log(-ZETA / GAMMA)
"""Where h reaches 1, and minus that where it reaches 0."""

BETAS = (0.9, 0.9)
"""Adam's: gradients are exact, and a long memory of their size would let the first, large ones slow it."""


class AdaRound(ByOutputs):
    """Choose for each weight one of its two neighbouring levels so that the layer's outputs change least.

    The choice is h(V) in [0, 1], a stretched sigmoid cut at both ends, of one number V for each weight. Adam
    minimizes the layer's output error, with the weight at `lower + h (upper - lower)`, plus
    `regularization` times Σ 1 - |2 h - 1|^β, which at the end has drawn each h to 0 or to 1. The error is
    the exact quadratic form of the moments (the paper's eq. 20 and 21), so all images count in each step. It
    is measured in units in which nearest rounding errs by 1 for each weight, so that one `regularization`
    serves all layers. V is held where h is not cut, so that what was decided early can still turn. Left out:
    the form with the activation function inside (eq. 25). A row whose error is smaller with nearest rounding
    keeps that.

    Helps where a layer has hardly more rows of inputs than columns, which it learns less by heart, as no
    weight goes further than to a neighbour; and at 2 bits in a range that is not searched for, where it loses
    less than `gptq` (benchmarks/quantization.md). Does not help at 8 bits, and elsewhere no more than `gptq`,
    at several times the time.

    Attributes:
        steps: Steps of Adam. A thousand leave some 5 % less error than 200.
        regularization: Weight of the second term.
        rate: Adam's learning rate, of V.

    References:
        Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, 2020.
        https://arxiv.org/abs/2004.10568
    """

    kind: Literal["adaround"] = "adaround"
    steps: Count = 200
    regularization: NotNegative = 4.0
    rate: Positive = 0.2

    def _damped(self) -> float:
        return 0.0  # nothing is inverted here, so nothing needs damping

    def _solved(self, problem: NormalEquations, rows: Tensor, held: Constraints, nearest: Tensor) -> Tensor:
        lower, upper, share = neighbours(rows, held)
        up = self._learnt(problem, rows, lower, upper, share, nearest) >= 0.5
        return torch.where(up, upper, lower)

    def _learnt(
        self,
        problem: NormalEquations,
        rows: Tensor,
        lower: Tensor,
        upper: Tensor,
        share: Tensor,
        nearest: Tensor,
    ) -> Tensor:
        """Return h [O, d] after the last step."""
        matrix, step = problem.matrix.float(), upper - lower
        # Rows that lie on their levels already, up to rounding, have no noise to measure in.
        noise = _power(problem, nearest - rows).maximum(1e-6 * _power(problem, rows)).clamp(min=1e-30)
        scale = (2 * rows.shape[1] / noise).float()[:, None] * step
        # The gradient where all weights are at their lower level, in float64 as it is a small difference.
        base = (problem.times(lower.double(), problem.matrix) - problem.target).float()
        raw = torch.logit((share - GAMMA) / (ZETA - GAMMA)).clamp(-EDGE, EDGE).requires_grad_()
        adam = torch.optim.Adam([raw], lr=self.rate, betas=BETAS, fused=True)
        with torch.no_grad():
            for number in range(self.steps):
                chosen, slope = rectified(raw), steepness(raw)
                gradient = problem.times(chosen * step, matrix).add_(base).mul_(scale)
                if (beta := exponent(number / self.steps)) is not None:
                    gradient.add_(pull(chosen, beta), alpha=self.regularization)
                raw.grad = gradient.mul_(slope)
                adam.step()
                raw.clamp_(-EDGE, EDGE)
        return rectified(raw.detach())


def _power(problem: NormalEquations, rows: Tensor) -> Tensor:
    """Return the mean square [O], float64, of what rows put out."""
    return (problem.times(rows.double(), problem.matrix) * rows).sum(1)


def rectified(raw: Tensor) -> Tensor:
    """Return h(V), the sigmoid stretched to [GAMMA, ZETA] and cut to [0, 1], elementwise; eq. 23."""
    return (torch.sigmoid(raw) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def steepness(raw: Tensor) -> Tensor:
    """Return dh/dV where h is not cut, elementwise."""
    sigmoid = torch.sigmoid(raw)
    return (sigmoid * (ZETA - GAMMA)).mul_(1 - sigmoid)


def pull(chosen: Tensor, beta: float) -> Tensor:
    """Return the derivative of 1 - |2 h - 1|^β by h, elementwise."""
    off = 2 * chosen - 1
    return off.abs().pow_(beta - 1).mul_(2 * beta).copysign_(-off)


def exponent(done: float) -> float | None:
    """Return β after a share of the steps: None while warming up, then from 20 down to 2 along a cosine."""
    if done < WARM:
        return None
    first, last = BETA
    return last + (first - last) * (1 + math.cos(math.pi * (done - WARM) / (1 - WARM))) / 2


def neighbours(rows: Tensor, held: Constraints) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two levels around each weight, and where between them it lies.

    Beyond the last level, both are the last two. A range or a mask may leave only one, which is both.

    Args:
        rows: [O, d].
        held: Constraints that are written out for each element.

    Returns:
        The lower and the upper level by code, both allowed by all constraints, and the weight's place in
        [0, 1], 0 at the lower one: [O, d] each.
    """
    levels = held.levels
    assert levels is not None
    place = rows / levels.scale
    if levels.zero_point is not None:
        place = place + levels.zero_point
    code = torch.bucketize(place, levels.values, right=True).sub(1).clamp(0, len(levels.values) - 2)
    below, above = levels.values[code], levels.values[code + 1]
    share = ((place - below) / (above - below)).clamp(0, 1)
    return held.project(levels.decode(code)), held.project(levels.decode(code + 1)), share
