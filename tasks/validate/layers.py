"""Layers that a loss names and a network has not: told before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from decant.distill.params import DistillParams
from decant.lazy import torch
from decant.networks.architectures import OwnArchitecture, Shape
from decant.schema import Section
from decant.training.feature_losses import Features, unknown_layer
from decant.training.soft import Soft
from tasks.validate.chains import TEACHER, Known


def unknown_layers(
    models: Mapping[str, Any], known: Mapping[str, Known], pictures: tuple[Shape, int] | None
) -> Iterator[str]:
    """Yield a line for each layer that a loss on features names and that is not there.

    Only networks that a recipe describes whole are looked at: no network of one's own, none that is proposed,
    and none that an operation before has changed. Nothing is imported for it where no loss names a layer.

    Args:
        models: The blocks of params.yaml, by name.
        known: What is known of each model.
        pictures: The form of one picture, and the number of classes; None where they are not known.
    """
    for name, block in models.items():
        fresh = isinstance(block, DistillParams)
        student, teacher = (name, block.from_) if fresh else (block.from_, TEACHER)
        for place, loss in _losses(block, f"models.{name}"):
            named = (
                ("student", student, list(loss.layers)),
                ("teacher", teacher, list(loss.layers.values())),
            )
            for who, model, paths in named:
                if pictures is not None and (architecture := _whole(known.get(model))) is not None:
                    layers = _layers(architecture, *pictures)
                    for path in dict.fromkeys(each for each in paths if each not in layers):
                        yield f"{place}.layers: {unknown_layer(path, layers, who)}"


def _whole(model: Known | None) -> OwnArchitecture | None:
    """Return a model's architecture where its layers are still those of it; None where that is not known."""
    if model is None or not model.weights or model.folded or model.cut or model.levels or model.inputs:
        return None
    assert isinstance(model.architecture, OwnArchitecture)
    return model.architecture


def _layers(architecture: OwnArchitecture, shape: Shape, classes: int) -> list[str]:
    with torch.device("meta"):
        return [name for name, _ in architecture.build(shape, classes).named_modules() if name]


def _losses(section: Section, place: str) -> Iterator[tuple[str, Features]]:
    """Yield each loss on features inside a block that names layers, with its place."""
    for name in type(section).model_fields:
        value, here = getattr(section, name), f"{place}.{name}"
        if isinstance(value, Soft):
            members = value.members()
            for number, member in enumerate(members):
                inside = here if members == (value,) else f"{here}.parts.{number}.loss"
                if isinstance(member, Features) and member.layers:
                    yield inside, member
        elif isinstance(value, Section):
            yield from _losses(value, here)
