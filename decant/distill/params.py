"""The block of a model with `op: distill`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, field_validator, model_validator

from decant.distill.students import Student
from decant.networks.augmentation import Augmentation
from decant.networks.devices import Device
from decant.schema import Block, Name, Positive, Section
from decant.training.ensemble import Averaged
from decant.training.losses import SoftTargets
from decant.training.recipe import Training

Names = Annotated[tuple[Name, ...], Field(min_length=1, max_length=64)]
Teachers = Annotated[dict[Name, Positive], Field(max_length=64)]
"""Models by name, and the weight of each in the mean."""


class Ensemble(Section):
    """Several teachers, of whose outputs a mean is matched: the model in `from`, and more.

    Does not help where the teachers answer alike, such as a model and what it was compressed to: each has to
    be right where others are wrong.

    Attributes:
        teachers: Models that `from` descends from, the first one is `teacher`; a list of names, or each with
            its weight. `from` is one of them whether it is named or not.
        seeds: Whether what other seeds made of each of them answers too, with the same weight.
        mean: Of `logits`, or of `probabilities`.

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network, 2015, section 3; and Mirzadeh et al.,
        Improved Knowledge Distillation via Teacher Assistant, 2019, for teachers of one chain.
        https://arxiv.org/abs/1503.02531, https://arxiv.org/abs/1902.03393
    """

    teachers: Teachers = Field(default={}, exclude_if=lambda named: not named)
    seeds: bool = Field(default=False, exclude_if=lambda seeds: not seeds)
    mean: Averaged = "logits"

    @field_validator("teachers", mode="before")
    @classmethod
    def _weighed(cls, named: Any) -> Any:
        """Let a list of names be read as names of weight 1."""
        if isinstance(named, list | tuple):
            return weighed(named)
        if isinstance(named, dict) and (wrong := [n for n, w in named.items() if isinstance(w, bool | str)]):
            raise ValueError(f"the weight of {wrong[0]} must be a number, got {named[wrong[0]]!r}")
        return named

    @model_validator(mode="after")
    def _several(self) -> Ensemble:
        if not self.teachers and not self.seeds:
            raise ValueError("names no teacher beside from: name some in teachers, or take seeds: true")
        return self


def weighed(names: Any) -> dict[str, float]:
    """Return names of teachers, each with the weight 1.

    Raises:
        ValidationError: These are no names.
        ValueError: One is named twice.
    """
    found = TypeAdapter(Names).validate_python(names)
    if twice := sorted({name for name in found if found.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} twice: name each once, and give it a weight instead")
    return dict.fromkeys(found, 1.0)


class DistillParams(Block):
    """The student, what it has to match, and how it is trained; its teacher is the model in `from`.

    Attributes:
        student: An architecture, or the budget that one of the teacher's family is proposed for.
        ensemble: Several teachers; true is `from` and `teacher`, such as an assistant and its own teacher,
            and a list is names of teachers. Features are those of `from`.
        cache: Whether teachers answer all training examples once, before the first epoch, and no batch;
            images must not be augmented, and nothing inside of the teacher be looked at.
        start: What the student's weights are before the training: `fresh`, or the teacher's where shapes
            allow, cut to the channels that pruning by reconstruction would keep.
        device: Where the student is trained, and its teacher answers.
    """

    op: Literal["distill"]
    student: Student
    loss: SoftTargets
    training: Training
    ensemble: bool | Names | Ensemble = Field(default=False, exclude_if=lambda several: several is False)
    cache: bool = Field(default=False, exclude_if=lambda cache: not cache)
    start: Literal["fresh", "teacher"] = Field(default="fresh", exclude_if=lambda start: start == "fresh")
    device: Device = "cpu"

    @field_validator("ensemble", mode="before")
    @classmethod
    def _of_a_form(cls, given: Any) -> Any:
        """Read each form by itself, so that a mistake in one is told of that one alone."""
        if isinstance(given, list | tuple):
            return tuple(weighed(given))
        if isinstance(given, dict):
            return Ensemble.model_validate(given)
        if not isinstance(given, bool | Ensemble):
            raise ValueError(f"must be true, a list of teachers, or a mapping, got {given!r}")
        return given

    @property
    def together(self) -> Ensemble | None:
        """The teachers beside `from`; None where it teaches alone."""
        if isinstance(self.ensemble, Ensemble):
            return self.ensemble
        if isinstance(self.ensemble, tuple):
            return Ensemble(teachers=weighed(self.ensemble))
        return Ensemble(teachers={"teacher": 1.0}) if self.ensemble else None

    @model_validator(mode="after")
    def _fitting(self) -> DistillParams:
        if wrong := self.training.unsuited(self.device):
            raise ValueError(wrong)
        return self

    @model_validator(mode="after")
    def _cacheable(self) -> DistillParams:
        if self.cache and self.training.augmentation != Augmentation():
            raise ValueError(
                "cache: augmentation changes images in each epoch, so no answer can be kept; leave one out"
            )
        if self.cache and any(getattr(part, "layers", None) for part in self.loss.members()):
            raise ValueError(
                "cache: keeps outputs, and this loss looks at layers of the teacher; leave it out"
            )
        return self
