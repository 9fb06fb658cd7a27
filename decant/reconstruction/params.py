"""What a recipe says of answers that are matched: all free numbers of a network, together, without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from decant.networks.augmentation import Augmentation
from decant.schema import Count, Positive, Section, TrainImages

if TYPE_CHECKING:
    from decant.reconstruction.minimizers import Minimum, Terms


class Lbfgs(Section):
    """L-BFGS with a strong Wolfe line search: each step by all images, and no chance is involved.

    Augmentation changes each image once. Does not help large networks, for which it takes as long for a step
    as `adam` for a pass.

    References:
        Nocedal and Wright, Numerical Optimization, 2006, chapters 3 and 7.
    """

    kind: Literal["l-bfgs"] = "l-bfgs"

    def minimum(self, terms: Terms, iterations: int, seed: int) -> Minimum:
        """Return where the loss of all images is least, after so many directions at most."""
        from decant.reconstruction.minimizers import minimize

        return minimize(terms.changed(seed), terms.start, iterations)


class Adam(Section):
    """Adam, some images at a time: an iteration is a pass over all images, which augmentation changes anew.

    The learning rate falls to zero by half a cosine. Helps convolutional networks and many images, of which
    L-BFGS takes too few, and learns those by heart. Does not help where there are few: it takes few steps.

    Attributes:
        batch_size: Images in a step.
        learning_rate: Of the first step. Of scales it is the share by which they change.

    References:
        Kingma and Ba, Adam: A Method for Stochastic Optimization, 2014. https://arxiv.org/abs/1412.6980
    """

    kind: Literal["adam"] = "adam"
    batch_size: Count = 125
    learning_rate: Positive = 0.0005

    def minimum(self, terms: Terms, iterations: int, seed: int) -> Minimum:
        """Return where so many passes end; the start where the loss of all images is not less there."""
        from decant.reconstruction.minimizers import descend

        size, rate = self.batch_size, self.learning_rate
        return descend(terms, iterations, batch_size=size, learning_rate=rate, seed=seed)


Solver = Annotated[Lbfgs | Adam, Field(discriminator="kind")]


def _default(value: Any) -> bool:
    return value in (Lbfgs(), Augmentation())


class Logits(Section):
    """Bring the model's answers as near to its parent's as all that may still move allows, without labels.

    The loss is T² KL(parent || model) of the logits of classes at a temperature T, else the squared error
    over the outputs' variance. Masks and ranges are held throughout, batch norms keep their statistics.
    Costs about as much as `iterations` epochs on as many images. Does not help where answers are the parent's
    already, nor with few images for many weights: they are learnt by heart.

    Attributes:
        images: Training images; the first so many.
        iterations: Of the solver, at most.
        temperature: T. Above 1, images that the parent is sure of say something too; and it is sure of those
            that it was trained on.
        solver: How the loss is minimized.
        augmentation: How images are changed before both answer them; of other inputs nothing is.

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network, 2015. https://arxiv.org/abs/1503.02531
    """

    images: TrainImages = 10_000
    iterations: Annotated[int, Field(gt=0, le=10_000)] = 40
    temperature: Positive = 2.0
    # Left out where they are the defaults: recipes that are older than these keep their lineage to the byte.
    solver: Annotated[Solver, Field(exclude_if=_default)] = Lbfgs()
    augmentation: Annotated[Augmentation, Field(exclude_if=_default)] = Augmentation()
