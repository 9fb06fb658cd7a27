"""What really runs in a network: each multiplication in order, with its weight, as one forward pass shows it.

The record is knowledge beside the module, which stays as it is. It is made once, by watching what a pass
over an example does down to the operators of torch: so it does not matter in which order layers are
registered, of which class they are, or whether a weight belongs to a layer at all. What a pass does not prove
is not assumed: a batch norm is folded into a layer only where the record shows that each sees the other
alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from decant.errors import DecantError
from decant.networks.calls import KNOWN, Example, Record

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class _Known:
    """What hangs at a module: its example, and the record with what the module was when it was made."""

    example: Example
    record: Record | None = None
    form: tuple[Any, ...] = ()

    def __deepcopy__(self, _: Any) -> _Known:
        return self


def give_example_(module: nn.Module, example: Example) -> None:
    """Tell a network, in place, what it can be called with; its copies know it too.

    Args:
        module: The network.
        example: Its arguments, of one row or a few, on the processor.
    """
    module.__dict__[KNOWN] = _Known(example)


def has_example(module: nn.Module) -> bool:
    """Say whether the network, or what it is a copy of, was given an example."""
    return KNOWN in module.__dict__


def example_of(module: nn.Module) -> Example:
    """Return what the network can be called with.

    Raises:
        DecantError: It was never told.
    """
    if not has_example(module):
        raise DecantError(
            f"Nothing is known of what a {type(module).__name__} takes: make a Checkpoint of it, or call "
            "give_example_ with arguments that it can be called with"
        )
    example: Example = module.__dict__[KNOWN].example
    return example


def record_of(module: nn.Module) -> Record:
    """Return the record of a network as it is now; made anew only where its form has changed.

    Raises:
        DecantError: It was given no example, or it fails on it.
    """
    example, form = example_of(module), _form(module)
    known: _Known = module.__dict__[KNOWN]
    if known.record is None or known.form != form:
        from decant.networks.tracing import trace

        known = _Known(example, trace(module, example), form)
        module.__dict__[KNOWN] = known
    assert known.record is not None
    return known.record


@contextmanager
def same_record(module: nn.Module) -> Iterator[None]:
    """Keep a network's record while something is put beside its layers, or taken away again."""
    record = record_of(module) if has_example(module) else None
    yield
    if record is not None:
        module.__dict__[KNOWN] = _Known(example_of(module), record, _form(module))


def _form(module: nn.Module) -> tuple[Any, ...]:
    """Return what a record depends on: classes of modules, and names, shapes and ties of tensors."""
    ids: dict[int, int] = {}
    tied = []
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if hasattr(parameter, "materialize"):
            raise DecantError(
                f"{name} has no shape yet: a lazy layer finds it in its first pass; call the network once"
            )
        tied.append((name, ids.setdefault(id(parameter), len(ids)), tuple(parameter.shape)))
    return tuple(tied), tuple((name, type(layer)) for name, layer in module.named_modules())
