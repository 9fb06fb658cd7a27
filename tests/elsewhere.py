"""A device for tests of placement: it is called `meta`, computes on the processor, and mixes with nothing.

A tensor on it says that it lies on `meta` and holds a tensor of the processor. Whatever is computed with it
is computed with that one, so a training there ends with the processor's bits; but an operator that gets
tensors of both places fails, as on a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices
from torch.utils._python_dispatch import TorchDispatchMode

from decant.networks import devices
from decant.training import steps

NAME = "meta:0"
META = torch.device(NAME)
BETWEEN = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
"""What takes tensors from one place to another."""


class Elsewhere(Tensor):
    """A tensor of that device.

    Attributes:
        held: Its numbers, on the processor.
        made: How many there were.
    """

    held: Tensor
    made = 0

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=META
        )
        made.held = held
        cls.made += 1
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own is none of a class
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return computed(func, args, kwargs or {})


class Watch(TorchDispatchMode):
    """Computes all that is asked of the device, and refuses what mixes it with the processor."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and what keeps it from that takes as long as all else

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return what an operator gives, on the device where its tensors lie or where it is asked to."""
    tensors = [*_tensors(args), *_tensors([*kwargs.values()])]
    far = [each for each in tensors if isinstance(each, Elsewhere)]
    asked = kwargs.get("device")
    if not far and asked is None:
        return func(*args, **kwargs)
    near = [each for each in tensors if not isinstance(each, Elsewhere) and each.dim()]
    if far and near and func not in BETWEEN:
        raise AssertionError(
            f"{func} mixes the device with tensors {[[*each.shape] for each in near]} of the processor"
        )
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    held = {name: _changed(each, Elsewhere, _held) for name, each in kwargs.items()}
    out = func(*_changed(args, Elsewhere, _held), **held)
    there = bool(far) if asked is None else torch.device(asked).type == META.type
    if func is torch.ops.aten.copy_.default:
        return args[0]
    return _changed(out, Tensor, lambda each: _placed(each, far)) if there else out


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the tensors among arguments, which operators get by themselves and in lists.

    `torch.utils._pytree` does the same, for trees of any kind, and takes ten times as long.
    """
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _changed(value: Any, kind: type[Tensor], change: Callable[[Any], Tensor]) -> Any:
    """Return a value, or a list or tuple of some, with another tensor for each one of a kind."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)([_changed(each, kind, change) for each in value])
    return value


def _held(there: Elsewhere) -> Tensor:
    return there.held


def _placed(found: Tensor, far: list[Elsewhere]) -> Tensor:
    """Return a result on the device: the argument that it is, where it was computed in place."""
    return next((each for each in far if each.held is found), Elsewhere(found))


@contextmanager
def device_that_computes(patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the name of the device, which is there meanwhile."""
    patch.setattr(devices, "there", lambda: {"cpu": "the processor", NAME: "a device of the tests"})
    patch.setattr(steps, "autocast", lambda *_: nullcontext())  # torch has none for it
    kinds = [*_get_fused_kernels_supported_devices(), META.type]
    patch.setattr(sys.modules[Optimizer.__module__], "_get_fused_kernels_supported_devices", lambda: kinds)
    with Watch():
        yield NAME
