"""GPTQ: each column is rounded in turn, and the columns after it make up for its error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from decant.checkpoints.constraints import Constraints
from decant.lazy import torch
from decant.quantize.rounding.by_outputs import ByOutputs
from decant.reconstruction.least_squares import NormalEquations
from decant.reconstruction.within import optimum, swept

if TYPE_CHECKING:
    from torch import Tensor


class Gptq(ByOutputs):
    """Round column by column; the columns that are still to come take over the error of each.

    Rows begin at the least squares within the mask and the range for the inputs that the layer really
    receives, so that the errors of earlier layers are made up for. Then column j goes to its nearest levels
    q, and the later ones move by -(w_j - q) / U_jj * U_j,j+1..., with H⁻¹ = Uᵀ U: what minimizes the layer's
    error if they stay free. A masked weight goes to 0 in its turn, and its error is fed on too. Columns on
    inputs that are always zero are rounded to nearest. A row whose error is smaller with nearest rounding
    keeps that.

    Does not help at 8 bits, where nearest rounding costs nothing; nor where there are fewer rows of inputs
    than columns, whose noise it fits; nor activations, which are rounded elsewhere.

    Attributes:
        order: Columns of the largest inputs first (`activation`), which leaves the small ones to make up for
            them, or as they lie (`index`).
        damping: Share of the Hessian's mean diagonal added to its diagonal, in [0, 1].

    References:
        Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers,
        2022. https://arxiv.org/abs/2210.17323
    """

    kind: Literal["gptq"] = "gptq"
    order: Literal["activation", "index"] = "activation"
    damping: Annotated[float, Field(ge=0, le=1)] = 0.01

    def _damped(self) -> float:
        return self.damping

    def _solved(self, problem: NormalEquations, rows: Tensor, held: Constraints, nearest: Tensor) -> Tensor:
        return swept(problem, optimum(problem, held), held, self._columns(problem))

    def _columns(self, problem: NormalEquations) -> Tensor:
        """Return the order of the columns [G, d] of each group."""
        diagonal = problem.matrix.diagonal(dim1=1, dim2=2)
        if self.order == "index":
            return torch.arange(diagonal.shape[1], device=diagonal.device).expand_as(diagonal)
        return diagonal.argsort(dim=1, descending=True, stable=True)
