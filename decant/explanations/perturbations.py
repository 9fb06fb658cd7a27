"""LIME, Kernel SHAP and occlusion, through captum: what a network answers without some features.

All three ask the deployed function and no gradient, so that they fit any model. captum's own LIME and Kernel
SHAP build each perturbed input by itself, and fit by scikit-learn; here they go through `LimeBase` on the
marks of what is kept, drawn once for all examples, with the network asked for many at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from decant.explanations.masked import TOGETHER, Masked

DRAWS = 100
"""Perturbations of an example; `PER_FEATURE` for each feature where those are more."""

PER_FEATURE = 4

ENDS = 1e6
"""Weight of a whole and of an empty example in Kernel SHAP, where it is infinite; captum's too."""

LIME_WIDTH, LIME_RIDGE = 0.25, 1.0
"""Of the kernel of cosine distances, and the ridge, of LIME's own implementation for pictures."""


@dataclass(frozen=True)
class Perturbations:
    """What is kept of an example, again and again, and what each time counts.

    Attributes:
        kept: True where a feature stays [P, M].
        weights: [P], float64.
    """

    kept: Tensor
    weights: Tensor


def kernel_shap(masked: Masked, seed: int) -> Tensor:
    """Return Shapley values [N, M] by weighted least squares, float64: a feature's fair share of the score.

    They add up to the score of the example less that of nothing. With few features all 2^M subsets are
    evaluated and the values are exact; otherwise subsets are drawn by the Shapley kernel, each with its
    complement, which halves the variance or better.

    References:
        Lundberg and Lee, A Unified Approach to Interpreting Model Predictions, 2017, section 4.1.
        https://arxiv.org/abs/1705.07874
        Covert and Lee, Improving KernelSHAP: Practical Shapley Value Estimation via Linear Regression, 2021,
        section 4. https://arxiv.org/abs/2012.01536
    """
    return _surrogates(masked, lambda count: shapley_subsets(count, _generator(seed)), ridge=1e-6)


def lime(masked: Masked, seed: int) -> Tensor:
    """Return the slopes [N, M] of a linear function that is near the network around each example, float64.

    Each feature is kept or not by a coin, and each draw comes with its complement. A draw counts by the
    cosine distance of its marks from the whole example; the fit is a ridge regression.

    References:
        Ribeiro et al., "Why Should I Trust You?": Explaining the Predictions of Any Classifier, 2016, section
        3. https://arxiv.org/abs/1602.04938
    """
    return _surrogates(masked, lambda count: coins(count, _generator(seed)), ridge=LIME_RIDGE)


