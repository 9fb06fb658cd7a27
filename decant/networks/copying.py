"""Whether a network can be copied, and a copy computes with its own numbers: operations change copies."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from decant.errors import DecantError
from decant.networks.calls import Example
from decant.networks.dispatch import Watching, storage_of
from decant.networks.execution import tensors_of
from decant.networks.tracing import every_layer_called
from decant.sealed import one_line

NEAR = 1e-4
"""How far a copy's answers may be from the original's: rounding."""


def check_copies(module: nn.Module, example: Example, place: str) -> None:
    """Check that what is done to a copy of a network changes what the copy computes.

    A function that is made inside of a method (a lambda that is put in the place of a layer's `forward`, or
    into a hook) keeps hold of the module that it was made in. In a copy it still computes with the weights
    of the original, whatever is done to those of the copy. What `torch.jit.script` has compiled does not let
    its weights be replaced at all.

    Args:
        module: The network; it is watched in eval mode, and is as before afterwards.
        example: What it can be called with.
        place: What sentences begin with.

    Raises:
        DecantError: It cannot be copied, or the copy is none.
    """
    modes = [(each, each.training) for each in module.modules()]
    try:
        _check_compiled(module, place)
        _check_copies(module.eval(), example, place)
    finally:
        for each, mode in modes:
            each.training = mode


def _check_compiled(module: nn.Module, place: str) -> None:
    for name, each in module.named_modules():
        if isinstance(each, torch.jit.ScriptModule) and any(True for _ in each.parameters()):
            raise DecantError(
                f"{place}: {name or 'it'} is compiled by torch.jit, so that its weights cannot be replaced; "
                "put the module itself there"
            )


def _check_copies(module: nn.Module, example: Example, place: str) -> None:
    named = module.state_dict(keep_vars=True).items()  # with extra state, which may be anything
    watch = _Reading({storage_of(each): name for name, each in named if isinstance(each, Tensor)})
    with torch.no_grad(), every_layer_called():
        expected = list(tensors_of(module(*copy.deepcopy(example))))
        module(*_other(example))  # what a function keeps of a pass is now of this one
        other = _copied(module, place)
        with watch:
            found = list(tensors_of(other(*copy.deepcopy(example))))
    if watch.read:
        raise DecantError(
            f"{place}: a copy of it still computes with {watch.read} of the original, which a function keeps "
            "hold of (a lambda, or one that is made inside of another); make it a method of the module"
        )
    if not _same(expected, found):
        raise DecantError(
            f"{place}: a copy of it answers otherwise: a function keeps what one pass has computed where the "
            "copy does not look for it, such as the dict of a hook; hand it on as a result"
        )


def _copied(module: nn.Module, place: str) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:  # whatever the objects raise that it keeps
        raise DecantError(
            f"{place}: it cannot be copied ({type(error).__name__}: {one_line(error)[:100]}); keep nothing "
            "in a module that copy.deepcopy fails on, such as files, locks, and tensors that were computed "
            "with gradients"
        ) from None


def _other(example: Example) -> Example:
    """Return arguments of the same form, with other fractions."""
    return tree_map_only(
        Tensor, lambda each: each * 0.5 + 0.25 if each.is_floating_point() else each, example
    )


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Say whether tensors are the same but for rounding."""
    return len(one) == len(other) and all(
        a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=NEAR, atol=NEAR, equal_nan=True)
        for a, b in zip(one, other, strict=True)
        if not a.is_complex()
    )


class _Reading(Watching):
    """Notes the first of some tensors that an operator reads."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self._names = names
        self.read = ""

    def see(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        for each in tree_leaves((args, kwargs)):
            if isinstance(each, Tensor):
                self.read = self.read or self._names.get(storage_of(each), "")
        return func(*args, **kwargs)
