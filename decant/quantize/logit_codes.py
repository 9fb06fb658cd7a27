"""Answers brought back to the parent's by what is not rounded, and by what each weight is rounded to."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from decant.reconstruction.params import Adam, Logits


class LogitCodes(Logits):
    """Logits that are matched by steps, biases and, with `codes`, by the level that each weight goes to.

    Attributes:
        codes: Whether the codes of rounded weights may change; those of weights within a range stay. Behind
            each is a number that a slope moves as if it were not rounded (straight through), which needs many
            small steps: solver `adam`. Does not help in a few passes, as codes first turn for nothing: two
            over 55,000 images left the default teacher at 2 bits as far from its answers as before.

    References:
        Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
        Computation, 2013. https://arxiv.org/abs/1308.3432
    """

    codes: Annotated[bool, Field(exclude_if=lambda given: not given)] = False

    @model_validator(mode="after")
    def _in_small_steps(self) -> LogitCodes:
        if self.codes and not isinstance(self.solver, Adam):
            raise ValueError(
                f"logits.codes changes codes in many small steps, got solver {self.solver.kind}: take adam"
            )
        return self
