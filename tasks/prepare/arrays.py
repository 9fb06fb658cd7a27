"""Named tensors of one's own as the three splits; what is large lies in files until it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decant.errors import DecantError
from decant.examples import Rows
from decant.inputs import inputs_of
from decant.row_groups import in_groups, is_large
from decant.targets import MOST_NAMES, Classes, Labels, Numbers
from tasks.pipeline.arrays import read_arrays
from tasks.prepare import parts, room
from tasks.prepare.asked import ArrayOfClasses, ArrayOfLabels, ArrayOfNumbers
from tasks.prepare.own_tables import Drawn, Known, Split, Taken, bytes_of, scaled
from tasks.prepare.params import PrepareParams
from tasks.prepare.rounding import Rounding

SHOWN = 8
"""Classes that a line names."""


@dataclass(frozen=True)
class Part:
    """The rows of a split, which lie in a file until they are written.

    Attributes:
        images: All rows of the file, in memory or mapped.
        all_labels: Theirs [N] or [N, K]; None where there are none.
        sums: A sum over the bytes of each of them [N].
        rows: Those of the split, in its order [M].
    """

    images: Rows
    all_labels: Tensor | None
    sums: NDArray[np.bytes_]
    rows: parts.Rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Tensor:
        """The split's own labels [M] or [M, K]."""
        assert self.all_labels is not None
        return self.all_labels[torch.from_numpy(self.rows)]

    def at(self, rows: parts.Rows) -> Part:
        """Return others of the file's rows."""
        return replace(self, rows=rows)

    def split(self, known: Known) -> Split:
        """Return what is written of it, in memory where that is little."""
        found = Taken(self.images, known._replace(labels=self.all_labels), self.rows)
        return found if is_large(len(found), found.width) else found.whole()


Parts = dict[str, Part]


def draw(params: PrepareParams, seed: int) -> Drawn:
    """Return the splits `train`, `validation` and `test`; the first two in shuffled order.

    Args:
        params: Where the tensors are, how many are held out, and what the labels are.
        seed: The same one gives the same splits.

    Raises:
        DecantError: A file is missing or no whole one; tensors have other lengths, types, shapes or names, or
            hold NaN; labels are not what is said, or of one class; or nothing would be left to train on.
    """
    splits = _drawn(params, seed)
    _check_alike(splits)
    sums = {name: each.sums[each.rows] for name, each in splits.items()}
    notes, known = [*filter(None, [parts.check_sums(sums, params.leak == "fail")])], Known()
    if params.labels is not None:
        known = TARGETS[params.target.kind if params.target else "classes"](params, splits)
        notes += _unlearned(splits, known)
    found = {name: each.split(known) for name, each in splits.items()}
    return Drawn(found, [*notes, *_shares(splits, known)], {})


def _drawn(params: PrepareParams, seed: int) -> Parts:
    """Return which rows of which file go into each split."""
    assert params.train is not None and params.test is not None
    train = _read(params, params.train)
    generator = torch.Generator().manual_seed(seed % 2**63)
    train = train.at(torch.randperm(len(train), generator=generator).numpy())
    found: Parts = {}
    for name, held in (("test", params.test), ("validation", params.validation)):
        if isinstance(held, str):
            found[name] = _read(params, held)
            continue
        if held >= len(train):
            raise DecantError(
                f"params.yaml: data.{name} takes {held:,} of {len(train):,} examples in {params.train}, "
                "which leaves none to train on"
            )
        found[name], train = train.at(train.rows[:held]), train.at(train.rows[held:])
    return {"train": train, "validation": found["validation"], "test": found["test"]}


def _shares(splits: Parts, known: Known) -> Iterator[str]:
    """Yield a line on each split: how many rows there are, and the classes' shares."""
    for name, each in splits.items():
        labels = each.labels.numpy() if known.classes else ()
        yield parts.shares(name, len(each), labels, known.classes, "rows")


def _read(params: PrepareParams, file: str) -> Part:
    """Return all rows of a file."""
    tensors = read_arrays(Path(file), room.empty)
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
        _check_values(tensors[name], f"{file}: {name}", torch.isnan, "NaN")
        _check_values(tensors[name], f"{file}: {name}", torch.isinf, "infinite values")
    if not len(rows):
        raise DecantError(f"{file} holds no examples")
    if labels is not None:
        labels = LABELS_OF[params.target.kind if params.target else "classes"](labels, len(rows), file)
    return Part(rows, labels, parts.sums_of(bytes_of(rows)), np.arange(len(rows)))


def _check_values(tensor: Tensor, place: str, wrong: Callable[[Tensor], Tensor], what: str) -> None:
    """Refuse values [N, ...] of which some are wrong; says the first row, from 0 as arrays count."""
    seen = 0
    for group in in_groups(tensor) if tensor.is_floating_point() else ():
        if bool((found := wrong(group)).any()):
            row = seen + int(found.reshape(len(group), -1).any(1).nonzero()[0])
            raise DecantError(f"{place} holds {what}, as in row {row}; leave such rows out")
        seen += len(group)


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
    _check_values(found, f"{file}: labels", lambda each: ~each.isfinite(), "NaN or infinite values")
    for exact, column in zip(labels.reshape(count, -1).T, found.T, strict=True):
        rounding = Rounding()
        rounding.note(exact.double().numpy(), column.numpy())
        rounding.check(f"{file}: labels")
    return found


