"""Weights that are computed anew in each pass, made plain parameters of the same value."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from decant.errors import DecantError


def without_parametrizations_(module: nn.Module) -> list[str]:
    """Let each parametrized weight be the parameter that it is computed to be, in place; the function stays.

    These are torch's parametrizations (`weight_norm`, `spectral_norm`, `orthogonal` and one's own), and the
    older `weight_norm`, `spectral_norm` and masks of `torch.nn.utils.prune`, which compute a weight before
    each pass.

    Returns:
        The names of the weights, in order.

    Raises:
        DecantError: A weight cannot be made plain; names it.
    """
    module.eval()  # in training, a spectral norm moves its vectors each time it is read
    found: list[str] = []
    for path, layer in list(module.named_modules()):
        for each in _parametrized(layer):
            found.append(_joined(path, each))
            parametrize.remove_parametrizations(layer, each, leave_parametrized=True)
        for key, hook in list(layer._forward_pre_hooks.items()):
            if (tensor := _computed(hook)) is not None:
                found.append(_joined(path, tensor))
                _make_plain_(layer, tensor, found[-1], key, hook)
    return found


def _parametrized(layer: nn.Module) -> list[str]:
    return list(layer.parametrizations) if parametrize.is_parametrized(layer) else []  # type: ignore[arg-type]


def _computed(hook: Any) -> str | None:
    """Return which tensor of its layer a hook computes before each pass; None for any other hook."""
    from torch.nn.utils.prune import BasePruningMethod

    if isinstance(hook, WeightNorm | SpectralNorm):
        return hook.name
    return hook._tensor_name if isinstance(hook, BasePruningMethod) else None


def _make_plain_(layer: nn.Module, tensor: str, name: str, key: int, hook: Any) -> None:
    """Replace what a hook computes by a parameter, and take away the hook and what it computes from."""
    hook(layer, ())
    value = getattr(layer, tensor)
    if not isinstance(value, torch.Tensor):
        raise DecantError(f"{name} is computed before each pass and is no tensor; make it a plain parameter")
    del layer._forward_pre_hooks[key]
    delattr(layer, tensor)
    for suffix in ("_g", "_v", "_orig", "_mask", "_u"):
        for kept in (layer._parameters, layer._buffers):
            kept.pop(f"{tensor}{suffix}", None)
    layer._buffers.pop(f"{tensor}_v", None)
    for hooks in (layer._state_dict_hooks, layer._load_state_dict_pre_hooks):
        for place, each in list(hooks.items()):  # of a spectral norm; torch's own removal misses the second
            if getattr(getattr(each, "hook", each), "fn", None) is hook:
                del hooks[place]
    layer.register_parameter(tensor, nn.Parameter(value.detach().clone()))


def _joined(path: str, tensor: str) -> str:
    return f"{path}.{tensor}".removeprefix(".")
