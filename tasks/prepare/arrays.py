"""Named tensors of one's own as the three splits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from decant.errors import DecantError
from decant.examples import Examples, Rows
from decant.inputs import inputs_of
from decant.targets import Classes, Labels, Numbers
from tasks.pipeline.arrays import read_arrays
from tasks.prepare import parts
from tasks.prepare.asked import ArrayOfClasses, ArrayOfLabels, ArrayOfNumbers
from tasks.prepare.own_tables import Drawn, bytes_of, scaled
from tasks.prepare.params import PrepareParams

SHOWN = 8
"""Classes that a line names."""


def draw(params: PrepareParams, seed: int) -> Drawn:
    """Return the splits `train`, `validation` and `test`; the first two in shuffled order.

    Args:
        params: Where the tensors are, how many are held out, and what the labels are.
        seed: The same one gives the same splits.

    Raises:
        DecantError: A file is missing or no whole one; tensors have other lengths, types, shapes or names, or
            hold NaN; labels are not what is said, or of one class; or nothing would be left to train on.
    """
    assert params.train is not None and params.test is not None
    train = _read(params, params.train)
    generator = torch.Generator().manual_seed(seed % 2**63)
    train = _taken(train, torch.randperm(len(train), generator=generator))
    found: dict[str, Examples] = {}
    for name, held in (("test", params.test), ("validation", params.validation)):
        if isinstance(held, str):
            found[name] = _read(params, held)
            continue
        if held >= len(train):
            raise DecantError(
                f"params.yaml: data.{name} takes {held:,} of {len(train):,} examples in {params.train}, "
                "which leaves none to train on"
            )
        found[name], train = train.first(held), _taken(train, torch.arange(held, len(train)))
    splits = {"train": train, "validation": found["validation"], "test": found["test"]}
    _check_alike(splits)
    notes = [*filter(None, [_leak(splits, params.leak == "fail")])]
    if params.labels is not None:
        splits = ARRAYS_OF[params.target.kind if params.target else "classes"](params, splits)
        notes += _unlearned(splits)
    return Drawn(splits, [*notes, *_shares(splits)], {})


def _leak(splits: Mapping[str, Examples], fail: bool) -> str:
    """Return a sentence on the rows that two splits have; as of `parts.check_sums`."""
    sums = {}
    for name, each in splits.items():
        assert isinstance(each.images, Rows)
        sums[name] = parts.sums_of(bytes_of(each.images))
    return parts.check_sums(sums, fail)


def _shares(splits: Mapping[str, Examples]) -> Iterator[str]:
    """Yield a line on each split: how many rows there are, and the classes' shares."""
    for name, each in splits.items():
        labels = each.known_labels.numpy() if each.classes else ()
        yield parts.shares(name, len(each), labels, each.classes, "rows")


def _read(params: PrepareParams, file: str) -> Examples:
    tensors = read_arrays(Path(file))
    labels = tensors.pop(params.labels) if params.labels in tensors and params.labels else None
    if params.labels and labels is None:
        raise DecantError(f"{file} has no {params.labels!r} (data.labels); it has {', '.join(tensors)}")
    names = params.inputs or tuple(tensors)
    if missing := [name for name in (*names, *(params.kinds or {})) if name not in tensors]:
        raise DecantError(f"{file} has no {', '.join(missing)}; it has {', '.join(tensors) or 'nothing'}")
    try:
        rows = Rows({name: tensors[name] for name in names}, kinds=params.kinds or {})
        inputs_of(rows.tensors, rows.kinds)
    except (DecantError, ValueError) as error:
        raise DecantError(f"{file}: {error}") from None
    for name in names:
        _check_finite(tensors[name], f"{file}: {name}", torch.isnan, "NaN")
    if not len(rows):
        raise DecantError(f"{file} holds no examples")
    if labels is not None:
        labels = LABELS_OF[params.target.kind if params.target else "classes"](labels, len(rows), file)
    return Examples(rows, labels, ())


def _check_finite(tensor: Tensor, place: str, wrong: Callable[[Tensor], Tensor], what: str) -> None:
    """Refuse values [N, ...] of which some are wrong; says the first row, from 0 as arrays count."""
    if tensor.is_floating_point() and bool((found := wrong(tensor)).any()):
        row = int(found.reshape(len(tensor), -1).any(1).nonzero()[0])
        raise DecantError(f"{place} holds {what}, as in row {row}; leave such rows out")


