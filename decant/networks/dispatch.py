"""Seeing the operators of a pass, down to those that nothing else is made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Watching(TorchDispatchMode):
    """Sees operators; what torch makes of others is taken apart first, as it is outside of inference mode.

    With `torch.inference_mode()` torch would hand a linear layer over as one operator.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from importing its compiler, which takes seconds, at the first operator."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        apart = self._apart(func, args, kwargs) if torch.is_inference_mode_enabled() else NotImplemented
        return self.see(func, args, kwargs) if apart is NotImplemented else apart

    def see(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return the result of an operator that is made of no others."""
        raise NotImplementedError

    def _apart(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return the result of an operator whose parts this has seen; NotImplemented where it has none."""
        TorchDispatchMode.__enter__(self)
        try:
            return func.decompose(*args, **kwargs)
        finally:
            TorchDispatchMode.__exit__(self, None, None, None)


def storage_of(tensor: Tensor) -> int:
    """Return what tells the memory of a tensor: that of a view is the same; a sparse one is its own."""
    try:
        key: int = tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return id(tensor)
    return key
