"""All methods that fit the features of a sample, on one model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from decant.errors import DecantError
from decant.explanations.curves import Curves, curves_of
from decant.explanations.gradients import integrated_gradients
from decant.explanations.masked import Masked
from decant.explanations.perturbations import kernel_shap, lime, occlusion
from tasks.explain.sample import Sample

PERTURBING = ("lime", "kernel_shap", "occlusion")
GRADIENTS = "integrated_gradients"
METHODS = (*PERTURBING, GRADIENTS)


@dataclass(frozen=True)
class Explained:
    """What methods say of one model.

    Attributes:
        attributions: By method, one draw or two [N, M] each.
        curves: What the first draw's ranking does to the answer, by method.
        random: What a random ranking does.
    """

    attributions: dict[str, tuple[Tensor, ...]]
    curves: dict[str, Curves]
    random: Curves


def explain(module: nn.Module, function: Callable[..., Any], sample: Sample, draws: int) -> Explained:
    """Return the attributions of all methods that fit, and what they are good for.

    Args:
        module: The network in PyTorch, in eval mode, for gradients.
        function: The same as it ships, for all else.
        sample: What is explained.
        draws: 1, or 2, with which a method is compared with itself: another seed, patches that are shifted,
            or the median in the place of the mean.
    """
    masked = Masked(sample.features, function, sample.answer)
    found = {
        "lime": tuple(lime(masked, seed) for seed in sample.seeds[:draws]),
        "kernel_shap": tuple(kernel_shap(masked, seed) for seed in sample.seeds[:draws]),
        "occlusion": tuple(_occlusions(masked))[:draws] if draws > 1 else (occlusion(masked),),
    }
    if sample.features.gradients:
        found |= _gradients(module, sample, draws)
    level = sample.answer.level
    curves = {method: curves_of(masked, each[0], level) for method, each in found.items()}
    return Explained(found, curves, curves_of(masked, random_ranking(sample), level))


def random_ranking(sample: Sample) -> Tensor:
    """Return attributions [N, M] that say nothing, the same for every model."""
    generator = torch.Generator().manual_seed(sample.seeds[0])
    return torch.rand(len(sample.rows), sample.features.most, generator=generator, dtype=torch.float64)


def _occlusions(masked: Masked) -> Iterator[Tensor]:
    yield occlusion(masked)
    yield masked.features.aligned(occlusion(replace(masked, features=masked.features.shifted())))


def _gradients(module: nn.Module, sample: Sample, draws: int) -> dict[str, tuple[Tensor, ...]]:
    """Return integrated gradients; nothing, and a sentence, where the network has none."""
    baselines = (sample.features, sample.features.rebased())
    try:
        return {
            GRADIENTS: tuple(integrated_gradients(module, each, sample.answer) for each in baselines[:draws])
        }
    except DecantError as error:
        print(f"without integrated gradients: {error}")
        return {}


def in_order(methods: Sequence[str]) -> list[str]:
    """Return methods in the order in which they are written."""
    return [method for method in METHODS if method in methods]
