"""Passes of a network that begin where earlier ones had come to: what modules gave is kept for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from decant.networks.dispatch import Watching, storage_of
from decant.networks.layer_inputs import layer_of, received

ROOM = 2**26
"""Numbers that are kept of one network, at most: a quarter of a gigabyte in float32."""

PLAIN = (Tensor, int, float, bool, str, type(None))
"""What a module may give, nested in any way, so that it can be given again."""

Key = tuple[nn.Module, int]
"""A module, and which of its calls in a pass."""

Seen = dict[str, tuple[Tensor, ...]]
"""What layers receive in each of their calls, by weight."""


@dataclass(frozen=True)
class _Kept:
    """What a module gave.

    Attributes:
        given: It, as a copy; or where nobody will read it its shape, without numbers.
        numbers: How many numbers are kept.
    """

    given: Any
    numbers: int

    @staticmethod
    def of(given: Any) -> _Kept:
        copy = tree_map_only(Tensor, Tensor.clone, given)
        return _Kept(copy, sum(each.numel() for each in _tensors(given)))

    @property
    def unread(self) -> _Kept:
        """The same without its numbers."""
        return self if not self.numbers else _Kept(tree_map_only(Tensor, _shape_alone, self.given), 0)


@dataclass
class Resumption:
    """Passes of a network that go further in each stage, and begin where the stage before had come to.

    Whatever runs before the layers that a stage is about has to stay as it is from then on: so it gives the
    same in all later passes, and need not run again. Modules that change what they receive, or give a part of
    it, run each time. `resumption` makes one where that gives the same as whole passes.

    Attributes:
        module: The network, in eval mode.
        stages: The names of the weights whose layers each stage is about, in the order in which they run.
        needed: By module and call, the last stage in which anything reads what it gave where all is kept;
            numbers are dropped then. None while that is found out.
        short: Batches of which something was not kept for want of room: it runs again, and reads what nobody
            would else, so that none of their numbers are dropped.
    """

    module: nn.Module
    stages: Sequence[Sequence[str]]
    needed: Mapping[Key, int] | None = None
    short: set[int] = field(default_factory=set)
    _kept: dict[int, dict[Key, _Kept]] = field(default_factory=dict)

    def received(self, stage: int, batch: int, inputs: tuple[Tensor, ...]) -> Seen:
        """Return what the layers of a stage receive, as `layer_inputs.received`.

        Args:
            stage: Which one, from 0; never one before.
            batch: Which batch it is, from 0.
            inputs: What the network is called with: the same for the same batch.
        """
        with self._passing(stage, batch):
            return received(self.module, self.stages[stage], inputs)

    def read(self, stage: int, batch: int, inputs: tuple[Tensor, ...]) -> tuple[Seen, set[Key]]:
        """Return the same, and what was given again and is read in this stage."""
        with self._passing(stage, batch) as one, _Reads(one.again) as reads:
            return received(self.module, self.stages[stage], inputs), reads.found

    @contextmanager
    def _passing(self, stage: int, batch: int) -> Iterator[_Pass]:
        kept = self._kept.setdefault(batch, {})
        if self.needed is not None and batch not in self.short:
            for key in kept:
                kept[key] = kept[key] if self.needed.get(key, -1) >= stage else kept[key].unread
        one = _Pass(self, batch, kept, {layer_of(self.module, name) for name in self.stages[stage]})
        parts = [each for each in self.module.modules() if not isinstance(each, torch.jit.ScriptModule)]
        before = {each: each.__dict__.get("forward") for each in parts if each is not self.module}
        try:
            for each in before:
                each.__dict__["forward"] = partial(one.forward, each, each.forward)
            yield one
        finally:
            for each, own in before.items():
                each.__dict__.pop("forward", None)
                if own is not None:
                    each.__dict__["forward"] = own

    def room_for(self, more: int) -> bool:
        """Say whether as many more numbers may be kept."""
        return more + sum(each.numbers for kept in self._kept.values() for each in kept.values()) <= ROOM


@dataclass
class _Pass:
    """One pass.

    Attributes:
        resumption: Whose it is.
        batch: Of which batch, from 0.
        kept: What is known of the batch.
        layers: What the stage is about.
        again: What was given again, by memory.
    """

    resumption: Resumption
    batch: int
    kept: dict[Key, _Kept]
    layers: Collection[nn.Module]
    again: dict[int, Key] = field(default_factory=dict)
    _calls: dict[nn.Module, int] = field(default_factory=dict)
    _behind: list[Key] = field(default_factory=list)  # what is kept of this pass so far, nothing twice
    _settled: bool = True  # whether nothing has run yet that may change later

    def forward(self, module: nn.Module, own: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Answer for a module: with what it gave in an earlier pass, or with its own function."""
        key = module, self._calls.get(module, 0)
        self._calls[module] = key[1] + 1
        if key in self.kept:
            self._behind.append(key)
            return self._given_again(key)
        self._settled = self._settled and module not in self.layers
        takes, first = _tensors((given, named)), len(self._behind)
        versions = [each._version for each in takes]
        result = own(*given, **named)
        if self._settled and _is_new(result, takes) and versions == [each._version for each in takes]:
            self._keep(key, _Kept.of(result), first)
        return result

    def _keep(self, key: Key, found: _Kept, first: int) -> None:
        """Keep what a module gave in place of what those within it gave, if there is room."""
        within = self._behind[first:]
        if not self.resumption.room_for(found.numbers - sum(self.kept[each].numbers for each in within)):
            self.resumption.short.add(self.batch)
            return
        for each in within:
            del self.kept[each]
        self.kept[key] = found
        self._behind[first:] = [key]

    def _given_again(self, key: Key) -> Any:
        """Return a copy, since a network may change what it has."""
        if not self.kept[key].numbers:
            return self.kept[key].given
        result = tree_map_only(Tensor, Tensor.clone, self.kept[key].given)
        self.again |= {storage_of(each): key for each in _tensors(result)}
        return result