def occlusion(masked: Masked) -> Tensor:
    """Return what each feature's removal, of all others none, takes from the score [N, M], float64.

    References:
        Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, 2014, section 2.2.
        https://arxiv.org/abs/1311.2901
    """
    from captum.attr import FeatureAblation

    counts, most = masked.features.counts, masked.features.most
    rows = torch.arange(len(counts))
    ablation = FeatureAblation(lambda marks, which: masked(which, marks > 0.5))
    found: Tensor = ablation.attribute(
        torch.ones(len(counts), most, dtype=torch.float64),
        baselines=0.0,
        additional_forward_args=(rows,),
        perturbations_per_eval=max(1, 2 * TOGETHER // len(counts)),
    )
    return masked.rounded(found)


def shapley_subsets(count: int, generator: torch.Generator) -> Perturbations:
    """Return subsets of `count` features as Kernel SHAP weighs them: all of them, or drawn; then the ends."""
    draws = draws_of(count)
    ends = torch.stack([torch.ones(count), torch.zeros(count)]).bool()
    if 2**count - 2 <= draws:
        subsets = torch.tensor(list(product((False, True), repeat=count))[1:-1]).reshape(-1, count).bool()
        weights = torch.tensor(
            [(count - 1) / (math.comb(count, int(n)) * n * (count - n)) for n in subsets.sum(1).tolist()]
        ).double()
    else:
        sizes = torch.arange(1, count, dtype=torch.float64)
        chosen = torch.multinomial(1 / (sizes * (count - sizes)), draws // 2, True, generator=generator) + 1
        places = torch.rand(draws // 2, count, generator=generator).argsort(dim=1).argsort(dim=1)
        subsets = paired(places < chosen[:, None])
        weights = torch.ones(len(subsets), dtype=torch.float64)
    heavy = torch.full((2,), ENDS, dtype=torch.float64)
    return Perturbations(torch.cat([subsets, ends]), torch.cat([weights, heavy]))


def coins(count: int, generator: torch.Generator) -> Perturbations:
    """Return subsets of `count` features that LIME draws, and how near each one is to the whole."""
    kept = paired(torch.rand(draws_of(count) // 2, count, generator=generator) < 0.5)
    distances = 1 - kept.double().mean(1).sqrt()
    return Perturbations(kept, torch.exp(-distances.square() / LIME_WIDTH**2).sqrt())


def draws_of(count: int) -> int:
    """Return how many perturbations an example of `count` features has; an even number."""
    return max(DRAWS, 2 * math.ceil(PER_FEATURE * count / 2))


def paired(kept: Tensor) -> Tensor:
    """Return subsets [P, M] and their complements [2 P, M]."""
    return torch.cat([kept, ~kept])


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _surrogates(masked: Masked, draw: Callable[[int], Perturbations], ridge: float) -> Tensor:
    """Return the slopes [N, M] of a linear fit to each example's scores under its perturbations."""
    features = masked.features
    found = torch.zeros(len(features.counts), features.most, dtype=torch.float64)
    drawn = {count: draw(count) for count in set(features.counts.tolist()) if count}
    for row, count in enumerate(features.counts.tolist()):
        if count:
            found[row, :count] = _slopes(masked, row, drawn[count], ridge)
    return masked.rounded(found)


def _slopes(masked: Masked, row: int, drawn: Perturbations, ridge: float) -> Tensor:
    """Return the slopes [m] of captum's linear surrogate of one example's score."""
    from captum.attr import LimeBase

    behind = masked.features.most - drawn.kept.shape[1]
    weights = iter(drawn.weights)

    def score(kept: Tensor) -> Tensor:
        return masked(torch.full((len(kept),), row), torch.nn.functional.pad(kept, (0, behind)))

    def perturb(*_: Any, **__: Any) -> Iterator[Tensor]:
        yield from drawn.kept[:, None]

    def weight(*_: Any, **__: Any) -> Tensor:
        return next(weights)[None]

    def as_it_is(kept: Tensor, *_: Any, **__: Any) -> Tensor:
        return kept

    surrogate = LimeBase(score, RidgeRegression(ridge), weight, perturb, True, as_it_is, None)
    draws = len(drawn.kept)
    found: Tensor = surrogate.attribute(
        torch.ones(1, drawn.kept.shape[1]), n_samples=draws, perturbations_per_eval=draws
    )
    return found


class RidgeRegression:
    """A linear function with an intercept, fitted in closed form in float64: the same bits every time.

    Args:
        ridge: Added to the diagonal of the slopes, not of the intercept.
    """

    def __init__(self, ridge: float) -> None:
        self.ridge = ridge
        self.slopes = torch.zeros(0, dtype=torch.float64)

    def fit(self, batches: Any, **_: Any) -> None:
        """Fit to batches of inputs [B, M], outputs [B] and weights [B]."""
        inputs, outputs, weights = (torch.cat(part).double() for part in zip(*batches, strict=True))
        outputs = outputs - outputs[0]  # so that those of a constant are exactly 0
        shares = weights / weights.sum()
        inputs, outputs = inputs - shares @ inputs, outputs - shares @ outputs
        squares = inputs.T @ (weights[:, None] * inputs)
        squares.diagonal().add_(self.ridge)
        self.slopes = torch.linalg.solve(squares, inputs.T @ (weights * outputs))

    def representation(self) -> Tensor:
        """Return the slopes [M]."""
        return self.slopes