def _marks(labels: Tensor, count: int, file: str) -> Tensor:
    """Return marks [N, L], float32."""
    if labels.dim() != 2 or len(labels) != count or not labels.numel():
        raise DecantError(
            f"{file}: labels are of shape {[*labels.shape]}, expected [{count}, L], a mark for each label"
        )
    found = labels.to(torch.float32)
    _check_values(
        found, f"{file}: labels", lambda each: (each != 0) & (each != 1), "other marks than 0 and 1"
    )
    return found


LABELS_OF: Mapping[str, Callable[[Tensor, int, str], Tensor]] = MappingProxyType(
    {"classes": _classes, "numbers": _numbers, "labels": _marks}
)
"""What reads a tensor of labels, by the kind of target: of so many rows, in a file."""


def _of_classes(params: PrepareParams, splits: Parts) -> Known:
    classes = params.classes or _numbered(splits)
    if len(classes) < 2:
        raise DecantError(
            f"data: {params.labels} has {len(classes)} class, expected two or more; there is nothing to tell "
            "apart"
        )
    for name, each in splits.items():
        _check_classes(each.labels, classes, name)
    balanced = isinstance(params.target, ArrayOfClasses) and params.target.balanced
    return Known(classes=classes, target=Classes(balanced=balanced))


def _of_numbers(params: PrepareParams, splits: Parts) -> Known:
    assert isinstance(params.target, ArrayOfNumbers) and params.labels is not None
    width = _width(splits)
    several = tuple(f"{params.labels} {place}" for place in range(1, width + 1))
    names = params.target.names or (several if width > 1 else (params.labels,))
    _check_named(names, width)
    target = Numbers(names=names, scale=(1.0,) * width, penalty=params.target.loss)
    return Known(target=scaled(target, splits["train"].labels))


def _of_labels(params: PrepareParams, splits: Parts) -> Known:
    assert isinstance(params.target, ArrayOfLabels)
    width = _width(splits)
    names = params.target.names or tuple(map(str, range(width)))
    _check_named(names, width)
    return Known(target=Labels(names=names))


TARGETS: Mapping[str, Callable[[PrepareParams, Parts], Known]] = MappingProxyType(
    {"classes": _of_classes, "numbers": _of_numbers, "labels": _of_labels}
)
"""What says what the labels of splits are, by the kind of target."""


def _width(splits: Parts) -> int:
    """Return how many numbers a row of labels has in all splits."""
    widths = {name: each.labels.shape[1] for name, each in splits.items()}
    if len({*widths.values()}) > 1:
        told = ", ".join(f"{name} has {width}" for name, width in widths.items())
        raise DecantError(f"data: labels of a row need as many numbers in each split, and {told}")
    return widths["train"]


def _check_named(names: Sequence[str], width: int) -> None:
    if len(names) != width:
        raise DecantError(
            f"data.target.names has {len(names)}, and a row of labels {width} numbers; name each of them"
        )


def _unlearned(splits: Parts, known: Known) -> Iterator[str]:
    """Yield a line for each split with classes, or labels, that no training row has.

    It is no mistake: a network that is adopted with its weights may know more than it is calibrated with.
    """
    if isinstance(known.target, Numbers):
        return
    names = known.classes or getattr(known.target, "names", ())
    learned = _there(splits["train"].labels)
    anywhere = learned.union(*(_there(splits[name].labels) for name in ("validation", "test")))
    if nobody := [name for place, name in enumerate(names) if place not in anywhere]:
        yield f"no row is of {_listed(nobody)}; if that is no class, number the others from 0, without gaps"
    for name in ("validation", "test"):
        if strange := sorted(_there(splits[name].labels) - learned):
            told = _listed([names[each] for each in strange])
            yield f"{name} has rows of {told}, which no training row is of"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _there(labels: Tensor) -> set[int]:
    """Return the classes or labels that some row is of."""
    marked = labels.any(0).nonzero()[:, 0] if labels.dim() == 2 else labels
    return {*map(int, marked.unique())}


def _check_alike(splits: Parts) -> None:
    """Refuse splits of other tensors."""
    forms = {
        name: {n: (t.dtype, [*t.shape[1:]]) for n, t in split.images.tensors.items()}
        for name, split in splits.items()
    }
    for name, form in forms.items():
        if form != forms["train"]:
            raise DecantError(f"data: {name} has {form}, and train {forms['train']}; give all the same form")


def _numbered(splits: Parts) -> tuple[str, ...]:
    """Return numbers as names for as many classes as there are."""
    low = min(int(each.labels.min()) for each in splits.values())
    high = max(int(each.labels.max()) for each in splits.values())
    if low < 0 or high >= MOST_NAMES:
        raise DecantError(
            f"data: a label is {low if low < 0 else high}, expected a class's number, from 0 to "
            f"{MOST_NAMES - 1}; number the classes from 0, without gaps"
        )
    return tuple(map(str, range(1 + high)))


def _check_classes(labels: Tensor, classes: tuple[str, ...], name: str) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classes):
        raise DecantError(
            f"data: {name} has labels from {low} to {high}, and there are {len(classes)} classes, 0 to "
            f"{len(classes) - 1}"
        )
