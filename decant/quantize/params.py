"""The block of a model with `op: quantize`: levels, inputs, what comes before, how weights get there."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from decant.calibration.ranges import MinMax, Mse, Ranges
from decant.networks.devices import Device, idle
from decant.quantize.logit_codes import LogitCodes
from decant.quantize.mixed_precision.params import Mixed
from decant.quantize.qat.trainers import Train, check_pairing
from decant.quantize.rounding.methods import Nearest, Rounding
from decant.quantize.schemes import Integer, Scheme, check_width
from decant.schema import Block, Section, TrainImages


class Activations(Section):
    """How the inputs of layers are rounded: to unsigned integers, affine, per tensor.

    Attributes:
        bits: Width of a code; 1 leaves zero and one step.
        range: Which part of the range that calibration images cover is kept.
        dynamic: Each batch has the range that it has, and nothing is calibrated.
        rows: Each row of a linear layer's inputs has a range of its own, where inputs are dynamic: `true`,
            or the names of layers or larger modules.
    """

    bits: Annotated[int, Field(ge=1, le=8)] = 8
    range: Ranges = MinMax()
    dynamic: bool = False
    rows: bool | tuple[str, ...] = False

    @model_validator(mode="after")
    def _fitting(self) -> Activations:
        check_width(self.range, self.bits)
        if self.range.per_channel:
            raise ValueError(
                "range.per_channel: inputs are rounded per tensor; clip them per channel first, "
                "with `op: clip` and `target: activations`"
            )
        if self.dynamic and not isinstance(self.range, MinMax):
            raise ValueError("range: dynamic inputs take the range of each batch; leave it out")
        if self.rows and not self.dynamic:
            raise ValueError("rows: only dynamic inputs have a range for each row; add dynamic: true")
        if self.bits == 1 and (self.dynamic or not isinstance(self.range, Mse)):
            found = "dynamic: leave it out" if self.dynamic else f"range {self.range.kind}"
            raise ValueError(
                f"bits: 1 needs range: {{kind: mse}}, as only inputs above half of the largest would be more "
                f"than 0 in the whole range; got {found}"
            )
        return self


def _form(value: Any) -> str:
    return "scheme" if isinstance(value, dict | Integer) else "word"


Ends = Annotated[
    Annotated[Integer, Tag("scheme")] | Annotated[Literal["same"], Tag("word")], Discriminator(_form)
]
"""Told apart by their form, so that a mistake is one of one form alone."""


class QuantizeParams(Block):
    """What the weights are rounded to, and the inputs of layers where they are rounded too.

    Attributes:
        scheme: The levels of the weights.
        activations: How inputs are rounded; they stay in float32 where it is left out.
        images: Training images for ranges, Hessians and corrections; the first so many.
        statistics: Estimate the statistics of batch norms anew on training images, before weights are rounded
            and once they are; batch norms are folded after that.
        fold: Fold batch norms into the convolutions before them.
        equalize: Move size between layers until their channels have equal ranges.
        smooth: Move so much of the inputs' outliers into the weights, in (0, 1).
        rounding: Which of the levels near it a weight goes to.
        correct_bias: Take the mean of what rounding adds to each channel off its bias.
        logits: Bring the answers near to the parent's by the steps between levels, biases and all else that
            is not rounded; each rounded weight keeps its code, unless `codes` lets it change.
        mixed: Give each layer a width of its own, under a budget.
        train: Train the weights, and what rounds them, on levels.
        first_and_last: Another scheme for the first and the last layer; `same` for the scheme itself. Where
            it is left out, binary models keep these two in 8 bits and all others take the scheme.
        skip: Layers whose weights and inputs are not rounded; a training trains them with the rest.
        device: Where networks run for ranges of inputs, statistics and biases, layers are rounded by their
            outputs, and `train` trains. The ranges of weights are found on the processor.
    """

    op: Literal["quantize"]
    scheme: Scheme
    activations: Activations | None = None
    images: TrainImages = 1000
    statistics: bool = False
    fold: bool = True
    equalize: bool = False
    smooth: Annotated[float, Field(gt=0, lt=1)] | None = None
    rounding: Rounding = Nearest()
    correct_bias: bool = False
    logits: Annotated[LogitCodes | None, Field(exclude_if=lambda given: given is None)] = None
    mixed: Mixed | None = None
    train: Train | None = None
    first_and_last: Ends | None = None
    skip: tuple[str, ...] = ()
    device: Device = "cpu"

    @model_validator(mode="after")
    def _fitting(self) -> QuantizeParams:
        """Refuse choices that do not go together, each with what to take instead."""
        checks = (self._before(), self._searched(), self._training(), self._widths())
        if wrong := [message for message in checks if message]:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def ends(self) -> Integer | None:
        """The scheme of the first and the last layer, where it is another one."""
        if self.first_and_last == "same":
            return None
        return self.first_and_last or (Integer(bits=8) if self.scheme.wide_ends else None)

    def _before(self) -> str:
        balanced = [name for name in ("equalize", "smooth", "correct_bias") if getattr(self, name)]
        if balanced and not self.fold:
            return f"{balanced[0]} needs a bias in every layer: take fold: true"
        if self.statistics and (folding := [*balanced, *(["mixed"] if self.mixed else [])]):
            return f"{folding[0]} needs batch norms folded, and statistics needs them alive: leave out one"
        if self.smooth is not None and self.activations is None:
            return "smooth helps inputs that are rounded: give activations, or leave it out"
        return ""

    def _searched(self) -> str:
        if (
            isinstance(self.rounding, Nearest)
            or self.rounding.search == 1
            or isinstance(self.scheme, Integer)
        ):
            return ""
        return (
            f"rounding.search narrows the range of integers, got scheme {self.scheme.kind}: leave it out, or "
            f"take scheme: {{kind: integer}}, which has three levels with bits: 2"
        )

    def _training(self) -> str:
        if self.train is None:
            calibrated = self.activations is not None and not self.activations.dynamic
            busy = calibrated or self.rounding.needs_moments or self.correct_bias or self.statistics
            return "" if busy else idle(self.device)
        if wrong := self.train.training.unsuited(self.device):
            return f"train.{wrong}"
        useless = [
            name
            for name, given in (
                ("rounding", not isinstance(self.rounding, Nearest)),
                ("statistics", self.statistics),
                ("equalize", self.equalize),
                ("smooth", self.smooth is not None),
                ("correct_bias", self.correct_bias),
                ("logits", self.logits is not None),
            )
            if given
        ]
        if useless:
            listed, verb = ", ".join(useless), "is" if len(useless) == 1 else "are"
            return f"{listed} {verb} undone by training: leave out {listed}, or train"
        if self.activations is not None and self.activations.dynamic:
            return "train learns grids of inputs that stand still: leave out dynamic"
        return check_pairing(self.train, self.scheme, self.activations is not None)

    def _widths(self) -> str:
        if self.mixed is None:
            return ""
        if not isinstance(self.scheme, Integer):
            return f"mixed chooses widths of integers, got scheme {self.scheme.kind}"
        if self.train and self.fold and not self.scheme.per_channel:
            return (
                "mixed counts one scale for each tensor, and folding after training gives each channel one: "
                "take per_channel: true, or fold: false"
            )
        return ""
