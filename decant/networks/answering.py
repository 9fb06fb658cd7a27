"""A network that takes keywords and returns several things, as a function of tensors in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from decant.errors import DecantError


class Answering(nn.Module):
    """A network of transformers, called with tensors in order; what it answers is some of what it returns.

    Args:
        network: The network.
        names: What it calls each tensor.
        outputs: Names of what it returns that are the answer; the only tensor where none is named.
        origin: What sentences of errors call it.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], outputs: Sequence[str], origin: str) -> None:
        super().__init__()
        self.network = network
        self.names, self.outputs, self.origin = tuple(names), tuple(outputs), origin

    def forward(self, *tensors: Tensor) -> Any:
        """Return the answer to tensors [N, ...].

        Raises:
            DecantError: It returns no such thing; or several tensors, and none is named.
        """
        with _masks_whatever_they_hold():
            found = self.network(**dict(zip(self.names, tensors, strict=True)))
        if not isinstance(found, Mapping):
            return found
        there = {name: each for name, each in found.items() if isinstance(each, Tensor)}
        if unknown := [name for name in self.outputs if name not in there]:
            raise DecantError(
                f"{self.origin} returns no tensor {', '.join(unknown)}; it returns {', '.join(there)}"
            )
        if not self.outputs and len(there) != 1:
            shown = ", ".join(f"{name} {[*each.shape]}" for name, each in there.items())
            raise DecantError(
                f"{self.origin} returns {shown or 'no tensor'}; "
                f"name the answer, as output: {next(iter(there), 'logits')}"
            )
        chosen = {name: there[name] for name in self.outputs or there}
        return chosen if len(chosen) > 1 else next(iter(chosen.values()))


@contextmanager
def _masks_whatever_they_hold() -> Iterator[None]:
    """Have transformers compute with each mask; it leaves one out that it finds to hide nothing.

    The function is the same. But what one pass shows would depend on the mask that it is shown with.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask

    def mask(*given: Any, **named: Any) -> Any:
        return eager_mask(*given, **{**named, "allow_is_bidirectional_skip": False})

    ALL_MASK_ATTENTION_FUNCTIONS["eager"] = mask
    try:
        yield
    finally:
        del ALL_MASK_ATTENTION_FUNCTIONS["eager"]
