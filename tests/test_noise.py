"""What chance explains of a drop of accuracy: false alarms, certain losses, however errors go together."""

import math
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decant.evidence.significance import wilson_interval
from flows.noise import (
    ALARMS,
    MetricValues,
    at_least,
    first_real_drop,
    images,
    lowest_share,
    reach,
    reach_of_chance,
    reach_of_means,
    unpaired_reach,
)
from tasks.evaluate.accuracy import mean_interval


def row(right: int, count: int, agreeing: int = 0) -> MetricValues:
    """Return the numbers that decide, of a model with so many right answers, as `evaluate` writes them."""
    low, high = wilson_interval(right / count, count)
    shares = {"accuracy": right / count, "accuracy_low": low, "accuracy_high": high}
    return {key: float(f"{value:.6g}") for key, value in (shares | {"agreement": agreeing / count}).items()}


def is_real(old: MetricValues, new: MetricValues, teacher: bool = False) -> bool:
    """Say whether a drop is called more than noise."""
    both = {"teacher": row(1, 1)} if teacher else {}
    reach = reach_of_chance("m", {"m": old} | both, {"m": new} | both)
    return old["accuracy"] - new["accuracy"] > reach


@cache
def alarm(right: int, right_new: int, count: int) -> bool:
    return right_new < right and is_real(row(right, count), row(right_new, count))


def exact(lost: int, gained: int) -> float:
    """McNemar's exact test, one-sided, by counting."""
    count = lost + gained
    return sum(math.comb(count, k) for k in range(lost, count + 1)) / 2**count


@pytest.mark.parametrize("count", [5, 10, 17])
def test_a_drop_is_real_where_it_is_for_every_pair_of_models_with_these_numbers(count: int) -> None:
    """So a loss that is certain is never called noise, and one that is not never a regression."""
    for old, new in product(range(count + 1), repeat=2):
        if new < old:
            pairs = [(old - both, new - both) for both in range(max(0, old + new - count), new + 1)]
            assert alarm(old, new, count) == all(exact(*pair) <= ALARMS for pair in pairs), (old, new)


def chances(both: float, one: float, count: int) -> np.ndarray:
    """Return the probability [count + 1, count + 1] of so many right answers of two models.

    Args:
        both: Probability that both are right on an image.
        one: Probability that only the first is right, and that only the second one is.
        count: Images, each drawn by itself.
    """
    found = np.zeros((count + 1, count + 1))
    found[0, 0] = 1
    for _ in range(count):
        more = (1 - both - 2 * one) * found
        more[1:, 1:] += both * found[:-1, :-1]
        more[1:, :] += one * found[:-1, :]
        more[:, 1:] += one * found[:, :-1]
        found = more
    return found


def false_alarms(count: int) -> dict[str, float]:
    """Return the largest probability of an alarm for equally good models, by how their errors go together.

    Enumerated, not drawn: every outcome with its probability, for accuracies from 5 to 95 %.
    """
    told = np.array([[alarm(old, new, count) for new in range(count + 1)] for old in range(count + 1)])
    worst = dict.fromkeys(("together", "independently", "never together"), 0.0)
    for share in np.arange(0.05, 0.96, 0.05):
        apart = min(share, 1 - share)  # as many images as there can be that one of the two gets right
        one_right = {"together": apart / 4, "independently": share * (1 - share), "never together": apart}
        for how, one in one_right.items():
            worst[how] = max(worst[how], float((chances(share - one, one, count) * told).sum()))
    return worst


@pytest.mark.parametrize("count", [30, 60])
def test_equally_good_models_are_told_apart_in_at_most_one_choice_of_forty(count: int) -> None:
    worst = false_alarms(count)
    assert max(worst.values()) <= ALARMS, worst
    assert worst["never together"] > ALARMS / 3, "the bound would be too wide to be of use"


@pytest.mark.parametrize("together", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("count", "share"), [(2000, 0.6), (10_000, 0.93)])
def test_so_it_is_with_thousands_of_images(count: int, share: float, together: float) -> None:
    draws, one = 20_000, (1 - share) * (1 - 0.9 * together)
    cells = [share - one, one, one, 1 - share - one]
    both, first, second, _ = np.random.default_rng(0).multinomial(count, np.maximum(cells, 0), draws).T
    seen, times = np.unique(np.stack([both + first, both + second]), axis=1, return_counts=True)
    alarms = sum(int(n) for old, new, n in zip(*seen.tolist(), times, strict=True) if alarm(old, new, count))
    assert alarms / draws <= ALARMS + 3 * math.sqrt(ALARMS / draws)


@pytest.mark.parametrize("exclusive", [False, True])
def test_so_it_is_for_two_models_of_one_teacher(exclusive: bool) -> None:
    """Each model answers otherwise than the teacher on some images, and is as often better there as worse."""
    count, draws, changed = 1000, 4000, 0.02
    generator = np.random.default_rng(1)
    chance = generator.random((draws, count), dtype=np.float32)
    other = 1 - chance if exclusive else generator.random((draws, count), dtype=np.float32)
    gains = [np.where(drawn < changed, np.where(drawn < changed / 2, 1, -1), 0) for drawn in (chance, other)]
    right, agreeing = (
        [900 + gain.sum(1) for gain in gains],
        [(gain == 0).sum(1) for gain in gains],
    )
    alarms = 0
    for old, new, same, same_new in zip(*right, *agreeing, strict=True):
        if new < old:
            alarms += is_real(row(old, count, same), row(new, count, same_new), teacher=True)
    assert draws * ALARMS / 10 < alarms <= draws * ALARMS


