"""When weights are removed: each schedule is one class, and the union names them for params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import Field, model_validator

from decant.schema import Count, Fraction, Index, NotNegative, Section
from decant.training.losses import SoftTargets
from decant.training.recipe import Training


class Rounds(Protocol):
    """What removes in several rounds, each a part of the way."""

    @property
    def rounds(self) -> int:
        """How many there are."""

    def part(self, number: int, start: float, end: float) -> float:
        """Return how much is left after round `number` of 1 to `rounds`."""


class OneShot(Section):
    """All at once, and no training: `finetune` may follow as a model of its own.

    Does not help at high sparsity without training after it, except with `obs`.
    """

    kind: Literal["one-shot"] = "one-shot"


class Trained(Section):
    """What schedules that train have: how, and on what; with `loss`, on the soft targets of `teacher`."""

    training: Training
    loss: SoftTargets | None = None


class Iterative(Trained):
    """Some, then train, then score again and remove more: `rounds` times, each leaving the same share.

    Does not help where one round of as many epochs in all does: every round trains `training` once.

    References:
        Han et al., Learning both Weights and Connections for Efficient Neural Networks, 2015.
        https://arxiv.org/abs/1506.02626
    """

    kind: Literal["iterative"] = "iterative"
    rounds: Annotated[int, Field(ge=2, le=1000)] = 3

    def part(self, number: int, start: float, end: float) -> float:
        """Return how much is left after round `number` of 1 to `rounds`, on the geometric way to `end`."""
        return float(start * (end / start) ** (number / self.rounds))


class During(Trained):
    """What schedules have that change masks inside one training.

    Attributes:
        begin: Share of the steps before which nothing is removed.
        end: Share of the steps after which masks stand still, so that the rest trains what is left.
        every: Steps from one change of the masks to the next.
    """

    begin: Fraction = 0.0
    end: Fraction = 0.6
    every: Count = 50

    @model_validator(mode="after")
    def _ordered(self) -> During:
        if self.begin >= self.end:
            raise ValueError(f"begin {self.begin} is not below end {self.end}")
        return self

    def due(self, step: int, steps: int) -> bool:
        """Say whether masks change before the next step, of which `step` of all `steps` were taken."""
        first, last = self._span(steps)
        return first <= step <= last and ((step - first) % self.every == 0 or step == last)

    def complete(self, taken: int, steps: int) -> bool:
        """Say whether masks stand still once `taken` of all `steps` were taken; after the last they do."""
        return taken > self._span(steps)[1]

    def ramp(self, step: int, steps: int) -> float:
        """Return the share in [0, 1] of the final removals at a step: the cubic of Zhu and Gupta."""
        first, last = self._span(steps)
        if step >= last:
            return 1.0
        return float(1 - (1 - max(step - first, 0) / (last - first)) ** 3)

    def _span(self, steps: int) -> tuple[int, int]:
        """Return the first and the last step before which masks change; the last one of all at the latest."""
        first = min(round(self.begin * steps), steps - 1)
        return first, max(first, min(round(self.end * steps), steps - 1))


class Gradual(During):
    """More and more inside one training, fast at first: removed(t) = end * (1 - (1 - t)^3); none comes back.

    Helps most at high sparsity: the network adapts while there is still much of it. Does not help with fewer
    steps after `end` than it takes to settle.

    References:
        Zhu and Gupta, To Prune, or Not to Prune, 2017. https://arxiv.org/abs/1710.01878
    """

    kind: Literal["gradual"] = "gradual"


class Surgery(During):
    """Gradual, and removed weights go on learning behind their masks: one that grew comes back.

    So that masks do not flicker, a removed weight has to score `lead` more, as a share, than one in place.
    Does not help with a small learning rate, at which nothing behind a mask ever overtakes.

    References:
        Guo et al., Dynamic Network Surgery for Efficient DNNs, 2016. https://arxiv.org/abs/1608.04493
    """

    kind: Literal["surgery"] = "surgery"
    lead: NotNegative = 0.1


class Rigl(During):
    """The whole sparsity from the start; now and then the smallest weights make way for others.

    At each change a share of the survivors, `share` at first and less by a cosine, is removed where |w| is
    least, and as many weights come back, at zero, where |dL/dw| is largest; each layer keeps its number.
    Does not help in a short training: what comes back has to learn first.

    References:
        Evci et al., Rigging the Lottery: Making All Tickets Winners, 2019. https://arxiv.org/abs/1911.11134
    """

    kind: Literal["rigl"] = "rigl"
    end: Fraction = 0.75
    share: Annotated[float, Field(gt=0, lt=1)] = 0.3


class Rewind(Section):
    """All at once, then trained again as the teacher was, from `epoch` of its recipe to the end.

    `weights: true` sets the survivors back to what they were then (epoch 0: fresh, the lottery ticket);
    otherwise they keep their values and only the learning rate goes back. Costs as many epochs as are left.
    Does not help over `finetune` where there is time for a few epochs only.

    References:
        Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2019.
        https://arxiv.org/abs/1912.05671
        Renda et al., Comparing Rewinding and Fine-tuning in Neural Network Pruning, 2020.
        https://arxiv.org/abs/2003.02389
    """

    kind: Literal["rewind"] = "rewind"
    epoch: Index
    weights: bool = True


Schedule = Annotated[OneShot | Iterative | Gradual | Surgery | Rigl | Rewind, Field(discriminator="kind")]
