"""How important each weight is: each criterion is one class, and the union names them for params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tasks.data import Examples
from tasks.models import compressible
from tasks.params import Section

Scores = dict[str, Tensor]
"""Importance of each weight, by name, in the weight's shape; what scores least is removed first."""


class Magnitude(Section):
    """Score |w|: a small weight moves its layer's output little.

    Does not help across layers of different scale, such as before and after a batch norm: use scope `layer`
    there. It does not look at the data.

    References:
        Han et al., Learning both Weights and Connections for Efficient Neural Networks, 2015.
        https://arxiv.org/abs/1506.02626
    """

    kind: Literal["magnitude"] = "magnitude"

    def scores(self, module: nn.Module, examples: Examples, seed: int) -> Scores:
        """Return |w| per weight."""
        return {name: weight.detach().abs() for name, weight in compressible(module).items()}


class Random(Section):
    """Score by chance: the control that any other criterion has to beat.

    References:
        Blalock et al., What is the State of Neural Network Pruning?, 2020. https://arxiv.org/abs/2003.03033
    """

    kind: Literal["random"] = "random"

    def scores(self, module: nn.Module, examples: Examples, seed: int) -> Scores:
        """Return a uniform draw in [0, 1) per weight, a function of the seed."""
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.rand(weight.shape, generator=generator)
            for name, weight in compressible(module).items()
        }


Criterion = Annotated[Magnitude | Random, Field(discriminator="kind")]