class _Reads(Watching):
    """Finds out what an operator reads of some memory."""

    def __init__(self, known: Mapping[int, Key]) -> None:
        super().__init__()
        self._known, self.found = known, set[Key]()

    def see(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        memory = {storage_of(each) for each in _tensors((args, kwargs))}
        self.found |= {self._known[each] for each in memory & self._known.keys()}
        return func(*args, **kwargs)


def resumption(
    module: nn.Module, stages: Sequence[Sequence[str]], rows: Sequence[tuple[Tensor, ...]]
) -> Resumption | None:
    """Return what resumes the passes of a network; None where its layers would receive anything else.

    That is tried, all stages in turn: a network may keep something of a pass outside of what its modules
    return.

    Args:
        module: The network, in eval mode.
        stages: The names of the weights whose layers each stage is about, in the order in which they run.
        rows: What it is called with to try: a few rows, other ones each time.
    """
    names = [name for stage in stages for name in stage]
    if len(stages) < 2:
        return None
    try:
        whole = [received(module, names, row) for row in rows]
        needed, _ = _tried(Resumption(module, stages), rows)
        _, found = _tried(Resumption(module, stages, needed), rows)
    except Exception:  # whatever a network does where a part of it does not run
        return None
    same = all(
        _same(one[name], other[name]) for one, other in zip(whole, found, strict=True) for name in names
    )
    return Resumption(module, stages, needed) if same else None


def _tried(trial: Resumption, rows: Sequence[tuple[Tensor, ...]]) -> tuple[dict[Key, int], list[Seen]]:
    """Return the last stage in which anything is read, and what layers receive from each row."""
    last, seen = dict[Key, int](), [Seen() for _ in rows]
    for stage in range(len(trial.stages)):
        for at, row in enumerate(rows):
            found, reads = trial.read(stage, at, row)
            seen[at] |= found
            last |= dict.fromkeys(reads, stage)
    return last, seen


def _same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def _tensors(values: Any) -> list[Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, Tensor)]


def _is_new(result: Any, received: Sequence[Tensor]) -> bool:
    """Say whether a result can be kept: plain, and in memory of its own."""
    if not all(isinstance(each, PLAIN) for each in tree_leaves(result)):
        return False
    memory = {storage_of(each) for each in received}
    return not any(storage_of(each) in memory for each in _tensors(result))


def _shape_alone(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape that has one number, NaN where there is one."""
    number = float("nan") if tensor.is_floating_point() else 0
    return tensor.new_full((), number).expand(tensor.shape)
