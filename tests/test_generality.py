"""Every network of the zoo under every operation: right, or refused with a sentence, and nothing else."""

from itertools import product

import pytest

from benchmarks.kept import named
from tests.conformance import OPERATIONS, STEPS, Outcome, Verdict, check_pair, outcome, pairs
from tests.zoo import ZOO

SAMPLE = {
    "save and load": ("odd_buffers", "renewed"),
    "costs": ("encoder", "tagger"),
    "fold": ("preactivated", "siamese"),
    "equalize": ("residual",),
    "magnitude": ("decoder", "causal"),
    "OBS": ("encoder", "grouped"),
    "channels": ("dense", "sound"),
    "clip": ("cells",),
    "int8": ("functional",),
    "int8 static": ("pooled", "keywords"),
    "int8 dynamic": ("decoder",),
    "int4 GPTQ": ("bag", "reshaped"),
    "fine-tune": ("odd_buffers",),
    "export int8 dynamic": ("named_inputs",),
}
"""Each operation on networks that are hard for it."""

NETWORKS = list(ZOO)
CHAINS = [(NETWORKS[index % len(NETWORKS)], *steps) for index, steps in enumerate(product(STEPS, STEPS))]
"""Each two steps once, and each network."""


def hold(found: Outcome) -> None:
    assert found.verdict in (Verdict.WORKS, Verdict.REFUSED), found.words
    if found.verdict is Verdict.REFUSED:
        assert len(found.words.split()) > 5
        assert "\n" not in found.words


@pytest.mark.parametrize(
    ("operation", "network"),
    [(operation, network) for operation, networks in SAMPLE.items() for network in networks],
    ids=lambda each: each.replace(" ", "-"),
)
def test_a_sample(operation: str, network: str) -> None:
    found = outcome(OPERATIONS[operation], network)
    assert found.verdict is Verdict.WORKS, found.words


@pytest.mark.slow
@pytest.mark.parametrize("network", ZOO)
def test_every_operation(network: str) -> None:
    for operation in OPERATIONS:
        hold(outcome(OPERATIONS[operation], network))


@pytest.mark.slow
@pytest.mark.parametrize(("network", "first", "second"), CHAINS)
def test_two_operations_in_a_row(network: str, first: str, second: str) -> None:
    hold(outcome(check_pair, network, first, second))


def test_pairs_cover_each_two_operations_on_every_network() -> None:
    every = pairs()
    assert {(first, second) for _, first, second in every} == set(product(STEPS, STEPS))
    assert {(name, first) for name, first, _ in every} == set(product(ZOO, STEPS))
    assert {(name, second) for name, _, second in every} == set(product(ZOO, STEPS))


def test_a_network_that_there_is_not_is_tried_by_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        named(ZOO, "", ["encoder", "skps"])
    assert "there is no 'skps'; did you mean 'skips'?" in capsys.readouterr().err
    assert named(ZOO, "", ["skips"]) == ["skips"] and named(ZOO, "", []) == NETWORKS
