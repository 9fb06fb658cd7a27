"""Networks of which a copy is none: what operations change would not be what is computed."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decant.adoption.adopting import Source, adopt, check_network
from decant.checkpoints.checkpoint import Checkpoint
from decant.errors import DecantError
from decant.examples import Examples, Rows, Splits
from decant.networks.python import Python
from decant.prune.operation import prune

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

ROWS = Examples(Rows({"x": torch.randn(12, 6, generator=torch.Generator().manual_seed(0))}), None, ())


class Two(nn.Module):
    """Two layers; what is between them is an attribute that may be anything."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.between: Any = torch.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


def as_attribute() -> nn.Module:
    net = Two()
    net.between = lambda hidden: net.first.weight.sum() * hidden.relu()
    return net


def as_forward() -> nn.Module:
    net, plain = Two(), None
    plain = net.first.forward
    net.first.forward = lambda x: plain(x).relu()  # type: ignore[method-assign]
    return net


def as_hook() -> nn.Module:
    net = Two()
    net.scale = nn.Parameter(torch.rand(8))
    net.first.register_forward_hook(lambda _, __, outputs: outputs * net.scale)
    return net


class Kept(nn.Module):
    """Reads what a hook has kept."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, kept = nn.Linear(6, 8), nn.Linear(8, 3), dict[str, Tensor]()
        self.kept = kept
        self.first.register_forward_hook(lambda _, __, outputs: kept.update(hidden=outputs))

    def forward(self, x: Tensor) -> Tensor:
        self.first(x)
        return self.last(self.kept["hidden"].relu())


def locked() -> nn.Module:
    net = Two()
    net.lock = threading.Lock()  # type: ignore[assignment]
    return net


def compiled() -> nn.Module:
    net = Two()
    net.first = torch.jit.trace(net.first, torch.zeros(2, 6))  # type: ignore[no-untyped-call]
    return net


UNCOPIED: dict[Callable[[], nn.Module], str] = {
    as_attribute: "still computes with first.weight of the original",
    as_forward: "still computes with first.weight of the original",
    as_hook: "still computes with scale of the original",
    Kept: "a copy of it answers otherwise: a function keeps what one pass has computed",
    locked: r"it cannot be copied \(TypeError: cannot pickle '_thread.lock'",
    compiled: r"first is compiled by torch\.jit",
}


@pytest.mark.parametrize("build", UNCOPIED, ids=lambda build: build.__name__)
def test_a_network_whose_copy_cannot_be_changed_is_refused_at_every_door(
    build: Callable[[], nn.Module],
) -> None:
    network, sentence = Python.of(build), UNCOPIED[build]
    with pytest.raises(DecantError, match=f"test_copying.py.*{sentence}"):
        adopt(Source(network), ROWS)
    with pytest.raises(DecantError, match=f"test_copying.py.*{sentence}"):
        check_network(network, ROWS)
    model = Checkpoint(None, ROWS.shape, (), build())
    with pytest.raises(DecantError, match=f"operations cannot change: .*{sentence}"):
        prune(model, {"criterion": {"kind": "magnitude"}, "budget": {"sparsity": 0.5}}, Splits(ROWS, ROWS))


class Method(Two):
    """Keeps hold of a method of its own, and of what it computed for whoever looks later."""

    def __init__(self) -> None:
        super().__init__()
        self.between, self.seen, self.act = self.curved, dict[str, Tensor](), torch.jit.script(nn.ReLU())
        self.first.register_forward_hook(lambda _, __, outputs: self.seen.update(hidden=outputs))

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"version": 1}

    def curved(self, hidden: Tensor) -> Tensor:
        return self.act(hidden) * self.last.weight[0]  # type: ignore[no-any-return]


def test_what_goes_into_a_copy_is_none_of_that() -> None:
    parent = Checkpoint(None, ROWS.shape, (), Method().train())
    recipe = {"criterion": {"kind": "magnitude"}, "budget": {"sparsity": 0.5}}
    child = prune(parent, recipe, Splits(ROWS, ROWS)).model.module.eval()
    assert parent.module.training
    (x,) = ROWS.images.tensors.values()  # type: ignore[union-attr]
    first, last = child.get_submodule("first"), child.get_submodule("last")
    by_hand = last(first(x[:]).relu() * last.weight[0])
    assert bool((first.weight == 0).any())
    assert torch.equal(child(x[:]), by_hand)
