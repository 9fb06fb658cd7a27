"""Moments of layers whose weights are settled one after another, each on what those before send it then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from torch import Tensor, nn

from decant.examples import Batch, arguments
from decant.networks.devices import CPU, device_of
from decant.networks.layer_inputs import received
from decant.networks.record import record_of
from decant.networks.resumption import Resumption, resumption
from decant.networks.structure import unobservable
from decant.reconstruction.hessians import InputHessian, moments

TOGETHER = 2**25
"""Numbers of the Hessians of layers whose inputs are watched in one pass, at most."""


class MomentsInTurn:
    """The Hessian of each layer's inputs at its turn; on the processor without a whole pass for each of them.

    Layers that no earlier one of them has a say in, as the three before an attention, are watched together.
    Passes begin where those of the turn before had come to, in networks where that changes nothing. What is
    returned is what `hessians.moments` returns, to the bit.
    """

    def __init__(
        self, module: nn.Module, order: Sequence[str], images: Batch, reference: nn.Module | None
    ) -> None:
        """Make it of a network whose weights are about to change.

        Args:
            module: The network, in eval mode; each weight may change after its turn, and not before.
            order: Names of all weights that change, in the order in which they run.
            images: What is sent through.
            reference: As in `hessians.moments`; nothing of it changes.
        """
        self._module, self._images, self._reference = module, images, reference
        self._order, self._stage = order, -1
        self._resumed: dict[nn.Module, Resumption | None] = {}
        self._found: dict[str, InputHessian] = {}

    def at(self, name: str) -> InputHessian:
        """Return the Hessian of the inputs of a weight's layer, whose turn it is.

        Raises:
            ValueError: There are no images.
            DecantError: As `hessians.moments`.
        """
        if name in unobservable(self._module):
            return moments(self._module, [name], self._images)[name]  # which says why there are none
        if name not in self._found:
            self._stage = next(at for at, stage in enumerate(self._stages) if name in stage)
            names = self._stages[self._stage]
            self._found = moments(self._module, names, self._images, self._reference, self._received)
        return self._found[name]

    @cached_property
    def _stages(self) -> list[list[str]]:
        hidden = unobservable(self._module)
        together = TOGETHER if self._here else 0
        return [each for each in independent(self._module, self._order, together) if each[0] not in hidden]

    @property
    def _here(self) -> bool:
        """Whether the networks lie on the processor; a device has the room for one layer's numbers alone."""
        return device_of(self._module).type == CPU

    def _received(
        self, module: nn.Module, names: Sequence[str], batch: int, inputs: tuple[Tensor, ...]
    ) -> Mapping[str, tuple[Tensor, ...]]:
        if module not in self._resumed:
            rows = [arguments(self._images[at : at + 1]) for at in (0, len(self._images) - 1)]
            self._resumed[module] = resumption(module, self._stages, rows) if self._here else None
        resumed = self._resumed[module]
        return (
            received(module, names, inputs)
            if resumed is None
            else resumed.received(self._stage, batch, inputs)
        )


def independent(module: nn.Module, order: Sequence[str], together: int = TOGETHER) -> list[list[str]]:
    """Return names in runs of which none has a say in what a later one of the run receives.

    Weights whose inputs are not looked at are alone.

    Args:
        module: The network.
        order: Names of weights in the order in which they run.
        together: Numbers of the Hessians of a run, at most; a name is a run where it alone has more.
    """
    hidden, fed = unobservable(module), _fed(module)
    runs: list[list[str]] = []
    numbers = 0
    for name in order:
        size = 0 if name in hidden else module.get_parameter(name)[0].numel() ** 2
        alone = not runs or name in hidden or runs[-1][0] in hidden or numbers + size > together
        if alone or any(name in fed[earlier] for earlier in runs[-1]):
            runs.append([])
            numbers = 0
        runs[-1].append(name)
        numbers += size
    return runs


def _fed(module: nn.Module) -> dict[str, set[str]]:
    """Return, for each weight, all that it has a say in what they receive."""
    record = record_of(module)
    next_to: dict[str, set[str]] = {name: set() for name in record.weights}
    for name, after in record.feeds:
        next_to[name].add(after)
    found = {}
    for name in next_to:
        open_, found[name] = [name], set[str]()
        while open_:
            more = next_to[open_.pop()] - found[name]
            found[name] |= more
            open_ += more
    return found
