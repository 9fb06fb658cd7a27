"""What a recipe says of answers that are matched: all free numbers of a network, together, without labels."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from decant.schema import Positive, Section, TrainImages


class Logits(Section):
    """Bring the model's answers as near to its parent's as all that may still move allows, without labels.

    The loss is T² KL(parent || model) of the logits of classes at a temperature T, else the squared error
    over the outputs' variance. L-BFGS with a strong Wolfe line search minimizes it, each step over all
    images. Masks, ranges and the codes among levels are held throughout, batch norms keep their statistics.
    Costs about as much as `iterations` epochs on as many images. Does not help where answers are the parent's
    already, nor with few images for many weights: they are learnt by heart.

    Attributes:
        images: Training images; the first so many.
        iterations: Of L-BFGS, at most.
        temperature: T. Above 1, images that the parent is sure of say something too; and it is sure of those
            that it was trained on.

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network, 2015. https://arxiv.org/abs/1503.02531
        Nocedal and Wright, Numerical Optimization, 2006, chapters 3 and 7.
    """

    images: TrainImages = 10_000
    iterations: Annotated[int, Field(gt=0, le=10_000)] = 40
    temperature: Positive = 2.0
