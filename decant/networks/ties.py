"""Tensors that have several names: one parameter, or one buffer, that two modules share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from decant.errors import DecantError
from decant.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


def ties(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return all names of each parameter and buffer of the state, by the first of them, in order."""
    names: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return {each[0]: tuple(each) for each in names.values()}


def places(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return one name for each place that a tensor lies in, by the first of its names.

    A module that has two names itself is one place: torch's `functional_call` with ties would put a tensor
    into it twice, and leave it there.
    """
    found: dict[str, tuple[str, ...]] = {}
    for first, names in ties(module).items():
        paths = {name: name.rpartition(".") for name in names}
        each = {(id(module.get_submodule(path)), last): name for name, (path, _, last) in paths.items()}
        found[first] = tuple(each.values())
    return found


def tied(module: nn.Module) -> set[tuple[str, ...]]:
    """Return the names of each tensor that has more than one."""
    return {names for names in ties(module).values() if len(names) > 1}


def unite_(module: nn.Module) -> None:
    """Make one parameter, in place, of those that are separate objects over the same numbers in memory.

    Copies, files and optimizers know one parameter with two names, and take two objects for two weights.

    Raises:
        DecantError: Parameters overlap in memory, and are not the same tensor.
    """
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.numel() or parameter.device.type == "meta":
            continue
        first, other = found.setdefault(parameter.data_ptr(), (name, parameter))
        if other is parameter:
            continue
        if (other.shape, other.stride()) != (parameter.shape, parameter.stride()):
            raise DecantError(
                f"{first} {[*other.shape]} and {name} {[*parameter.shape]} lie in the same memory and are "
                "not the same tensor: give one its own numbers with .clone(), or share the parameter itself"
            )
        put_(module, name, other)


def compact_(module: nn.Module) -> None:
    """Lay each tensor out row by row, in place, as all that are read from a file lie.

    Those of another layout, as after `.to(memory_format=torch.channels_last)` or `.t()`, are multiplied by
    other kernels, so that the last bits of the answers would not come back from the file.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.layout == torch.strided and not tensor.is_contiguous():
            tensor.data = tensor.data.contiguous()


def put_(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Set a parameter or buffer, in place, by its name in the state."""
    path, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(path), attribute, tensor)


def with_ties(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return tensors by all names that the module has for each, given by the first."""
    return {each: tensors[name] for name, names in ties(module).items() if name in tensors for each in names}
