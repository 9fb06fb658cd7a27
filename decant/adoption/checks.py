"""What has to be so of a network of other people before anything is built on it."""

from __future__ import annotations

import copy
import inspect
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from decant.checkpoints.checkpoint import state
from decant.checkpoints.packing import type_name
from decant.errors import DecantError, Message
from decant.examples import Batch, Rows, arguments
from decant.networks.dispatch import Watching, storage_of
from decant.networks.execution import as_rows
from decant.networks.python import blaming
from decant.networks.tracing import every_layer_called

aten = torch.ops.aten

DECIDING = {
    *(aten._local_scalar_dense, aten.equal, aten.allclose, aten.nonzero, aten.bincount),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave),
}
"""Operations by whose results a number of Python's, or a shape, depends on values."""

ROWS = 4
"""How many rows are tried."""

APART = 1e-4
"""By which share of the largest output a row alone may differ from the same row in a batch: rounding."""


def answered(module: nn.Module, batch: Batch, file: str) -> Tensor:
    """Return a network's answers in eval mode; an error names the line of its file.

    Raises:
        DecantError: It fails, gives no number, NaN or complex ones, or what it returns does not come in rows.
    """
    place = forward_of(module, file)
    failing = f"the network fails on its example, {_described(batch)} as the data or `inputs` have it"
    with blaming(file, failing, place), torch.no_grad(), every_layer_called():
        outputs = module(*arguments(batch))
    try:
        found = as_rows(outputs, len(batch))
    except DecantError as error:
        raise DecantError(f"{place}: {error}") from None
    if found.is_complex():
        raise DecantError(
            f"{place}: the network answers complex numbers, expected real ones; return torch.view_as_real of "
            "them"
        )
    if not found.numel():
        raise DecantError(f"{place}: the network answers no number for a row, expected one or more")
    if found.is_floating_point() and bool(torch.isnan(found).any()):
        raise DecantError(
            f"{place}: the network answers NaN to its example; its weights, or the range "
            "of `inputs`, are not what it was made for"
        )
    return found


def _described(batch: Batch) -> str:
    """Return the name, shape and type of each tensor that a network is called with."""
    names = batch.tensors if isinstance(batch, Rows) else ["pictures"]
    return ", ".join(
        f"{name} {[*each.shape]} of {str(each.dtype).removeprefix('torch.')}"
        for name, each in zip(names, arguments(batch), strict=True)
    )


def check_types(module: nn.Module, place: str) -> None:
    """Check that the state is of tensors, each of a type that a model on disk can have: none is complex.

    Args:
        module: A network as it was built.
        place: Its user's file, and the line of what builds it.

    Raises:
        DecantError: One of them is not; names it.
    """
    try:
        for name, each in state(module).items():
            type_name(name, each)
    except DecantError as error:
        raise DecantError(f"{place}: {error}") from None


def check_same_builds(first: nn.Module, second: nn.Module, batch: Batch, file: str, place: str) -> None:
    """Check that two builds are one function once they have the same state.

    Args:
        first: A network as it was built.
        second: The same, built again.
        batch: What both are called with.
        file: Its user's file.
        place: The file, and the line of what builds it.

    Raises:
        DecantError: They are not: something random is kept beside the state.
    """
    one, other = (
        {name: (tuple(t.shape), t.dtype) for name, t in module.state_dict().items() if isinstance(t, Tensor)}
        for module in (first, second)
    )
    if one != other:
        differing = next(name for name in {**one, **other} if one.get(name) != other.get(name))
        raise DecantError(
            f"{place}: two builds of the network differ, in {differing}: {one.get(differing)} and "
            f"{other.get(differing)}; draw no shape at random"
        )
    fresh = _copied(second)  # which has had no pass
    second.load_state_dict(first.state_dict())
    _check_repeated(first, batch, file)
    if not _same(answered(first, batch, file), answered(second, batch, file)):
        raise DecantError(
            f"{place}: two builds of the network with the same weights answer differently: it keeps a random "
            "number that is no parameter and no buffer of its state; register it, or draw it by a seed"
        )
    _check_kept(_copied(first), fresh, batch, file)


def check_rows(module: nn.Module, batch: Batch, file: str) -> None:
    """Check that a network answers each row for itself, and by one way of computing.

    Raises:
        DecantError: It does not; or it decides by the values of its inputs.
    """
    _check_decisions(module, batch[:1], file)
    together = answered(module, batch, file)
    check_finite(together, module, file)
    alone = torch.cat([answered(module, batch[i : i + 1], file) for i in range(len(batch))])
    if alone.shape != together.shape:
        raise DecantError(
            f"{forward_of(module, file)}: a row alone has {alone.shape[1]} outputs, in a batch "
            f"{together.shape[1]}"
        )
    gap = (alone.double() - together.double()).abs().max().item() if alone.numel() else 0.0
    if not gap <= APART * max(together.double().abs().max().item(), 1e-6):
        raise DecantError(
            f"{forward_of(module, file)}: rows alone and in a batch of {len(batch)} give outputs that differ "
            f"by up to {gap:.3g}: rows influence each other, or the first dimension is not that of the rows"
        )


def check_finite(answers: Tensor, module: nn.Module, file: str) -> None:
    """Check that a network's answers [N, M] are numbers that others can be compared with.

    Raises:
        DecantError: One is infinite.
    """
    if answers.is_floating_point() and bool(torch.isinf(answers).any()):
        raise DecantError(
            f"{forward_of(module, file)}: the network answers infinite numbers, and nothing can be compared "
            "with them; add a small number before a division or a logarithm, or mask by one such as -1e4"
        )


