"""The record of each network of the zoo: facts found by hand, torch's own counter, and folding itself."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from decant.errors import DecantError
from decant.networks.calls import Kind, Record
from decant.networks.execution import predict, tensors_of
from decant.networks.record import give_example_, record_of
from decant.networks.structure import followers
from decant.networks.tracing import every_layer_called
from tests.zoo import ZOO, Foreign, network

LETTERS = {
    "c": Kind.CONVOLUTION,
    "t": Kind.TRANSPOSED,
    "l": Kind.LINEAR,
    "r": Kind.RECURRENT,
    "e": Kind.EMBEDDING,
}
SAME, OTHER = 1e-12, 1e-4
"""By which share of the largest, outputs may move where a pair may be folded, and do at least where not."""

every_network = pytest.mark.parametrize("name", ZOO)


def known(name: str) -> tuple[nn.Module, Foreign, Record]:
    module, facts = network(name), ZOO[name]
    give_example_(module, facts.example())
    return module, facts, record_of(module)


def told(record: Record) -> list[str]:
    """Return the calls of a record as the zoo writes them; two sides that are computed are left out."""
    letters = {kind: letter for letter, kind in LETTERS.items()}
    return [
        f"{letters[call.kind]}:{call.weight.removesuffix('.weight')}" if call.weight else f"~:{call.layer}"
        for call in record.calls
        if call.kind is not None
    ]


@every_network
def test_calls_their_order_and_kinds(name: str) -> None:
    _, facts, record = known(name)
    assert told(record) == facts.calls.split()
    first = list(dict.fromkeys(call for call in facts.calls.split() if call[0] != "~"))
    assert [weight.removesuffix(".weight") for weight in record.weights] == list(
        dict.fromkeys(call[2:] for call in first)
    )
    uses = {call.weight: sum(one.weight == call.weight for one in record.calls) for call in record.calls}
    assert all(weight.calls == uses[each] for each, weight in record.weights.items())
    assert any(call.kind is None for call in record.calls) == facts.attends
    assert record.rows == 2


@every_network
def test_multiplications(name: str) -> None:
    module, facts, record = known(name)
    assert record.macs == facts.macs
    assert 2 * record.macs == counted(module, facts.example())
    assert sum(call.macs for call in record.calls) == 2 * record.macs


def counted(module: nn.Module, example: tuple[Any, ...]) -> int:
    """Return half of the operations that torch counts, with recurrences and attention taken apart."""
    module.requires_grad_(False)  # torch's counter follows gradients, and there are none
    apart = (sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False), every_layer_called())
    with torch.no_grad(), apart[0], apart[1], apart[2], FlopCounterMode(display=False) as counter:
        module(*example)
    return counter.get_total_flops() // 2


@every_network
def test_names_of_one_tensor_and_what_nothing_reads(name: str) -> None:
    module, facts, record = known(name)
    shared = [weight.names for weight in record.weights.values() if len(weight.names) > 1]
    assert shared == ([facts.tied] if facts.tied else [])
    assert list(record.unused) == facts.unused.split()
    for weight in record.weights.values():
        if weight.layer:
            assert module.get_submodule(weight.layer).weight is module.get_parameter(weight.name)
        else:
            assert weight.why


# --- folding, done naively


def neighbours(module: nn.Module, example: tuple[Any, ...]) -> list[tuple[str, str]]:
    """Return each layer and batch norm of which one receives the very tensor that the other gave."""
    given: dict[int, tuple[str, Tensor]] = {}
    found: dict[tuple[str, str], None] = {}

    def seen(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        giver = given.get(id(inputs[0])) if inputs else None
        if giver and isinstance(layer, nn.modules.batchnorm._BatchNorm):
            found[giver[0], name] = None
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd | nn.PReLU):
            given[id(output)] = name, output

    for name, each in module.named_modules():
        each.register_forward_hook(lambda layer, inputs, output, name=name: seen(name, layer, inputs, output))
    with torch.no_grad():
        module(*example)
    return [pair for pair in found if hasattr(module.get_submodule(pair[0]), "bias")]


def fold_(module: nn.Module, layer: str, after: str) -> None:
    """Put a batch norm into a layer channel by channel, whether that is right or not."""
    giver: Any = module.get_submodule(layer)
    norm: Any = module.get_submodule(after)
    if giver.bias is None:
        giver.bias = nn.Parameter(torch.zeros_like(norm.running_mean))
    transposed = isinstance(giver, nn.modules.conv._ConvTransposeNd)
    with torch.no_grad():
        for channel in range(norm.num_features):
            factor = norm.weight[channel] / torch.sqrt(norm.running_var[channel] + norm.eps)
            if transposed:
                wide = giver.weight.shape[1]
                block = len(giver.weight) // giver.groups
                group, place = divmod(channel, wide)
                giver.weight[group * block : (group + 1) * block, place] *= factor
            else:
                giver.weight[channel] *= factor
            giver.bias[channel] = (giver.bias[channel] - norm.running_mean[channel]) * factor
            giver.bias[channel] += norm.bias[channel]
    parent, _, own = after.rpartition(".")
    setattr(module.get_submodule(parent), own, nn.Identity())


@contextmanager
def exact() -> Iterator[None]:
    """Make fractions float64."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def moved(name: str, *pairs: tuple[str, str]) -> float:
    """Return by which share of the largest the outputs move, in float64, once these pairs are folded."""
    with exact(), torch.no_grad():
        before, after = (network(name).double() for _ in range(2))
        for pair in pairs:
            fold_(after, *pair)
        example = ZOO[name].example()
        answers = [list(tensors_of(each(*example))) for each in (before, after)]
    gaps = [(one - other).abs().max() / one.abs().max() for one, other in zip(*answers, strict=True)]
    return max(gap.item() for gap in gaps)


