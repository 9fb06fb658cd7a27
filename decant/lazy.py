"""torch, imported when something of it is first used: reading a schema takes a tenth of importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch as torch
else:

    class _Torch:
        """Every attribute is torch's own; torch itself is in `sys.modules` only once one was asked for."""

        def __getattr__(self, name: str) -> object:
            import torch

            return getattr(torch, name)

    torch = _Torch()
