"""What cannot be done with the data's labels, or without any: told before a stage has run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from decant.prune.criteria import Taylor
from decant.prune.schedules import Rewind
from decant.schema import Section
from decant.training.ramps import largest
from decant.training.soft import Soft
from tasks.pipeline.metrics import BY_TARGET
from tasks.prepare.params import AnyData
from tasks.teacher.params import TeacherParams
from tasks.validate.gates import Gates

NONE = "and data.labels names none"
OTHERS = "and the target has none"

CLASSES = ("classes", "balanced")
"""The targets for which outputs are logits of classes."""

HOW = {"classes": "have labels", "same": "have no labels"}


def unlabelled(
    data: AnyData, teacher: TeacherParams, models: Mapping[str, Section], gates: Gates
) -> Iterator[str]:
    """Yield a line for each part of params.yaml that needs labels where there are none, or the other way."""
    yield from _unmeasured(gates, data.measured)
    if data.measured in CLASSES:
        return
    labels = data.measured != "same"
    if teacher.stored is None and not labels:
        yield f"teacher.training: a teacher is trained on labels, {NONE}; give weights instead"
    if teacher.expect is not None and teacher.expect.accuracy is not None:
        why = f"classes, {OTHERS}" if labels else f"labels, {NONE}"
        yield f"teacher.expect.accuracy: is of {why}; give outputs instead"
    for name, block in models.items():
        yield from _needing(block, f"models.{name}", data.measured)


def _unmeasured(gates: Gates, target: str) -> Iterator[str]:
    """Yield a line for each gate on a metric that no model has."""
    measured = BY_TARGET[target]
    places = {"gates.all": gates.all, **{f"gates.models.{name}": own for name, own in gates.models.items()}}
    for place, limits in places.items():
        for metric in type(limits).model_fields:
            if getattr(limits, metric) is not None and metric not in measured.gated:
                how = HOW.get(target, f"have {target} as target")
                yield f"{place}.{metric}: is no measure of models whose data {how}; take {measured.quality}"


def _needing(section: Section, place: str, target: str) -> Iterator[str]:
    """Yield a line for each part of a block that needs classes; or labels, where there are none."""
    labels = target != "same"
    for name in type(section).model_fields:
        value, here = getattr(section, name), f"{place}.{name}"
        if isinstance(value, Soft):
            yield from _soft(value, here, target)
        elif isinstance(value, Taylor) and not labels:
            yield f"{here}.kind: {value.kind} needs labels, {NONE}; take fisher, wanda, obs or magnitude"
        elif isinstance(value, Rewind) and not labels:
            yield f"{here}.kind: {value.kind} trains on labels again, {NONE}; take iterative or gradual"
        elif isinstance(value, Section):
            yield from _needing(value, here, target)


def _soft(loss: Soft, place: str, target: str) -> Iterator[str]:
    """Yield a line for each loss that compares classes, which there are none of here, and for their share."""
    labels, tokens = target != "same", target == "tokens"
    why = OTHERS if labels else NONE
    members = loss.members()
    for number, member in enumerate(members):
        here = place if members == (loss,) else f"{place}.parts.{number}.loss"
        if member.of_classes and not tokens:
            yield f"{here}.kind: {member.kind} needs logits of classes, {why}; take outputs"
    if largest(loss.hard) and not labels and not any(member.of_classes for member in members):
        yield f"{place}.hard: is the share of labels in the loss, {NONE}; take hard: 0"
