"""Every criterion passes one exam; masks have exact counts, ties included."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tasks.data import Examples
from tasks.models import Mlp, build, compressible
from tasks.params import validate
from tasks.prune.criteria import Criterion, Magnitude, Random
from tasks.prune.masks import Scope, make_masks

CRITERIA = get_args(get_args(Criterion)[0])
SCOPES = get_args(Scope)


@pytest.fixture
def module() -> torch.nn.Module:
    return build(Mlp(hidden=(7, 5)), (1, 4, 4), 3, seed=1).eval()


@pytest.fixture
def examples() -> Examples:
    images = torch.randint(0, 256, (20, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    return Examples(images.to(torch.uint8), torch.arange(20) % 3, ("a", "b", "c"))


@pytest.mark.parametrize("kind", CRITERIA)
def test_exam(kind: type[Magnitude], module: torch.nn.Module, examples: Examples) -> None:
    criterion = validate({"kind": kind.model_fields["kind"].default}, Criterion)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    scores = criterion.scores(module, examples, seed=4)
    weights = compressible(module)
    assert {name: score.shape for name, score in scores.items()} == {n: w.shape for n, w in weights.items()}
    assert all(torch.isfinite(score).all() and not score.requires_grad for score in scores.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    again = criterion.scores(module, examples, seed=4)
    assert all(torch.equal(score, again[name]) for name, score in scores.items())
    assert validate(criterion.model_dump(), Criterion) == criterion


def test_magnitude_by_hand(module: torch.nn.Module, examples: Examples) -> None:
    with torch.no_grad():
        module.get_parameter("layers.4.weight").copy_(torch.tensor([[-2.0, 0.0, 1.0, -0.5, 3.0]] * 3))
    scores = Magnitude().scores(module, examples, seed=0)
    assert scores["layers.4.weight"][0].tolist() == [2.0, 0.0, 1.0, 0.5, 3.0]


def test_random_is_another_draw_with_another_seed(module: torch.nn.Module, examples: Examples) -> None:
    first, second = (Random().scores(module, examples, seed)["layers.0.weight"] for seed in (0, 1))
    assert not torch.equal(first, second)


def some_scores(seed: int, distinct: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(0, distinct, shape, generator=generator).float()
        for name, shape in {"a": (4, 9), "b": (3, 2, 3, 3), "c": (1, 5)}.items()
    }


@given(st.integers(0, 99), st.sampled_from([1, 2, 5, 1000]), st.floats(0, 1), st.sampled_from(SCOPES))
def test_counts_are_exact_with_any_number_of_ties(
    seed: int, distinct: int, sparsity: float, scope: Scope
) -> None:
    scores = some_scores(seed, distinct)
    masks = make_masks(scores, {}, sparsity, scope)
    zeros = {name: int((~mask).sum()) for name, mask in masks.items()}
    if scope == "layer":
        assert zeros == {name: round(sparsity * score.numel()) for name, score in scores.items()}
    else:
        assert sum(zeros.values()) == round(sparsity * sum(score.numel() for score in scores.values()))


@given(st.integers(0, 99), st.floats(0, 1), st.floats(0, 1), st.sampled_from(SCOPES))
def test_more_sparsity_never_brings_a_weight_back(seed: int, one: float, other: float, scope: Scope) -> None:
    scores = some_scores(seed, 5)
    less, more = (make_masks(scores, {}, sparsity, scope) for sparsity in sorted((one, other)))
    assert not any((more[name] & ~less[name]).any() for name in scores)


def test_the_lowest_go_first_and_of_equals_the_last() -> None:
    scores = {"a": torch.tensor([[3.0, 1.0, 2.0, 1.0]]), "b": torch.tensor([[1.0, 9.0]])}
    masks = make_masks(scores, {}, 2 / 6, "global")
    assert masks["a"].tolist() == [[True, True, True, False]]
    assert masks["b"].tolist() == [[False, True]]


def test_an_earlier_mask_is_kept_and_counts() -> None:
    scores = {"a": torch.tensor([[9.0, 1.0, 2.0, 3.0]])}
    earlier = {"a": torch.tensor([[False, True, True, True]])}
    assert make_masks(scores, earlier, 0.5, "global")["a"].tolist() == [[False, False, True, True]]


def test_nan_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="scores of a hold NaN"):
        make_masks({"a": torch.tensor([1.0, math.nan])}, {}, 0.5, "global")