def _check_repeated(module: nn.Module, batch: Batch, file: str) -> None:
    if not _same(answered(module, batch, file), answered(module, batch, file)):
        raise DecantError(
            f"{forward_of(module, file)}: the network answers the same inputs differently in eval mode: a "
            "function draws at random, such as F.dropout without training=self.training, or a pass changes "
            "what the next one computes, such as by counting"
        )


def _copied(module: nn.Module) -> nn.Module | None:
    """Return a copy; None where there is none, which is told later."""
    try:
        return copy.deepcopy(module)
    except Exception:  # whatever the objects raise that it keeps
        return None


def _check_kept(used: nn.Module | None, fresh: nn.Module | None, batch: Batch, file: str) -> None:
    """Check that a network follows its weights after a pass that had others.

    What it forgets when a training begins may be kept, as the biases of attention in timm's LeViT are.

    Args:
        used: A copy of it after a pass, which gets other weights, in place.
        fresh: Another build that was never called, and gets the same, in place.
        batch: What both are called with.
        file: Its user's file.
    """
    if used is None or fresh is None:
        return
    answers = []
    try:
        fresh.load_state_dict(used.state_dict())
        used.train().eval()
        for module in (used, fresh):
            _shrink_(module)
            with torch.no_grad(), every_layer_called():
                answers.append(as_rows(module(*arguments(batch)), len(batch)).double())
    except Exception:  # it does not run with these weights
        return
    if not _near(*answers):
        raise DecantError(
            f"{forward_of(used, file)}: with other weights the network answers what it did before: a pass "
            "keeps something that is made of them, such as a cache; compute it anew in each pass"
        )


def _near(one: Tensor, other: Tensor) -> bool:
    """Say whether answers [N, M] are the same but for rounding."""
    largest = other.abs().max().item() if other.numel() else 0.0
    return one.shape == other.shape and torch.allclose(
        one, other, rtol=APART, atol=APART * largest, equal_nan=True
    )


def _shrink_(module: nn.Module) -> None:
    """Give a network other weights, in place."""
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                tensor.mul_(0.75)


def forward_of(module: nn.Module, file: str) -> str:
    """Return a file, with the line where a network's forward begins if that is where it is."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    own = code is not None and Path(code.co_filename).name == Path(file).name
    return f"{file}, line {code.co_firstlineno}" if code is not None and own else file


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def _check_decisions(module: nn.Module, batch: Batch, file: str) -> None:
    inputs = arguments(batch)
    watch, alone = _Decisions(inputs, file), "the network fails on one row, as it answers each for itself"
    told = blaming(file, alone, forward_of(module, file))
    with told, torch.no_grad(), every_layer_called(), watch, _Leaving(watch):
        module(*inputs)
    if watch.places:
        raise DecantError(
            f"{watch.places[0]}: what the network computes depends on a value of its inputs (an `if`, a "
            "loop, a shape, or numbers that leave torch), so one pass cannot show all of it; compute both "
            "ways and choose by torch.where"
        )


class _Decisions(Watching):
    """Notes where a number that depends on the inputs becomes one of Python's."""

    def __init__(self, inputs: tuple[Tensor, ...], file: str) -> None:
        super().__init__()
        self._alive: list[Any] = list(inputs)
        self._active = {storage_of(each) for each in inputs}
        self._file = file
        self.places: list[Message] = []

    def see(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        active = self.depends(args, kwargs)
        if active and func.overloadpacket in DECIDING:
            self.note()
        for tensor in tree_leaves(result) if active else ():
            if isinstance(tensor, Tensor):
                self._alive.append(tensor)
                self._active.add(storage_of(tensor))
        return result

    def depends(self, *given: Any) -> bool:
        """Say whether one of these tensors is made of the inputs."""
        tensors = (each for each in tree_leaves(given) if isinstance(each, Tensor))
        return any(storage_of(each) in self._active for each in tensors)

    def note(self) -> None:
        """Note the line that is run now."""
        self.places.append(self._place())

    def _place(self) -> Message:
        """Return the innermost line that is the user's, or of the package that has the network."""
        package = self._file.rpartition(" of ")[2]
        for frame in reversed(traceback.extract_stack()):
            path = Path(frame.filename)
            if path.name == Path(self._file).name:
                return f"{self._file}, line {frame.lineno}"
            if package in path.parts:
                return f"{self._file}, line {frame.lineno} of {path.name}"
        return self._file


class _Leaving(TorchFunctionMode):
    """Has noted where a tensor that is made of the inputs becomes an array of NumPy, or a list.

    `one_hot` looks at each number to refuse those that are no class, which decides nothing where it is told
    how many classes there are; so it is written out.
    """

    def __init__(self, watch: _Decisions) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.numpy, Tensor.tolist, Tensor.__array__) and self._watch.depends(args[:1]):
            self._watch.note()
        if func is nn.functional.one_hot and (classes := _classes_of(*args, **(kwargs or {}))) > 0:
            return (args[0].unsqueeze(-1) == torch.arange(classes, device=args[0].device)).long()
        return func(*args, **(kwargs or {}))


def _classes_of(_: Tensor, num_classes: int = -1) -> int:
    """Return how many classes `one_hot` is told; -1 where it is to look for the largest number."""
    return num_classes
