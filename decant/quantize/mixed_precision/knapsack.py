"""One option for each layer, of the least summed cost within a limit: exact, in whole numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Options = Sequence[tuple[int, int]]
"""(cost, size) of each option of one layer."""

State = tuple[int, int, tuple[int, ...]]
"""Cost and size of a choice for the first layers, and the place of the option that each of them has."""


def cheapest(
    costs: Mapping[str, Mapping[int, float]], sizes: Mapping[str, Mapping[int, int]], limit: int
) -> dict[str, int]:
    """Return one option for each layer: the costs sum to the least, the sizes to no more than the limit.

    This is the multiple-choice knapsack problem. Layer by layer, a choice for the layers so far is dropped
    where another one is no dearer and no larger, and where even its best completion, by the Lagrangian bound,
    is dearer than a choice that is known; what is left at the end is the best of all. Costs are compared as
    the exact fractions that floats are: a solver of linear programmes stops within a tolerance of about 1e-6,
    and that is more than a layer costs at 8 bits.

    Args:
        costs: By layer and option, finite; they need not fall with size.
        sizes: Of the same layers and options.
        limit: The most that the sizes may sum to.

    Returns:
        One option by layer. Among equal costs the smallest size; among equal sizes too, that whose first
        layer that differs has the option that `costs` names first.

    Raises:
        ValueError: Even the smallest options are larger than the limit.

    References:
        Nemhauser and Ullmann, Discrete Dynamic Programming and Capital Allocation, 1969, Management
        Science 15.
        Shoham and Gersho, Efficient Bit Allocation for an Arbitrary Set of Quantizers, 1988, IEEE
        Transactions on Acoustics, Speech, and Signal Processing 36 (the price of the bound).
    """
    # The denominators of floats are powers of two: the largest is a multiple of all.
    unit = max((cost.as_integer_ratio()[1] for row in costs.values() for cost in row.values()), default=1)
    layers = [
        [(_times(cost, unit), sizes[name][option]) for option, cost in row.items()]
        for name, row in costs.items()
    ]
    if (least := sum(min(size for _, size in options) for options in layers)) > limit:
        raise ValueError(f"The smallest options sum to {least}, and {limit} is allowed")
    _, _, places = _solved(layers, limit)
    return {name: [*row][place] for (name, row), place in zip(costs.items(), places, strict=True)}


def _times(cost: float, unit: int) -> int:
    numerator, denominator = cost.as_integer_ratio()
    return numerator * (unit // denominator)


def _solved(layers: Sequence[Options], limit: int) -> State:
    price = _price(layers, limit)
    known = sum(cost for cost, _ in _at(layers, price))
    # What the layers from here on weigh at least, and cost at least when each unit of size has its price.
    smallest = _from_the_end([min(size for _, size in options) for options in layers])
    bound = _from_the_end([min(cost + price * size for cost, size in options) for options in layers])
    states: list[State] = [(0, 0, ())]
    for index, options in enumerate(layers, start=1):
        states = _undominated(
            [
                (cost, size, (*places, place))
                for before, taken, places in states
                for place, (more, weight) in enumerate(options)
                if (size := taken + weight) + smallest[index] <= limit
                if (cost := before + more) + price * (size - limit) + bound[index] <= known
            ]
        )
    return states[0]


def _undominated(states: list[State]) -> list[State]:
    """Return those that no other one equals or betters in both cost and size, cheapest first."""
    kept: list[State] = []
    for state in sorted(states):
        if not kept or state[1] < kept[-1][1]:
            kept.append(state)
    return kept


def _price(layers: Sequence[Options], limit: int) -> int:
    """Return the least whole price of a unit of size at which what layers then take fits the limit."""
    costs = [cost for options in layers for cost, _ in options]
    # At one more than costs can differ by, each layer takes its smallest option.
    low, high = -1, max(costs, default=0) - min(costs, default=0) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if sum(size for _, size in _at(layers, middle)) <= limit:
            high = middle
        else:
            low = middle
    return high


def _at(layers: Sequence[Options], price: int) -> list[tuple[int, int]]:
    """Return what each layer takes when a unit of size has this price; the smaller one among equals."""
    return [min(options, key=lambda option: (option[0] + price * option[1], option[1])) for options in layers]


def _from_the_end(numbers: Sequence[int]) -> list[int]:
    """Return the sum of all numbers from each place on, and 0 for the end."""
    sums = [0]
    for number in reversed(numbers):
        sums.append(sums[-1] + number)
    return sums[::-1]
