"""Arithmetic in pieces: the same numbers, written where they lie; memory that is kept for the next step."""

import resource
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from decant.checkpoints import pieces as pieces_module
from decant.checkpoints.activations import InputGrid
from decant.checkpoints.pieces import PIECE, pieces
from decant.networks import heap
from decant.networks.heap import KEPT, MAP, MAPPED, TRIM, TRIMMED, kept_heap
from decant.quantize.qat.learners import InputStep

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_pieces_are_views_of_the_same_numbers_each_once(layout: torch.memory_format) -> None:
    numbers = torch.arange(2.0 * (PIECE + 8)).view(2, 8, -1, 1).contiguous(memory_format=layout)
    doubled = torch.empty_like(numbers)
    found = list(pieces(numbers, doubled))
    assert [len(each) for each, _ in found] == [PIECE, PIECE, 16]
    for each, result in found:
        result.copy_(2 * each)
    assert torch.equal(doubled, 2 * numbers)


def test_what_lies_in_other_orders_or_with_gaps_comes_at_once() -> None:
    large = torch.zeros(2, 8, PIECE, 1)
    other = large.contiguous(memory_format=torch.channels_last)
    for given in [(large, other), (large[:, ::2],), (large.expand(2, 8, PIECE, 3),), (torch.zeros(PIECE),)]:
        assert [each is one for (each, *_) in pieces(*given) for one in given[:1]] == [True]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("learned", [True, False])
def test_rounding_in_pieces_has_the_bits_of_rounding_at_once(
    layout: torch.memory_format, learned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, upstream = (torch.randn(4, 8, 5, 5).contiguous(memory_format=layout) for _ in "ab")
    whole = rounded(inputs, upstream, learned)
    monkeypatch.setattr(pieces_module, "PIECE", 64)
    assert len(list(pieces(inputs))) == 13
    for once, piecewise in zip(whole, rounded(inputs, upstream, learned), strict=True):
        assert torch.equal(once, piecewise)
        assert once.stride() == piecewise.stride()


def rounded(inputs: Tensor, upstream: Tensor, learned: bool) -> list[Tensor]:
    """Return rounded inputs, their gradient, and the step's where it is learned."""
    grid, given = InputGrid(4, 0.2, 5), inputs.clone().requires_grad_()
    learner = InputStep(grid)
    found = (learner if learned else grid)(given)
    found.backward(upstream)
    own = [each.grad for each in learner.parameters() if each.grad is not None]
    assert given.grad is not None
    assert len(own) == learned
    return [found.detach(), given.grad, *own]


# --- memory


@pytest.mark.skipif(heap._glibc() is None, reason="needs glibc")
def test_memory_that_was_freed_is_there_without_new_pages() -> None:
    with kept_heap():
        torch.ones(1 << 24)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(1 << 24)  # 64 MiB, more than glibc keeps by itself: 16,384 pages
        assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1000


def test_memory_is_given_back_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []
    fake = SimpleNamespace(
        mallopt=lambda *of: asked.append(("limit", of)),
        malloc_trim=lambda of: asked.append(("trim", of.value)),
    )
    monkeypatch.setattr(heap, "_glibc", lambda: fake)
    with pytest.raises(KeyboardInterrupt), kept_heap():
        assert asked == [("limit", (TRIM, KEPT)), ("limit", (MAP, KEPT))]
        raise KeyboardInterrupt
    assert asked[2:] == [("limit", (TRIM, TRIMMED)), ("limit", (MAP, MAPPED)), ("trim", 0)]


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    with kept_heap():
        pass