@every_network
def test_a_pair_is_in_the_record_exactly_where_folding_it_changes_nothing(name: str) -> None:
    module, facts, record = known(name)
    assert {name: norm for name, (norm, _) in followers(module).items()} == record.folds
    found = {weight.removesuffix(".weight"): norm for weight, norm in record.folds.items()}
    assert found == facts.pairs
    assert list(found) == [call[2:] for call in dict.fromkeys(facts.calls.split()) if call[2:] in found]
    if found:
        assert moved(name, *found.items()) < SAME
    for pair in neighbours(network(name), facts.example()):
        if found.get(pair[0]) != pair[1]:
            assert moved(name, pair) > OTHER
    norms = {
        name for name, each in module.named_modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)
    }
    assert record.unfolded.keys() == norms - {*found.values()}


def test_types_of_what_comes_in_and_out_and_what_is_added_to_what() -> None:
    _, _, record = known("residual")
    assert record.sums == ((("conv2.weight",), ("shortcut.0.weight",)),)  # each by way of its batch norm
    _, _, record = known("decoder")
    assert [(call.takes, call.gives) for call in record.calls[:2]] == [
        ("int64", "float32"),
        ("float32", "float32"),
    ]
    assert record.sums[0] == (("words.weight",), ("attention.out.weight",))
    _, _, record = known("forecast")
    assert record.sums == (((), ("fc.weight",)),)  # the last value that came in
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).to(torch.bfloat16)
    give_example_(module, (torch.randn(2, 3),))
    assert {(call.takes, call.gives) for call in record_of(module).calls} == {("bfloat16", "bfloat16")}


@pytest.mark.slow
def test_twenty_million_weights_are_recorded_in_two_seconds() -> None:
    layer = nn.TransformerEncoderLayer(512, 8, 2048, batch_first=True)
    module = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False).eval()
    assert sum(each.numel() for each in module.parameters()) > 18e6
    give_example_(module, (torch.randn(2, 32, 512),))
    before = time.process_time()
    record = record_of(module)
    assert time.process_time() - before < 2
    assert record_of(module) is record  # and never again


def test_the_record_leaves_the_network_as_it_was() -> None:
    for name in ("residual", "odd_buffers", "decoder", "causal"):
        module, untouched = network(name).train(), network(name)
        give_example_(module, ZOO[name].example())
        record_of(module)
        assert all(each.training for each in module.modules())
        assert all(not each._forward_hooks and not each._forward_pre_hooks for each in module.modules())
        for (left, one), (right, other) in zip(
            module.state_dict().items(), untouched.state_dict().items(), strict=True
        ):
            assert left == right
            assert torch.equal(one, other)


def test_pictures_in_fractions_are_refused_and_not_taken_for_black_ones() -> None:
    pictures = torch.rand(2, 1, 4, 4)
    with pytest.raises(
        DecantError, match=r"Pictures are float32, expected uint8 in \[0, 255\]; give `\(255 "
    ):
        predict(nn.Flatten(), pictures)
    whole = (255 * pictures).round().to(torch.uint8)
    assert predict(nn.Flatten(), whole) == pytest.approx(pictures.flatten(1), abs=0.5 / 255 + 1e-6)
