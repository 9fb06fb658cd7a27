"""Which of its levels each weight goes to: each way is one class, and the union names them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from decant.quantize.rounding.adaround import AdaRound
from decant.quantize.rounding.gptq import Gptq
from decant.schema import Section

if TYPE_CHECKING:
    from torch import Tensor

    from decant.checkpoints.constraints import Constraints
    from decant.reconstruction.hessians import InputHessian


class Nearest(Section):
    """Each weight goes to its nearest level, whatever the others do.

    The least error of the weights, and not of the outputs: does not help below 4 bits, where errors that
    point the same way add up over a layer's inputs.
    """

    needs_moments: ClassVar[bool] = False

    kind: Literal["nearest"] = "nearest"

    def rounded(self, weight: Tensor, held: Constraints, moments: InputHessian | None) -> Tensor:
        """Return the weight on its levels, of its shape; the moments are not read."""
        return held.project(weight.detach())

    def fitted(
        self, weight: Tensor, held: Constraints, moments: InputHessian | None
    ) -> tuple[Tensor, Constraints]:
        """Return the same, and its constraints then, which are those given."""
        return self.rounded(weight, held, moments), held


Rounding = Annotated[Nearest | Gptq | AdaRound, Field(discriminator="kind")]
