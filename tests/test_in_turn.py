"""Hessians of layers that change one after another: the bits of whole passes, in far fewer calls."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from decant.errors import DecantError
from decant.examples import Batch, Rows
from decant.networks import resumption as resumed
from decant.networks.record import give_example_, record_of
from decant.networks.resumption import resumption
from decant.networks.structure import observable
from decant.quantize.quantizable import quantizable
from decant.reconstruction import hessians
from decant.reconstruction.hessians import moments
from decant.reconstruction.in_turn import MomentsInTurn, independent
from tests import zoo
from tests.slow import every_second

ROWS, BATCH = 6, 4
"""In two batches, the second one shorter."""


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hessians, "BATCH", BATCH)


def known(module: nn.Module, *example: Tensor) -> nn.Module:
    give_example_(module.eval(), example)
    return module


def differ(module: nn.Module, reference: nn.Module, images: Batch) -> None:
    """Change all weights in turn; hold each Hessian to one of passes of its own."""
    order, watched = list(quantizable(module)), observable(module)
    turns = MomentsInTurn(module, order, images, reference)
    with torch.no_grad():
        for name in order:
            if name in watched:
                found = turns.at(name)
                right = moments(module, [name], images, reference)[name]
                assert (found.count, found.cross is None) == (right.count, right.cross is None)
                assert torch.equal(found.hessian, right.hessian)
                assert found.cross is not None
                assert right.cross is not None
                assert torch.equal(found.cross, right.cross)
            weight = module.get_parameter(name)
            weight.copy_((weight * 8).round() / 8)


@pytest.mark.parametrize("name", every_second(zoo.ZOO))
def test_each_turn_sees_what_whole_passes_see(name: str) -> None:
    module, reference = zoo.build(name), zoo.build(name)
    for each in (module, reference):
        give_example_(each, zoo.ZOO[name].draw(1))
    differ(module, reference, zoo.ZOO[name].rows(ROWS))


def drawn(*shape: int) -> Rows:
    return Rows({"x": torch.randn(ROWS, *shape)})


def stages_of(module: nn.Module) -> list[list[str]]:
    return independent(module, list(observable(module)))


def tried(module: nn.Module, *shape: int) -> resumed.Resumption | None:
    return resumption(module, stages_of(module), [(torch.randn(1, *shape),), (torch.randn(1, *shape),)])


def deep(blocks: int) -> nn.Module:
    """A stack of residual blocks, each of which changes what it has in place."""
    return nn.Sequential(*(Block() for _ in range(blocks)), nn.Flatten(), nn.Linear(4 * 9, 3))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.rectified = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.two(self.rectified(self.one(x)))
        inside += x
        return self.rectified(inside)


def test_each_layer_runs_a_few_times_however_deep_the_network_is() -> None:
    """In whole passes the first of 25 layers would run 25 times for each batch."""
    torch.manual_seed(0)
    module = known(deep(12), torch.randn(1, 4, 3, 3))
    order, ran = list(observable(module)), list[str]()
    turns = MomentsInTurn(module, order, drawn(4, 3, 3), copy.deepcopy(module))
    turns.at(order[0])
    for name in order:
        layer = module.get_submodule(name.removesuffix(".weight"))
        layer.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    for name in order:
        turns.at(name)
    assert max(map(ran.count, order)) <= 4 * len([BATCH, ROWS - BATCH])


class Stashing(nn.Module):
    """Keeps what it has seen in an attribute, where another module reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.last = Look(), nn.Linear(4, 4)
        self.middle = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.look(x)) + self.look.seen)


class Look(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.seen = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.first(x)
        return self.seen.relu()


def test_a_network_with_a_memory_outside_of_its_results_is_passed_whole() -> None:
    torch.manual_seed(0)
    module = known(Stashing(), torch.randn(1, 4))
    assert tried(module, 4) is None
    differ(module, copy.deepcopy(module), drawn(4))


def test_what_no_one_reads_any_more_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = known(deep(6), torch.randn(1, 4, 3, 3))
    passes = tried(module, 4, 3, 3)
    assert passes is not None
    most = 0
    for stage in range(len(passes.stages)):
        passes.received(stage, 0, (torch.ones(2, 4, 3, 3),))
        most = max(most, sum(each.numbers for each in passes._kept[0].values()))
    one = 2 * 4 * 9
    assert one <= most <= 3 * one  # of 18 results of modules
    monkeypatch.setattr(resumed, "ROOM", one - 1)
    differ(module, copy.deepcopy(module), drawn(4, 3, 3))


@pytest.mark.parametrize("room", [512, 768, 1024, 1536, 3072])
@pytest.mark.parametrize("name", ["residual", "skips", "inverted", "codec"])
def test_whatever_room_there_is_each_turn_sees_the_same(
    name: str, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module whose result is not kept runs again, and reads what nobody would read if it were."""
    monkeypatch.setattr(resumed, "ROOM", room)
    module, reference = zoo.build(name), zoo.build(name)
    for each in (module, reference):
        give_example_(each, zoo.ZOO[name].draw(1))
    differ(module, reference, zoo.ZOO[name].rows(ROWS))


def test_layers_of_which_none_hears_of_another_are_watched_together() -> None:
    attention = zoo.build("encoder")
    give_example_(attention, zoo.ZOO["encoder"].draw(1))
    for stage in stages_of(attention):
        feeds = set(record_of(attention).feeds)
        assert not any((one, other) in feeds for one in stage for other in stage)
    torch.manual_seed(0)
    module = known(Three(), torch.randn(1, 4))
    assert stages_of(module) == [["query.weight", "key.weight", "value.weight"], ["out.weight"]]
    differ(module, copy.deepcopy(module), drawn(4))


class Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.query(x), self.key(x), self.value(x)
        weights = (query[:, :, None] * key[:, None]).softmax(-1)
        return self.out((weights @ value[:, :, None])[..., 0])


def test_a_weight_that_no_layer_multiplies_by_is_told() -> None:
    module = zoo.build("functional")
    give_example_(module, zoo.ZOO["functional"].draw(1))
    rows, order = zoo.ZOO["functional"].rows(2), list(quantizable(module))
    with pytest.raises(DecantError, match="Nothing can be known of what filters is multiplied with"):
        MomentsInTurn(module, order, rows, None).at("filters")


def _names(stages: Sequence[Sequence[str]]) -> list[str]:
    return [name for stage in stages for name in stage]


@pytest.mark.parametrize("name", ["patches", "branches", "twice"])
def test_runs_keep_the_order(name: str) -> None:
    module = zoo.build(name)
    give_example_(module, zoo.ZOO[name].draw(1))
    assert _names(stages_of(module)) == list(observable(module))
