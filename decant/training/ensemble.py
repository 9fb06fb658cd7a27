"""What several teachers answer together: the mean of their logits, or of their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from decant.errors import DecantError
from decant.lazy import torch
from decant.targets import Labels, Target, Tokens, by_place

if TYPE_CHECKING:
    from torch import Tensor

Averaged = Literal["logits", "probabilities"]


@dataclass(frozen=True)
class Mean:
    """The mean of the outputs of teachers, as logits again.

    Of logits it is the geometric mean of what they hold for likely, as far as a softmax can tell; of
    probabilities the arithmetic one, which a teacher that is certain of another class takes less from.

    Attributes:
        weights: Of each teacher, greater than 0, only their ratios count; empty where all weigh as much.
        of: What the mean is taken of. Of probabilities it is theirs at temperature 1, and its logarithm is
            what a loss softens; of several labels, the log odds of the mean probability of each.

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network, 2015, section 3, which names both means.
        https://arxiv.org/abs/1503.02531
    """

    weights: tuple[float, ...] = ()
    of: Averaged = "logits"

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights as shares of one; empty where all are equal."""
        whole = sum(self.weights)
        return tuple(each / whole for each in self.weights) if len({*self.weights}) > 1 else ()

    def __call__(self, outputs: Sequence[Tensor], target: Target, places: int = 1) -> Tensor:
        """Return the mean [N, M].

        Args:
            outputs: Of each teacher [N, M], float.
            target: What outputs are logits of; not looked at where the mean is of logits.
            places: Tokens of a row, where the target is the next one.

        Raises:
            DecantError: A teacher answers with another number of outputs.
        """
        _check_alike(outputs)
        if len(outputs) == 1:
            return outputs[0]
        if self.of == "logits":
            return self._weighed(outputs)
        if isinstance(target, Labels):
            functions = torch.nn.functional.logsigmoid
            return self._pooled([functions(z) for z in outputs]) - self._pooled(
                [functions(-z) for z in outputs]
            )
        if isinstance(target, Tokens):
            return self._of_classes([by_place(z, places) for z in outputs]).flatten(1)
        return self._of_classes(outputs)

    def _weighed(self, outputs: Sequence[Tensor]) -> Tensor:
        if not self.shares:
            return torch.stack([*outputs]).mean(0)
        return torch.stack([share * z for share, z in zip(self.shares, outputs, strict=True)]).sum(0)

    def _of_classes(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return the mean of probabilities over the last dimension, with the mean offset of the logits.

        So teachers that say the same have their own logits for a mean.
        """
        return self._pooled([z.log_softmax(-1) for z in outputs]) + self._weighed(
            [z.logsumexp(-1, keepdim=True) for z in outputs]
        )

    def _pooled(self, logs: Sequence[Tensor]) -> Tensor:
        """Return the logarithm of the mean of what has these logarithms."""
        shares = torch.tensor(self.shares or [1 / len(logs)] * len(logs), dtype=logs[0].dtype)
        scaled = [log + share.log().to(log.device) for log, share in zip(logs, shares, strict=True)]
        return torch.stack(scaled).logsumexp(0)


def _check_alike(outputs: Sequence[Tensor]) -> None:
    """Refuse teachers that answer with different numbers of outputs."""
    for number, each in enumerate(outputs[1:], start=2):
        if each.shape != outputs[0].shape:
            raise DecantError(
                f"ensemble: teacher {number} answers with {each.shape[1]:,} numbers for each example, and "
                f"the first one with {outputs[0].shape[1]:,}; take teachers that answer the same"
            )
