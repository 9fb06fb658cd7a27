"""Explanations: ranks against SciPy, curves and occlusion by hand, values known of linear functions."""

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr
from torch import Tensor, nn

from decant.errors import DecantError
from decant.examples import Rows
from decant.explanations.agreement import places, ranks, spearman, top_overlap
from decant.explanations.answers import Direction, OneClass, OneLabel, OneNumber, answer_of
from decant.explanations.curves import STEPS, area, curves_of
from decant.explanations.features import features_of
from decant.explanations.gradients import POINTS, integrated_gradients
from decant.explanations.masked import Masked
from decant.explanations.numbers import Numbers
from decant.explanations.patches import Patches
from decant.explanations.perturbations import coins, kernel_shap, lime, occlusion, shapley_subsets
from decant.explanations.runs import bands
from decant.explanations.tokens import Places
from decant.inputs import IDS, MASK
from decant.networks.architectures import Resnet, build
from decant.targets import CLASSES, Labels, Tokens

RULED = torch.Generator().manual_seed(3)
ROWS = torch.randn(9, 4, generator=RULED)
SLOPES = torch.tensor([2.0, -1.0, 0.0, 0.5])
MEANS = ROWS.double().mean(0)


def table(function: Callable[..., Any], rows: Tensor = ROWS) -> Masked:
    """Return a function of rows of a table, whose one number is explained."""
    features = Numbers.of(Rows({"x": rows}), torch.arange(len(rows)))
    return Masked(features, function, OneNumber(torch.zeros(len(rows), dtype=torch.int64), 1))


def linear(x: Tensor) -> Tensor:
    return x @ SLOPES[:, None] + 3


def crossed(x: Tensor) -> Tensor:
    return (x[:, 0] * x[:, 1] + x[:, 2].relu() * x[:, 3])[:, None]


KNOWN = SLOPES.double() * (ROWS.double() - MEANS)

grids = st.lists(st.lists(st.integers(-2, 2), min_size=6, max_size=6), min_size=1, max_size=4)


@settings(max_examples=25)
@given(grids, st.integers(2, 6))
def test_rank_correlations_are_those_of_scipy(lists: list[list[int]], count: int) -> None:
    """Of few whole numbers, so with many ties; what lies behind a row's features changes nothing."""
    one = torch.tensor(lists, dtype=torch.float64)
    other = one.flip(1) * torch.tensor([1.0, 0, 1, 1, 2, 1])
    counts = torch.full((len(one),), count)
    for row, found in enumerate(spearman(one, other, counts).tolist()):
        left, right = one[row, :count].numpy(), other[row, :count].numpy()
        assert ranks(one, counts)[row, :count].numpy() == pytest.approx(rankdata(left) - 1)
        if len(set(left)) > 1 and len(set(right)) > 1:
            assert found == pytest.approx(spearmanr(left, right).statistic, abs=1e-12)
        else:
            assert found == float(len(set(left)) == len(set(right)) == 1)


