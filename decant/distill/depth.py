"""Which layer of a deeper teacher each layer of a student begins as: every other one of twice as many.

References:
    Sanh et al., DistilBERT, a distilled version of BERT, 2019, section 3. https://arxiv.org/abs/1910.01108
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from decant.networks.architectures import Resnet


def counterparts(
    names: Iterable[str], architecture: Any, others: Iterable[str], of_teacher: Any
) -> Iterator[tuple[str, str]]:
    """Yield each name of a student's tensors, and that of the teacher's tensor, which it may not have.

    Layers of one name are one another's, but for residual blocks of a stage and for the blocks of a list,
    such as a transformer's, of which the teacher has more: there block i of few is block i * many // few of
    many, so that a student has the first one and equal steps from there.

    Args:
        names: Of the student's tensors.
        architecture: Its description.
        others: Of the teacher's.
        of_teacher: Its description.
    """
    names = list(names)
    if isinstance(architecture, Resnet) and isinstance(of_teacher, Resnet):
        stages = blocks(architecture, of_teacher)
        yield from ((name, _of_stage(name, stages)) for name in names)
    else:
        own, many = lists(names), lists(others)
        yield from ((name, _of_list(name, own, many)) for name in names)


def spaced(place: int, few: int, many: int) -> int:
    """Return which of many blocks one of fewer begins as; itself where there are not more."""
    return place * many // few if many > few else place


# --- residual stages, of which the first block is another one


def blocks(one: Resnet, other: Resnet) -> dict[int, int]:
    """Return which block of another network each residual block is, by its place in its stage."""
    places = [
        [(stage, block) for stage, count in enumerate(each.blocks) for block in range(count)]
        for each in (one, other)
    ]
    wanted = [
        (stage, spaced(block, one.blocks[stage], other.blocks[stage]) if stage < len(other.blocks) else block)
        for stage, block in places[0]
    ]
    return {at: places[1].index(place) for at, place in enumerate(wanted) if place in places[1]}


def _of_stage(name: str, stages: Mapping[int, int]) -> str:
    parts = name.split(".")
    if parts[0] == "stages":
        parts[1] = str(stages.get(int(parts[1]), -1))
    return ".".join(parts)


# --- lists of blocks that are all alike


def lists(names: Iterable[str]) -> dict[str, tuple[int, frozenset[str]]]:
    """Return the lists of blocks among tensors: how many blocks, and the names inside of each, by their path.

    A list has numbers from 0 on for names, and modules of the same tensors behind each of them.
    """
    found: dict[str, dict[int, set[str]]] = {}
    for name in names:
        parts = name.split(".")
        for at, part in enumerate(parts):
            if part.isdecimal():
                inner = found.setdefault(".".join(parts[:at]), {}).setdefault(int(part), set())
                inner.add(".".join(parts[at + 1 :]))
    return {
        path: (len(inner), frozenset(inner[0]))
        for path, inner in found.items()
        if [*sorted(inner)] == [*range(len(inner))] and _alike([*inner.values()])
    }


def _alike(blocks: list[set[str]]) -> bool:
    """Say whether all blocks have the same tensors, of layers inside of them."""
    return all(each == blocks[0] for each in blocks) and all("." in name for name in blocks[0])


def _of_list(
    name: str,
    own: Mapping[str, tuple[int, frozenset[str]]],
    many: Mapping[str, tuple[int, frozenset[str]]],
) -> str:
    before, after = list[str](), list[str]()
    for part in name.split("."):
        one, other = own.get(".".join(before)), many.get(".".join(after))
        before.append(part)
        if part.isdecimal() and one is not None and other is not None and one[1] == other[1]:
            part = str(spaced(int(part), one[0], other[0]))
        after.append(part)
    return ".".join(after)
