"""Modules that read what a convolution gives: rounded there, it can be multiplied as integers."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from decant.networks.dispatch import Watching, storage_of
from decant.networks.execution import tensors_of
from decant.networks.layer_inputs import Arguments, first_of, with_first
from decant.networks.record import example_of, record_of
from decant.networks.tracing import every_layer_called

aten = torch.ops.aten

Ends = tuple[float, float]
EVERYTHING: Ends = (-math.inf, math.inf)

MOVING = (aten.max_pool2d_with_indices, aten.max_pool3d_with_indices, aten.clone)
"""Operators that give some of their inputs, elsewhere. Views are the same numbers in the same memory."""

RECTIFYING = (aten.relu, aten.relu_)
CUTTING = (aten.hardtanh, aten.hardtanh_, aten.clamp, aten.clamp_, aten.clamp_min, aten.clamp_min_)


def points(module: nn.Module, rounding: Collection[str], wanted: Collection[str]) -> dict[str, Ends]:
    """Return modules at whose inputs a convolution's results can be rounded, before anything else reads them.

    Runtimes have kernels of integers for convolutions whose results are rounded next, and for no others.
    Where the next layer rounds them, by way of rectifiers, pooling and changes of shape, nothing is missing.
    Else the module that receives them first can do it: an activation, a batch norm behind a rectifier, or
    what stands in the place of a folded batch norm. It is the last such one that no other reader comes
    before. There is none for what the network returns, cut and moved at most, and for what
    operators alone read.

    Args:
        module: The network, which knows an example.
        rounding: Layers whose inputs are rounded.
        wanted: Convolutions that shall be multiplied as integers.

    Returns:
        By the module's name, the range that matters there: what a rectifier behind it cuts off does not.
    """
    record, watch = record_of(module), _Watch(module, wanted)
    _answers(module, watch)
    weighing = {weight.layer for weight in record.weights.values()} | set(record.folds.values())
    usable = {name for name, count in watch.entered.items() if count == 1} - weighing
    found = [_place(value, rounding, usable) for value in watch.results]
    places, before = {name: ends for name, ends in found if name}, _answers(module)
    if _same_with_copies(module, places, before):
        return places
    return {name: ends for name, ends in places.items() if _same_with_copies(module, [name], before)}


@dataclass(eq=False)
class _Value:
    """What a convolution gave, or what moving and cutting have made of it.

    Attributes:
        size: How many numbers.
        ends: The range to which it was cut.
        received: Modules that received all of it before anything had read it, in order.
        passed: Modules that returned it.
        reads: For each operator that read it the modules at work, and what it made of it, where that is such
            a value as well.
        changed: Whether an operator changed it in place.
        returned: Whether it is what the network returns.
    """

    size: int
    ends: Ends = EVERYTHING
    received: list[str] = field(default_factory=list)
    passed: set[str] = field(default_factory=set)
    reads: list[tuple[tuple[str, ...], _Value | None]] = field(default_factory=list)
    changed: bool = False
    returned: bool = False

    def belongs_to(self, name: str) -> bool:
        """Say whether a module that received it is the way to all that read it."""
        inside = not self.changed and all(name in at_work for at_work, _ in self.reads)
        return name in self.received and bool(self.reads) and (inside or name in self.passed)


def _place(value: _Value, rounding: Collection[str], usable: Collection[str]) -> tuple[str, Ends]:
    """Return the module at which a result is rounded best, and the range that matters; no name for none."""
    name, (low, high) = "", EVERYTHING
    while True:
        if value.returned or any(value.belongs_to(each) for each in rounding):
            return "", EVERYTHING
        low, high = max(low, value.ends[0]), min(high, value.ends[1])
        name = next((each for each in reversed(value.received) if _fits(value, each, usable)), name)
        if len(value.reads) != 1 or value.reads[0][1] is None:
            return name, (low, high)
        value = value.reads[0][1]


def _fits(value: _Value, name: str, usable: Collection[str]) -> bool:
    return name in usable and value.belongs_to(name)


class _Watch(Watching):
    """Follows what convolutions give through one pass."""

    def __init__(self, module: nn.Module, wanted: Collection[str]) -> None:
        super().__init__()
        self._module, self._wanted = module, wanted
        self._handles: list[Any] = []
        self._at_work: list[str] = []
        self._values: dict[int, _Value] = {}
        self._alive: list[Tensor] = []  # so that no memory is given away again while the pass runs
        self.entered: dict[str, int] = {}
        self.results: list[_Value] = []

    def __enter__(self) -> _Watch:
        for name, each in self._module.named_modules():
            if isinstance(each, torch.jit.ScriptModule):  # what it calls, nobody is told
                continue
            enter = each.register_forward_pre_hook(partial(self._enter, name), prepend=True, with_kwargs=True)
            leave = each.register_forward_hook(partial(self._leave, name))
            self._handles += [enter, leave]
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def _enter(self, name: str, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._at_work.append(name)
        self.entered[name] = self.entered.get(name, 0) + 1
        received = first_of(given, named) if given or named else None
        value = self._values.get(_memory(received))
        if value is not None and received is not None and not value.reads and received.numel() == value.size:
            value.received.append(name)

    def _leave(self, name: str, _: nn.Module, __: Any, output: Any) -> None:
        self._at_work.pop()
        if (value := self._values.get(_memory(output))) is not None:
            value.passed.add(name)
        elif name in self._wanted and isinstance(output, Tensor):
            self._alive.append(output)
            self._values[_memory(output)] = value = _Value(output.numel())
            self.results.append(value)

    def see(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return the result of an operator, and note what it does to what is followed."""
        result = func(*args, **kwargs)
        packet, made = func.overloadpacket, next(iter(_tensors(result)), None)
        for key in dict.fromkeys(map(_memory, _tensors((args, kwargs)))):
            if (value := self._values.get(key)) is not None and not (
                _memory(made) == key and not func._schema.is_mutable  # a view
            ):
                self._read(value, key, packet, made, args)
        return result

    def _read(self, value: _Value, key: int, packet: Any, made: Tensor | None, args: Any) -> None:
        child = _child(packet, made, args)
        value.reads.append((tuple(self._at_work), child))
        if _memory(made) == key:
            value.changed = True
            del self._values[key]
        if child is not None and made is not None:
            self._alive.append(made)
            self._values[_memory(made)] = child

    def returned(self, outputs: Any) -> None:
        """Note what the network returns."""
        for key in map(_memory, _tensors(outputs)):
            if (value := self._values.get(key)) is not None:
                value.returned = True


