"""A device for tests of placement: it is called `meta`, computes on the processor, and mixes with nothing.

A tensor on it says that it lies on `meta` and holds a tensor of the processor. Whatever is computed with it
is computed with that one, so a training there ends with the processor's bits; but an operator that gets
tensors of both places fails, as on a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from decant.networks import devices
from decant.training import fit

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

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return what an operator gives, on the device where its tensors lie or where it is asked to."""
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    far = [each for each in tensors if isinstance(each, Elsewhere)]
    near = [each for each in tensors if not isinstance(each, Elsewhere) and each.dim()]
    asked = kwargs.get("device")
    if far and near and func not in BETWEEN:
        raise AssertionError(
            f"{func} mixes the device with tensors {[[*each.shape] for each in near]} of the processor"
        )
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    out = func(*_held(args), **_held(kwargs))
    there = bool(far) if asked is None else torch.device(asked).type == META.type
    if func is torch.ops.aten.copy_.default:
        return args[0]
    return tree_map_only(Tensor, lambda each: _placed(each, far), out) if there else out


def _held(tree: Any) -> Any:
    return tree_map_only(Elsewhere, lambda each: each.held, tree)


def _placed(found: Tensor, far: list[Elsewhere]) -> Tensor:
    """Return a result on the device: the argument that it is, where it was computed in place."""
    return next((each for each in far if each.held is found), Elsewhere(found))


@contextmanager
def device_that_computes(patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the name of the device, which is there meanwhile."""
    patch.setattr(devices, "there", lambda: {"cpu": "the processor", NAME: "a device of the tests"})
    patch.setattr(fit, "autocast", lambda *_: nullcontext())  # torch has none for it
    kinds = [*_get_fused_kernels_supported_devices(), META.type]
    patch.setattr(sys.modules[Optimizer.__module__], "_get_fused_kernels_supported_devices", lambda: kinds)
    with Watch():
        yield NAME
