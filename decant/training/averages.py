"""What a network's moving average is taken of, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from decant.checkpoints.checkpoint import state


def reader(module: nn.Module) -> Callable[[], Mapping[str, Tensor]]:
    """Return what gives the tensors of `state(module)` each time it is called, without looking for all names.

    They are the module's own, which may want gradients. Where it makes its state itself, it is
    asked each time.
    """
    every = module.state_dict(keep_vars=True)
    places = {name: _place(module, name) for name in state(module)}
    if any(owner.get(attribute) is not every[name] for name, (owner, attribute) in places.items()):
        return lambda: state(module)
    return lambda: {name: owner[attribute] for name, (owner, attribute) in places.items()}


def _place(module: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """Return the table in which a module keeps a parameter or buffer, and its key there; else nothing."""
    path, _, attribute = name.rpartition(".")
    owner = dict(module.named_modules(remove_duplicate=False)).get(path)
    if owner is None:
        return {}, attribute
    return (owner._parameters if attribute in owner._parameters else owner._buffers), attribute