def test_the_features_on_top_are_counted_by_hand() -> None:
    one = torch.tensor([[5.0, 4, 3, 2, 1, 9], [1, 1, 1, 1, 1, 1]])
    other = torch.tensor([[5.0, 1, 2, 3, 4, -9], [0, 2, 0, 0, 0, 0]])
    assert places(one, torch.tensor([5, 6]))[0].tolist() == [0, 1, 2, 3, 4, 5]  # the sixth is no feature
    # A fifth of 5 is the first alone; a fifth of 6 is two, the first two of equal ones.
    assert top_overlap(one, other, torch.tensor([5, 6])).tolist() == [1.0, 1.0]
    assert top_overlap(-one, other, torch.tensor([5, 6])).tolist() == [0.0, 1.0]
    assert top_overlap(one, other, torch.tensor([0, 0])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("method", [kernel_shap, lambda masked, _: occlusion(masked)])
def test_of_a_linear_function_values_are_slopes_times_the_way(method: Any) -> None:
    assert method(table(linear), 1) == pytest.approx(KNOWN, abs=2e-5)


def test_few_features_have_exact_shapley_values() -> None:
    """By the mean over all orders in which features come, here over all subsets with their weights."""
    masked = table(crossed)
    found = kernel_shap(masked, 1)
    rows = torch.arange(9)
    for feature in range(4):
        others = [each for each in range(4) if each != feature]
        wanted = torch.zeros(9, dtype=torch.float64)
        for size in range(4):
            for subset in combinations(others, size):
                kept = torch.zeros(9, 4, dtype=torch.bool)
                kept[:, list(subset)] = True
                without = masked(rows, kept)
                kept[:, feature] = True
                weight = math.factorial(size) * math.factorial(3 - size) / math.factorial(4)
                wanted += weight * (masked(rows, kept) - without)
        assert found[:, feature] == pytest.approx(wanted, abs=2e-5)


def test_drawn_shapley_values_add_up_and_are_near_the_exact_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, slopes = (torch.randn(n, 20, generator=generator) for n in (5, 1))
    masked = table(lambda x: x @ slopes.T, rows)
    found, (whole, nothing) = kernel_shap(masked, 2), masked.ends()
    assert found.sum(1) == pytest.approx(whole - nothing, abs=1e-4)
    assert found == pytest.approx((slopes * (rows - rows.double().mean(0))).double(), abs=1e-4)
    subsets = shapley_subsets(20, generator)
    assert subsets.kept.shape == (102, 20)
    assert torch.equal(subsets.kept[:50], ~subsets.kept[50:100])
    assert subsets.kept[:100].sum(1).min() > 0


def test_lime_finds_the_slopes_of_a_linear_function() -> None:
    """Less by what the ridge takes: by the closed form of weighted ridge regression, in NumPy."""
    found = lime(table(linear), 1)
    drawn = coins(4, torch.Generator().manual_seed(1))
    marks, weights = drawn.kept.double().numpy(), drawn.weights.numpy()
    centred = marks - (weights @ marks) / weights.sum()
    squares = centred.T @ (weights[:, None] * centred)
    shrunk = torch.linalg.solve(torch.tensor(squares) + torch.eye(4), torch.tensor(squares) @ KNOWN.T)
    assert found == pytest.approx(shrunk.T, abs=2e-5)
    assert spearman(found, KNOWN, torch.full((9,), 4)).min() > 0.79
    assert weights.max() <= 1
    assert torch.equal(drawn.kept[:50], ~drawn.kept[50:])


def test_the_gradients_along_the_way_add_up() -> None:
    """Completeness, and slopes times the way of a linear function."""
    features = Numbers.of(Rows({"x": ROWS}), torch.arange(9))
    answer = OneNumber(torch.zeros(9, dtype=torch.int64), 1)
    assert integrated_gradients(linear, features, answer) == pytest.approx(KNOWN, abs=1e-5)
    smooth = lambda x: (x[:, :2].prod(1) + x[:, 2].sin() * x[:, 3])[:, None]  # noqa: E731
    whole, nothing = Masked(features, smooth, answer).ends()
    assert integrated_gradients(smooth, features, answer).sum(1) == pytest.approx(whole - nothing, abs=1e-4)
    with pytest.raises(DecantError, match="no gradient by its inputs"):
        integrated_gradients(lambda x: linear(x.detach()), features, answer)
    assert POINTS >= 8


def test_occlusion_of_a_picture_by_hand() -> None:
    """Four bright pixels of the first patch: without it the mean picture's stay."""
    images = torch.zeros(2, 1, 10, 10, dtype=torch.uint8)
    images[0, 0, :2, :2] = 255
    masked = Masked(
        Patches.of(images, torch.arange(2)), lambda x: x.sum((2, 3)), OneNumber(torch.zeros(2).long(), 1)
    )
    found = occlusion(masked)
    assert found.shape == (2, 25)
    assert found[0].tolist() == pytest.approx([2.0] + [0.0] * 24)
    assert found[1].tolist() == pytest.approx([-2.0] + [0.0] * 24)


def test_shifted_patches_are_half_a_patch_away_and_add_up() -> None:
    assert bands(10, 5).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert bands(10, 5, 0.5).tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert bands(3, 5).tolist() == [0, 1, 2]
    patches = Patches.of(torch.zeros(1, 1, 10, 10, dtype=torch.uint8), torch.tensor([0]))
    shifted = patches.shifted()
    assert shifted.most == 36
    values = torch.rand(1, 36, dtype=torch.float64)
    assert patches.aligned(values).sum().item() == pytest.approx(values.sum().item())


def test_curves_by_a_naive_loop() -> None:
    masked = table(linear)
    values = torch.rand(9, 4, generator=torch.Generator().manual_seed(5))
    found = curves_of(masked, values, lambda scores: scores)
    order = values.argsort(dim=1, descending=True)
    for step in range(STEPS + 1):
        removed = round(4 * step / STEPS)
        deleted, inserted = [], []
        for row in range(9):
            gone = order[row, :removed]
            left, alone = ROWS[row].double(), MEANS.clone()
            alone[gone] = left[gone]
            left = left.clone()
            left[gone] = MEANS[gone]
            deleted.append(left @ SLOPES.double() + 3)
            inserted.append(alone @ SLOPES.double() + 3)
        assert found.deletion[step].item() == pytest.approx(sum(deleted).item() / 9, abs=1e-5)  # type: ignore[union-attr]
        assert found.insertion[step].item() == pytest.approx(sum(inserted).item() / 9, abs=1e-5)  # type: ignore[union-attr]
    assert area(torch.tensor([1.0, 0.0, 1.0])) == pytest.approx(0.5)
    best = curves_of(masked, KNOWN, lambda scores: scores)
    assert best.deletion_area <= found.deletion_area
    assert best.insertion_area >= found.insertion_area


def texts() -> Rows:
    ids = torch.tensor([[7, 1, 2, 3], [7, 4, 0, 0], [7, 0, 0, 0]])
    return Rows({IDS: ids, MASK: (torch.tensor([4, 2, 1])[:, None] > torch.arange(4)).long()})


def test_what_is_removed_of_a_text_is_closed_up() -> None:
    features = features_of(texts(), torch.arange(3))
    assert isinstance(features, Places)
    assert features.counts.tolist() == [3, 1, 0]
    assert not features.gradients
    kept = torch.tensor([[False, True, True], [False, True, True], [True, True, True]])
    ids, mask = features.masked(torch.arange(3), kept)
    assert ids.tolist() == [[7, 2, 3, 0], [7, 0, 0, 0], [7, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    filled, whole = features.shifted().masked(torch.arange(3), kept)
    assert filled.tolist() == [[7, 7, 2, 3], [7, 7, 0, 0], [7, 0, 0, 0]]  # 7 is the commonest
    assert torch.equal(whole, texts().tensors[MASK])


def test_tokens_are_explained_by_what_they_weigh() -> None:
    weights = torch.tensor([0.0, 1, -2, 3, 4, 0, 0, 9])

    def function(ids: Tensor, mask: Tensor) -> Tensor:
        return (weights[ids] * mask).sum(1, keepdim=True)

    features = features_of(texts(), torch.arange(3))
    assert features is not None
    masked = Masked(features, function, OneNumber(torch.zeros(3).long(), 1))
    for found in (kernel_shap(masked, 1), occlusion(masked)):
        assert found == pytest.approx(torch.tensor([[1.0, -2, 3], [4, 0, 0], [0, 0, 0]]).double(), abs=1e-4)


def test_whole_numbers_have_the_commonest_in_their_place_and_long_rows_are_taken_in_runs() -> None:
    codes, waves = torch.tensor([[3], [3], [5]]), torch.randn(3, 1, 640)
    features = features_of(Rows({"codes": codes, "waves": waves}), torch.arange(3))
    assert isinstance(features, Numbers)
    assert (features.most, features.gradients) == (64, False)
    codes, empty = features.masked(torch.arange(3), torch.zeros(3, 64, dtype=torch.bool))
    assert codes.tolist() == [[3], [3], [3]]
    assert empty == pytest.approx(waves.mean(0, keepdim=True).expand(3, 1, 640), abs=1e-6)


def test_one_example_alone_has_no_mean_to_be_compared_with() -> None:
    masked = table(linear, ROWS[:1])
    assert occlusion(masked) == pytest.approx((SLOPES * ROWS[:1]).double(), abs=1e-5)


def test_what_is_explained_follows_from_the_target() -> None:
    outputs = torch.tensor([[1.0, 3.0], [2.0, 0.0]])
    answer = answer_of(outputs, CLASSES, True)
    assert isinstance(answer, OneClass)
    scores = answer.scores(outputs + 5, torch.tensor([0, 1]))
    assert scores == pytest.approx(outputs.log_softmax(1)[[0, 1], [1, 0]])  # a constant changes nothing
    assert answer.level(scores) == pytest.approx(outputs.softmax(1)[[0, 1], [1, 0]])
    assert isinstance(answer_of(outputs, Labels(names=("a", "b")), True), OneLabel)
    direction = answer_of(outputs, CLASSES, False)
    assert isinstance(direction, Direction)
    assert direction.scores(outputs.double(), torch.tensor([0, 1])) == pytest.approx(
        outputs.norm(dim=1).double()
    )
    assert answer_of(outputs, Tokens(vocabulary=2), True) is None
    with pytest.raises(DecantError, match="answers 3 numbers for each example and its teacher 2"):
        answer.scores(torch.zeros(1, 3), torch.tensor([0]))
    with pytest.raises(DecantError, match="The teacher answers NaN or infinity"):
        answer_of(outputs / 0, CLASSES, True)


def test_a_network_that_answers_nan_is_refused() -> None:
    with pytest.raises(DecantError, match="NaN or infinity to examples of which features are removed"):
        occlusion(table(lambda x: linear(x) / 0))


def permuted(network: nn.Sequential) -> nn.Sequential:
    """Return another network: its weights in another order."""
    generator = torch.Generator().manual_seed(9)
    other = build(Resnet(widths=(8, 16), blocks=(0, 1), pool=2), (1, 10, 10), 4, 0)
    for weight, own in zip(other.parameters(), network.parameters(), strict=True):
        weight.data = own.data.flatten()[torch.randperm(own.numel(), generator=generator)].reshape(own.shape)
    return other.eval()  # type: ignore[return-value]


def test_a_permuted_network_has_other_reasons_and_the_same_network_the_same() -> None:
    generator = torch.Generator().manual_seed(4)
    network = build(Resnet(widths=(8, 16), blocks=(0, 1), pool=2), (1, 10, 10), 4, 0).eval()
    images = torch.randint(0, 256, (24, 1, 10, 10), generator=generator).to(torch.uint8)
    features = Patches.of(images, torch.arange(24))
    with torch.no_grad():
        answer = OneClass.of(network(features.images))
    found, again, other = (
        lime(Masked(features, each, answer), 1) for each in (network, network, permuted(network))
    )
    assert torch.equal(found, again)
    assert spearman(found, again, features.counts).tolist() == pytest.approx([1.0] * 24)
    assert abs(spearman(found, other, features.counts).mean().item()) < 0.25
    constant = occlusion(Masked(features, lambda x: torch.ones(len(x), 4), answer))
    assert not constant.any()
    assert spearman(found, constant, features.counts).tolist() == [0.0] * 24


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
def test_tools_that_hook_into_modules_see_every_rectifier_once() -> None:
    """Case 44: by DeepLift's rescale rule attributions add up only where each rectifier is a module."""
    from captum.attr import DeepLift

    network = build(Resnet(widths=(8, 16), blocks=(0, 1), pool=2), (1, 8, 8), 4, 0).eval()
    calls = dict.fromkeys((each for each in network.modules() if isinstance(each, nn.ReLU)), 0)
    for each in calls:
        each.register_forward_hook(lambda layer, *_: calls.update({layer: calls[layer] + 1}))
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = (network(images) - network(torch.zeros_like(images)))[:, 0]
    assert list(calls.values()) == [2, 2, 2]
    found = DeepLift(network).attribute(images.requires_grad_(), torch.zeros_like(images), target=0)
    assert found.detach().flatten(1).sum(1) == pytest.approx(wanted.detach(), abs=1e-5)
