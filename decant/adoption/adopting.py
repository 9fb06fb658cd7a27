"""Adopt: make a model of a network and weights that other people made, once they prove to be right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decant.adoption.checks import (
    APART,
    ROWS,
    answered,
    check_finite,
    check_rows,
    check_same_builds,
    check_types,
    forward_of,
)
from decant.adoption.pretrained import place_pretrained_
from decant.adoption.texts import check_texts
from decant.adoption.weights import check_memory, place_, read_weights
from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.finish import Result
from decant.compression.ledger import created
from decant.errors import DecantError
from decant.examples import Batch, Examples, Rows, arguments
from decant.inputs import TensorInput, drawn, inputs_of
from decant.networks.architectures import ForeignArchitecture, Takes
from decant.networks.copying import check_copies
from decant.networks.packages import Transformers
from decant.networks.parametrizations import without_parametrizations_
from decant.networks.record import give_example_
from decant.row_groups import in_groups
from decant.targets import Tokens


@dataclass(frozen=True)
class Source:
    """A network of other people and its weights.

    Attributes:
        architecture: What builds it, with its function.
        weights: A file of weights, for transformers also a folder of them, or the tensors by name; None where
            the network is built with them.
        key: Where in a file the tensors lie, if more than one place has tensors.
        inputs: What it takes; as the examples are, where None.
    """

    architecture: ForeignArchitecture
    weights: Path | Mapping[str, Tensor] | None = None
    key: str = ""
    inputs: Takes | None = None


def adopt(source: Source, examples: Examples | None = None, classes: tuple[str, ...] = ()) -> Result:
    """Return a model of a network that other people made, its weights in their places.

    Two builds have to be one function, each tensor needs its place, rows alone and in a batch have to give
    the same, no output may be NaN, and what comes out has to fit the classes. Parametrizations are removed,
    and the function stays.

    Args:
        source: The network and its weights.
        examples: What it will be compressed with; a few of their rows are tried. Drawn from `inputs` if None.
        classes: Their names, where there are no examples.

    Raises:
        DecantError: One of these is not so; says which, and names file and line of the user's code.
    """
    architecture = source.architecture.pinned()
    file, takes = architecture.origin, takes_of(source, examples)
    batch = _batch(takes, examples)
    classes = examples.classes if examples is not None else classes
    if isinstance(source.weights, Path):
        check_memory(source.weights)  # before the network itself takes as much
    module = _checked(architecture, takes, len(classes), batch, examples)
    facts: dict[str, Any] = dict(architecture.facts)
    if notes := _filled_(module, replace(source, architecture=architecture)):
        facts["weights"] = "; ".join(notes)
    before = answered(module.eval(), batch, file)
    check_finite(before, module, file)
    if removed := without_parametrizations_(module):
        facts["made plain"] = ", ".join(removed)
        _check_same(before, answered(module, batch, file), file)
    check_rows(module, batch, file)
    check_copies(module, arguments(batch[:1]), forward_of(module, file))
    _check_outputs(before, classes, examples, file)
    give_example_(module, drawn_of(takes))
    model = Checkpoint(architecture, takes, tuple(classes), module)
    return Result(model, created(model), facts=facts)


def check_network(architecture: ForeignArchitecture, examples: Examples, inputs: Takes | None = None) -> None:
    """Check a network that is about to be trained: its builds are alike, and its outputs fit the classes.

    Raises:
        DecantError: As `adopt`.
    """
    takes = takes_of(Source(architecture, inputs=inputs), examples)
    batch = _batch(takes, examples)
    module = _checked(architecture, takes, len(examples.classes), batch, examples)
    without_parametrizations_(module)
    check_rows(module, batch, architecture.origin)
    check_copies(module, arguments(batch[:1]), forward_of(module, architecture.origin))
    answers = answered(module, batch, architecture.origin)
    _check_outputs(answers, examples.classes, examples, architecture.origin)


def takes_of(source: Source, examples: Examples | None) -> Takes:
    """Return what a network takes: as `inputs` say, with examples that look like the rows that there are.

    Raises:
        DecantError: Nothing says it; or the rows do not fit what it says.
    """
    if examples is None:
        if source.inputs is None:
            raise DecantError("Nothing says what the network takes; give its inputs, or examples")
        return source.inputs
    if not isinstance(examples.images, Rows) or source.inputs is None:
        return examples.shape
    if isinstance(source.inputs, tuple):
        raise DecantError("inputs: the network takes pictures, and the examples are none")
    return _fitted(source.inputs, examples.images)


def _fitted(inputs: Mapping[str, TensorInput], rows: Rows) -> dict[str, TensorInput]:
    """Return inputs whose examples have the lengths of the rows, under the rows' own name if it is one."""
    found = inputs_of(rows.tensors, rows.kinds)
    if len(inputs) == len(found) == 1:
        inputs = dict(zip(found, inputs.values(), strict=True))
    if list(inputs) != list(found):
        raise DecantError(
            f"inputs: the network takes {', '.join(inputs)}, and the data have {', '.join(found)}; name the "
            "same ones in the same order"
        )
    fitted = {}
    for name, each in inputs.items():
        seen = found[name]
        row = tuple(n for n in seen.shape if isinstance(n, int))
        if not each.fits(row) or each.dtype != seen.dtype:
            raise DecantError(
                f"inputs.{name}: expected rows {[*each.shape]} of {each.dtype}, the data have {[*row]} of "
                f"{seen.dtype}"
            )
        free = any(not isinstance(n, int) for n in each.shape)
        kind = {"kind": seen.kind} if each.kind == "tensor" else {}
        fitted[name] = each.model_copy(update=kind | ({"example": row} if free else {}))
    return fitted


