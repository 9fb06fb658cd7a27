"""Named tensors of one's own as the three splits."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from decant.errors import DecantError
from decant.examples import Examples, Rows
from decant.inputs import inputs_of
from tasks.pipeline.arrays import read_arrays
from tasks.prepare.params import PrepareParams


def draw(params: PrepareParams, seed: int) -> dict[str, Examples]:
    """Return the splits `train`, `validation` and `test`; the first two in shuffled order.

    Args:
        params: Where the tensors are, and how many are held out.
        seed: The same one gives the same splits.

    Raises:
        DecantError: A file is missing or no whole one; tensors have other lengths, types, shapes or names, or
            hold NaN; labels are no classes; or nothing would be left to train on.
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
    classes = params.classes or _numbered(splits) if params.labels else ()
    return {name: _of_classes(each, classes, name) for name, each in splits.items()}


def _read(params: PrepareParams, file: str) -> Examples:
    tensors = read_arrays(Path(file))
    labels = tensors.pop(params.labels) if params.labels in tensors and params.labels else None
    if params.labels and labels is None:
        raise DecantError(f"{file} has no {params.labels!r} (data.labels); it has {', '.join(tensors)}")
    names = params.inputs or tuple(tensors)
    if missing := [name for name in names if name not in tensors]:
        raise DecantError(f"{file} has no {', '.join(missing)}; it has {', '.join(tensors) or 'nothing'}")
    try:
        rows = Rows({name: tensors[name] for name in names})
        inputs_of(rows.tensors)
    except (DecantError, ValueError) as error:
        raise DecantError(f"{file}: {error}") from None
    for name, tensor in ((name, tensors[name]) for name in names):
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            row = int(torch.isnan(tensor).flatten(1).any(1).nonzero()[0]) if tensor.dim() > 1 else 0
            raise DecantError(f"{file}: {name} holds NaN, as in row {row}; leave such rows out")
    if not len(rows):
        raise DecantError(f"{file} holds no examples")
    return Examples(rows, None if labels is None else _classes(labels, len(rows), file), ())


def _classes(labels: Tensor, count: int, file: str) -> Tensor:
    if labels.shape != (count,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise DecantError(
            f"{file}: labels are {labels.dtype} of shape {[*labels.shape]}, expected a whole number for each "
            f"of {count} rows"
        )
    return labels.long()


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