def _child(packet: Any, made: Tensor | None, args: Any) -> _Value | None:
    """Return what an operator makes of a value, where it is its numbers, moved or cut."""
    if made is None:
        return None
    if packet in MOVING:
        return _Value(made.numel())
    if packet in RECTIFYING:
        return _Value(made.numel(), (0.0, math.inf))
    if packet in CUTTING:
        low, high = [*args[1:], None, None][:2]
        return _Value(made.numel(), (_number(low, -math.inf), _number(high, math.inf)))
    return None


def _number(end: Any, default: float) -> float:
    return float(end) if isinstance(end, int | float) else default


def _answers(module: nn.Module, watch: _Watch | None = None) -> list[Tensor]:
    """Return what a network answers to its example, seen by a watch."""
    example = tree_map_only(Tensor, Tensor.clone, example_of(module))  # a network may change its inputs
    with torch.no_grad(), every_layer_called():
        if watch is None:
            return list(tensors_of(module(*example)))
        with watch:
            outputs = module(*example)
        watch.returned(outputs)
    return list(tensors_of(outputs))


def _same_with_copies(module: nn.Module, names: Iterable[str], before: list[Tensor]) -> bool:
    """Say whether modules may be given copies of their inputs: nobody sees them change these in place."""
    layers = [module.get_submodule(name) for name in names]
    handles = [layer.register_forward_pre_hook(_copied, with_kwargs=True) for layer in layers]
    try:
        after = _answers(module)
    finally:
        for handle in handles:
            handle.remove()
    return all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def _copied(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Arguments:
    return with_first(first_of(given, named).clone(), given, named)


def _tensors(values: Any) -> list[Tensor]:
    """Return the tensors among arguments or results of an operator."""
    return [each for each in tree_leaves(values) if isinstance(each, Tensor)]


def _memory(value: Any) -> int:
    """Return what tells the memory of a tensor from others; 0 of what is no tensor."""
    return storage_of(value) if isinstance(value, Tensor) else 0