def _batch(takes: Takes, examples: Examples | None) -> Batch:
    """Return a few rows: real ones where there are any."""
    if examples is not None:
        return _some(examples.images)
    if isinstance(takes, tuple):
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, (ROWS, *takes), generator=generator, dtype=torch.uint8)
    return Rows(dict(zip(takes, drawn(takes, ROWS), strict=True)))


def _some(images: Batch) -> Batch:
    """Return the first rows; one with missing values among them where there are such rows."""
    if not isinstance(images, Rows) or len(images) <= ROWS:
        return images[:ROWS]
    gaps = torch.zeros(len(images), dtype=torch.bool)
    for tensor in images.tensors.values():
        if tensor.is_floating_point():
            found = [torch.isnan(group).reshape(len(group), -1).any(1) for group in in_groups(tensor)]
            gaps |= torch.cat(found)
    rows = torch.arange(ROWS)
    if bool(gaps.any()):
        rows[-1] = int(gaps.nonzero()[0])
    return images[rows.sort().values]


def drawn_of(takes: Takes) -> tuple[Tensor, ...]:
    """Return the example that a model read from disk has as well."""
    return (torch.zeros(1, *takes),) if isinstance(takes, tuple) else drawn(takes)


def _filled_(module: nn.Module, source: Source) -> list[str]:
    """Put the weights of a source into its network in place; return what its user should know of it."""
    if source.weights is None:
        return []
    path = source.weights if isinstance(source.weights, Path) else None
    origin = "The weights" if path is None else str(path)
    if isinstance(source.weights, Path):
        tensors: Mapping[str, Tensor] = read_weights(source.weights, source.key)
    else:
        tensors = source.weights
    if isinstance(source.architecture, Transformers):
        return place_pretrained_(module, source.architecture, tensors, origin)
    return place_(module, tensors, origin)


def _check_outputs(answers: Tensor, classes: tuple[str, ...], examples: Examples | None, file: str) -> None:
    """Refuse another number of outputs than there are classes, or numbers in a row of labels."""
    if classes and answers.shape[1] != len(classes):
        raise DecantError(
            f"{file}: the network gives {answers.shape[1]} numbers a row, and there are {len(classes)} "
            f"classes; give it one output for each, or take the labels away"
        )
    if examples is None or examples.labels is None:
        return
    width, target = examples.target.width, examples.target
    if isinstance(target, Tokens) and (wrong := target.misfit(answers.shape[1], examples.labels.shape[1])):
        raise DecantError(f"{file}: the network gives {wrong}")
    if width is not None and answers.shape[1] != width:
        raise DecantError(
            f"{file}: the network gives {answers.shape[1]} numbers a row, and the target has {width}; give "
            "it one output for each"
        )


def _checked(
    architecture: ForeignArchitecture, takes: Takes, classes: int, batch: Batch, examples: Examples | None
) -> nn.Module:
    """Return the network as it is built, in eval mode, once a second build proves to be the same."""
    modules: list[nn.Module] = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(seed)
            # What a file draws while it is run would be another number in each process.
            again = architecture.rerun() if seed else architecture
            modules.append(again.build(takes, classes).eval())
    check_types(modules[0], architecture.place)
    if examples is not None and isinstance(examples.images, Rows):
        check_texts(modules[0], examples.images, architecture.origin)
    check_same_builds(modules[0], modules[1], batch, architecture.origin, architecture.place)
    return modules[0]


def _check_same(before: Tensor, after: Tensor, file: str) -> None:
    gap = (after.double() - before.double()).abs().max().item()
    if not gap <= APART * max(before.double().abs().max().item(), 1e-6):
        raise DecantError(
            f"{file}: without its parametrizations the network answers otherwise, by up to {gap:.3g}; remove "
            "them in your own code"
        )