@pytest.mark.parametrize(("lost", "real"), [(3, False), (5, False), (6, True), (40, True)])
@pytest.mark.parametrize("count", [500, 10_000, 70_000])
def test_six_answers_that_all_got_worse_are_more_than_chance(count: int, lost: int, real: bool) -> None:
    """Each is a fair coin, and 1 / 2^6 is the first below 2.5 %."""
    right = round(0.93 * count)
    old, new = row(right, count, count), row(right - lost, count, count - lost)
    assert is_real(old, new, teacher=True) == real
    assert is_real(row(count, count), row(count - lost, count)) == real  # there was nothing to gain
    assert lost > 6 or not is_real(old, new)


def test_more_than_can_have_changed_was_not_measured_on_the_same_images() -> None:
    old, new = row(9300, 10_000, 10_000), row(9260, 10_000, 10_000)
    assert not is_real(old, new, teacher=True)


def test_another_number_of_images_has_another_bound() -> None:
    old, new = row(930, 1000), row(1820, 2000)
    assert reach_of_chance("m", {"m": old}, {"m": new}) == unpaired_reach(old, new)
    assert is_real(row(930, 1000), row(1600, 2000))
    assert not is_real(old, new)


def test_the_exact_interval_is_a_quantile() -> None:
    """The ends of Clopper and Pearson are quantiles of the beta distribution."""
    from scipy.stats import beta

    for hits, count in [(10, 100), (1, 5), (93, 100), (9300, 10_000), (50, 50)]:
        expected = beta.ppf(ALARMS / 2, hits, count - hits + 1)
        assert lowest_share(hits / count + 1e-9, count) == pytest.approx(expected, rel=1e-6)
    assert lowest_share(0.0, 10) == 0


@given(differing=st.integers(1, 300))
def test_the_first_real_drop_is_the_first(differing: int) -> None:
    found = first_real_drop(differing)

    def probability(drop: int) -> float:
        count = differing - (differing - drop) % 2
        return exact((count + drop) // 2, (count - drop) // 2)

    assert found > differing or probability(found) <= ALARMS
    assert found == 1 or probability(found - 1) > ALARMS


@given(trials=st.integers(0, 60), more=st.integers(0, 31))
def test_a_probability_is_a_sum_over_outcomes(trials: int, more: int) -> None:
    hits = (trials + 1) // 2 + more
    counted = sum(math.comb(trials, k) for k in range(hits, trials + 1)) / 2**trials
    assert at_least(hits, trials, 0.5) == pytest.approx(counted, rel=1e-9)


@given(count=st.sampled_from([1, 2, 20, 2000, 10_000, 10**6, 10**8]), share=st.floats(0, 1))
def test_the_number_of_images_is_one_that_the_written_interval_allows(count: int, share: float) -> None:
    least, most = images(row(round(share * count), count))
    assert least <= count <= most


def test_the_number_of_images_is_exact_where_there_are_few() -> None:
    assert all(images(row(right, 900)) == (900, 900) for right in range(901))


# Means with intervals


def means(values: np.ndarray) -> dict[str, float]:
    """Return the numbers of a model with these cosines, as `evaluate` writes them."""
    mean, low, high = mean_interval(torch.from_numpy(values))
    numbers = {"cosine": mean, "cosine_low": low, "cosine_high": min(high, 1.0)}
    return {key: float(f"{value:.6g}") for key, value in numbers.items()}


def test_the_reach_of_means_is_the_sum_of_both_half_widths() -> None:
    old = {"cosine": 0.98, "cosine_low": 0.97, "cosine_high": 0.99}
    new = {"cosine": 0.99, "cosine_low": 0.96, "cosine_high": 1.0}  # cut at 1: it is 0.03 wide
    assert reach_of_means("cosine", old, new) == pytest.approx(0.04, abs=2e-5)
    assert reach("cosine", "m", {"m": old}, {"m": new}) == reach_of_means("cosine", old, new)
    assert reach("cosine_least", "m", {"m": old}, {"m": new}) is None
    assert reach("size_bytes", "m", {"m": old}, {"m": new}) is None
    assert reach("accuracy", "m", {"m": row(9, 10)}, {"m": row(8, 10)}) is not None


@pytest.mark.parametrize("together", [-1, 0, 1])
@pytest.mark.parametrize("count", [30, 300])
def test_equally_good_models_are_told_apart_in_at_most_one_of_forty_draws(together: int, count: int) -> None:
    """Whether rows that one model finds hard are easy for the other, or as hard, or neither."""
    generator, draws = np.random.default_rng(count), 2000
    alarms = 0
    for _ in range(draws):
        one, other = generator.standard_normal((2, count))
        second = other if together == 0 else together * one
        old, new = means(0.9 + 0.02 * one), means(0.9 + 0.03 * second)
        alarms += old["cosine"] - new["cosine"] > reach_of_means("cosine", old, new)
    assert alarms <= 1.3 * draws * ALARMS  # of 2,000 draws, 65 are two deviations above
    assert alarms > 0 or together >= 0
