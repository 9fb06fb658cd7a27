"""The section `teacher` of params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from decant.inputs import TensorInput
from decant.networks.architectures import FOREIGN, Architecture
from decant.networks.devices import Device, idle
from decant.networks.packages import Transformers
from decant.schema import Fraction, Positive, Section
from decant.training.recipe import Training

ALONE = "input"
"""What the only input is called, where neither params.yaml nor the data have a name for it."""


class Weights(Section):
    """A file of weights.

    Attributes:
        file: In `networks/`: .safetensors, a folder of them for transformers, or one of torch's.
        key: Where in a file of torch's the tensors lie, where several places have some.
    """

    file: Annotated[str, Field(max_length=400)]
    key: str = ""

    @field_validator("file")
    @classmethod
    def _inside(cls, file: str) -> str:
        if Path(file).is_absolute() or ".." in Path(file).parts or Path(file).parts[:1] != ("networks",):
            raise ValueError(f"must lie in networks/, of which DVC knows when it changes, got {file!r}")
        return file


class Expectation(Section):
    """What its owner measured of a network with its weights.

    Attributes:
        accuracy: Share in [0, 1] of the validation split.
        outputs: A file in `networks/` with inputs under their names and the right outputs under others, in
            the order in which the network gives them.
        within: How far the found accuracy, or any output, may be from it.
    """

    accuracy: Fraction | None = None
    outputs: str | None = None
    within: Positive

    @model_validator(mode="after")
    def _one(self) -> Expectation:
        if (self.accuracy is None) == (self.outputs is None):
            raise ValueError("needs either accuracy or outputs, a file")
        return self


class TeacherParams(Section):
    """The network, and how it is trained or where its weights are.

    Attributes:
        architecture: What builds it.
        training: How it is trained; without `weights`.
        weights: Weights that it is adopted with, in the place of a training; a folder of transformers has its
            own.
        inputs: What a network of one's own takes, where the data do not say it: a tensor, or several by name.
        expect: What has to come out of the adopted network.
        device: Where it is trained.
    """

    architecture: Architecture
    training: Training | None = None
    weights: Weights | None = None
    inputs: dict[str, TensorInput] | None = None
    expect: Expectation | None = None
    device: Device = "cpu"

    @field_validator("weights", mode="before")
    @classmethod
    def _named(cls, weights: Any) -> Any:
        return {"file": weights} if isinstance(weights, str) else weights

    @field_validator("inputs", mode="before")
    @classmethod
    def _alone(cls, inputs: Any) -> Any:
        single = isinstance(inputs, dict) and "shape" in inputs and not isinstance(inputs["shape"], dict)
        return {ALONE: inputs} if single else inputs

    @model_validator(mode="after")
    def _one_origin(self) -> TeacherParams:
        if self.training is None and self.stored is None:
            raise ValueError("needs training, or weights of a network of your own")
        if self.training is not None and self.weights is not None:
            raise ValueError("weights are adopted as they are: leave training out, and finetune them later")
        wrong = idle(self.device) if self.training is None else self.training.unsuited(self.device)
        if wrong:
            raise ValueError(wrong)
        foreign = isinstance(self.architecture, FOREIGN)
        for name in ("weights", "inputs", "expect"):
            if getattr(self, name) is not None and not foreign:
                raise ValueError(
                    f"{name} belongs to a network of your own (architecture.kind: python, or of a package)"
                )
        if self.expect is not None and self.stored is None:
            raise ValueError("expect is of weights, and there are none")
        return self

    @property
    def stored(self) -> Weights | None:
        """The weights that the teacher is adopted with; None where it is trained."""
        if self.weights is None and self.training is None and isinstance(self.architecture, Transformers):
            return Weights(file=self.architecture.path) if self.architecture.path else None
        return self.weights