def _classes(labels: Tensor, count: int, file: str) -> Tensor:
    if labels.shape != (count,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise DecantError(
            f"{file}: labels are {labels.dtype} of shape {[*labels.shape]}, expected a whole number for each "
            f"of {count} rows; for numbers or several labels say so, target: {{kind: numbers}}"
        )
    return labels.long()


def _numbers(labels: Tensor, count: int, file: str) -> Tensor:
    """Return numbers [N, K], float32."""
    if labels.dim() not in (1, 2) or len(labels) != count or labels.dtype == torch.bool or not labels.numel():
        raise DecantError(
            f"{file}: labels are {labels.dtype} of shape {[*labels.shape]}, expected one or several numbers "
            f"for each of {count} rows"
        )
    found = labels.reshape(count, -1).to(torch.float32)
    _check_finite(found, f"{file}: labels", lambda each: ~each.isfinite(), "NaN or infinite values")
    return found


def _marks(labels: Tensor, count: int, file: str) -> Tensor:
    """Return marks [N, L], float32."""
    if labels.dim() != 2 or len(labels) != count or not labels.numel():
        raise DecantError(
            f"{file}: labels are of shape {[*labels.shape]}, expected [{count}, L], a mark for each label"
        )
    found = labels.to(torch.float32)
    _check_finite(
        found, f"{file}: labels", lambda each: (each != 0) & (each != 1), "other marks than 0 and 1"
    )
    return found


LABELS_OF: Mapping[str, Callable[[Tensor, int, str], Tensor]] = MappingProxyType(
    {"classes": _classes, "numbers": _numbers, "labels": _marks}
)
"""What reads a tensor of labels, by the kind of target: of so many rows, in a file."""


def _with_classes(params: PrepareParams, splits: dict[str, Examples]) -> dict[str, Examples]:
    classes = params.classes or _numbered(splits)
    if len(classes) < 2:
        raise DecantError(
            f"data: {params.labels} has {len(classes)} class, expected two or more; there is nothing to tell "
            "apart"
        )
    balanced = isinstance(params.target, ArrayOfClasses) and params.target.balanced
    found = {name: _of_classes(each, classes, name) for name, each in splits.items()}
    return {name: replace(each, target=Classes(balanced=balanced)) for name, each in found.items()}


def _with_numbers(params: PrepareParams, splits: dict[str, Examples]) -> dict[str, Examples]:
    assert isinstance(params.target, ArrayOfNumbers) and params.labels is not None
    width = _width(splits)
    several = tuple(f"{params.labels} {place}" for place in range(1, width + 1))
    names = params.target.names or (several if width > 1 else (params.labels,))
    _check_named(names, width)
    target = Numbers(names=names, scale=(1.0,) * width, penalty=params.target.loss)
    known = scaled(target, splits["train"].known_labels)
    return {name: replace(each, target=known) for name, each in splits.items()}


def _with_labels(params: PrepareParams, splits: dict[str, Examples]) -> dict[str, Examples]:
    assert isinstance(params.target, ArrayOfLabels)
    width = _width(splits)
    names = params.target.names or tuple(map(str, range(width)))
    _check_named(names, width)
    return {name: replace(each, target=Labels(names=names)) for name, each in splits.items()}


ARRAYS_OF: Mapping[str, Callable[[PrepareParams, dict[str, Examples]], dict[str, Examples]]] = (
    MappingProxyType({"classes": _with_classes, "numbers": _with_numbers, "labels": _with_labels})
)
"""What gives splits their target, by its kind."""


def _width(splits: Mapping[str, Examples]) -> int:
    """Return how many numbers a row of labels has in all splits."""
    widths = {name: each.known_labels.shape[1] for name, each in splits.items()}
    if len({*widths.values()}) > 1:
        told = ", ".join(f"{name} has {width}" for name, width in widths.items())
        raise DecantError(f"data: labels of a row need as many numbers in each split, and {told}")
    return widths["train"]


def _check_named(names: Sequence[str], width: int) -> None:
    if len(names) != width:
        raise DecantError(
            f"data.target.names has {len(names)}, and a row of labels {width} numbers; name each of them"
        )


def _unlearned(splits: Mapping[str, Examples]) -> Iterator[str]:
    """Yield a line for each split with classes, or labels, that no training row has.

    It is no mistake: a network that is adopted with its weights may know more than it is calibrated with.
    """
    learned = _there(splits["train"])
    names = splits["train"].classes or getattr(splits["train"].target, "names", ())
    for name in ("validation", "test"):
        if strange := sorted(_there(splits[name]) - learned):
            told = ", ".join(names[each] for each in strange[:SHOWN])
            more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
            yield f"{name} has rows of {told}{more}, which no training row is of"


def _there(examples: Examples) -> set[int]:
    """Return the classes or labels that some row is of; none of numbers."""
    if isinstance(examples.target, Numbers):
        return set()
    labels = examples.known_labels
    marked = labels.any(0).nonzero()[:, 0] if labels.dim() == 2 else labels
    return {*map(int, marked.unique())}


def _taken(examples: Examples, rows: Tensor) -> Examples:
    labels = None if examples.labels is None else examples.labels[rows]
    return Examples(examples.images[rows], labels, examples.classes)


def _check_alike(splits: dict[str, Examples]) -> None:
    """Refuse splits of other tensors."""
    forms = {}
    for name, split in splits.items():
        assert isinstance(split.images, Rows)
        forms[name] = {n: (t.dtype, [*t.shape[1:]]) for n, t in split.images.tensors.items()}
    for name, form in forms.items():
        if form != forms["train"]:
            raise DecantError(f"data: {name} has {form}, and train {forms['train']}; give all the same form")


def _numbered(splits: dict[str, Examples]) -> tuple[str, ...]:
    """Return numbers as names for as many classes as there are."""
    return tuple(map(str, range(1 + max(int(each.known_labels.max()) for each in splits.values()))))


def _of_classes(examples: Examples, classes: tuple[str, ...], name: str) -> Examples:
    if classes:
        low, high = int(examples.known_labels.min()), int(examples.known_labels.max())
        if low < 0 or high >= len(classes):
            raise DecantError(
                f"data: {name} has labels from {low} to {high}, and there are {len(classes)} classes, 0 to "
                f"{len(classes) - 1}"
            )
    return Examples(examples.images, examples.labels, classes)
