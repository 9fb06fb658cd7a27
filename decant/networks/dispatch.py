"""Seeing the operators of a pass, down to those that nothing else is made of."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Watching(TorchDispatchMode):
    """Sees operators; what torch makes of others is taken apart first, as it is outside of inference mode.

    With `torch.inference_mode()` torch would hand a linear layer over as one operator.
    """

    def taken_apart(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the result of an operator whose parts this has seen; NotImplemented where it has none."""
        if not torch.is_inference_mode_enabled():
            return NotImplemented
        TorchDispatchMode.__enter__(self)
        try:
            return func.decompose(*args, **(kwargs or {}))
        finally:
            TorchDispatchMode.__exit__(self, None, None, None)
