"""The ONNX files of other people's networks: what runs in integers, what lies in the file, names."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from decant.calibration.grids import affine_grid
from decant.checkpoints.activations import DynamicGrid, Grid
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import Constraints
from decant.errors import DecantError
from decant.examples import Rows
from decant.export.deploy import Deployed, check_same, deploy
from decant.export.kernels import Form
from decant.export.runtime import open_session, run
from decant.inputs import TensorInput
from decant.lowering.integers import risky, settled
from decant.networks.execution import tensors_of
from decant.networks.record import give_example_, record_of
from decant.networks.structure import observable
from decant.networks.tracing import every_layer_called
from decant.quantize.quantizable import quantizable
from decant.quantize.schemes import Integer
from tests.test_export import kernels

WORDS, WIDTH, LENGTH = 300, 64, 5


class Encoder(nn.Module):
    """Words, one layer of attention and two linear ones on each, and a mean; the head is registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 32)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH, bias=at < 2) for at in range(3))
        self.norm = nn.LayerNorm(WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids)
        shares = self.query(x) @ self.key(x).mT / WIDTH**0.5 + (mask[:, None].float() - 1) * 1e9
        x = self.norm(x + shares.softmax(-1) @ self.value(x))
        x = x + self.narrow(nn.functional.gelu(self.wide(x)))
        held = mask[..., None].float()
        mean: Tensor = self.head((x * held).sum(1) / held.sum(1))
        return mean


INPUTS = {
    "ids": TensorInput(shape=("length",), dtype="int64", below=WORDS),
    "mask": TensorInput(shape=("length",), dtype="int64", at_least=1),
}
LINEAR = {"query", "key", "value", "wide", "narrow", "head"}


def sentences(rows: int, length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + length)
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[1:, length - 2 :] = 0
    return torch.randint(0, WORDS, (rows, length), generator=generator), mask


def encoder() -> Checkpoint:
    torch.manual_seed(0)
    module = Encoder().eval()
    give_example_(module, sentences(2, LENGTH))
    return Checkpoint(None, INPUTS, (), module)


@functools.cache
def size_in_floats() -> int:
    """Return the bytes of the encoder's file with nothing rounded."""
    return len(deploy(encoder()).content)


def answered(module: nn.Module, *arguments: Any) -> list[Tensor]:
    with torch.no_grad(), every_layer_called():
        return list(tensors_of(module(*copy.deepcopy(arguments))))


def ran(made: Deployed, *arguments: Tensor) -> list[Tensor]:
    session = open_session(made.content, 1)
    feed = {each.name: t.numpy() for each, t in zip(session.get_inputs(), arguments, strict=True)}
    return [torch.from_numpy(each) for each in session.run(None, feed)]


def ranges(model: Checkpoint, bits: int, *arguments: Any) -> dict[str, Grid]:
    """Return a grid for the inputs of each linear layer and convolution."""
    weights, seen = record_of(model.module).weights, dict[str, tuple[float, float]]()
    module = copy.deepcopy(model.module)
    for name in (weights[each].layer for each in observable(module)):
        module.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: seen.update({name: (given[0].min().item(), given[0].max().item())})
        )
    answered(module, *arguments)
    return {name: affine_grid(*ends, bits) for name, ends in seen.items()}


def rounded_to(
    model: Checkpoint, scheme: Integer, grids: Mapping[str, Grid] | None = None, mask: float = 0.0
) -> Checkpoint:
    held = {}
    for name, (weight, axis) in quantizable(model.module).items():
        kept = weight.abs() >= weight.abs().quantile(mask) if mask and weight.dim() == 2 else None
        held[name] = Constraints(levels=scheme.levels(weight.detach(), kept, axis), mask=kept)
    return settled(model.narrowed(held, grids))


def close(found: list[Tensor], wanted: list[Tensor], share: float) -> None:
    assert [each.shape for each in found] == [each.shape for each in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() <= share * other.abs().max()


@pytest.mark.parametrize(
    "inputs", [pytest.param("static", marks=pytest.mark.slow), "dynamic", "rows", "float"]
)
def test_linear_layers_on_tokens_run_as_those_on_rows_do(inputs: str, tmp_path: Path) -> None:
    model = encoder()
    static = ranges(model, 8, *sentences(2, LENGTH))
    kinds: dict[str, Mapping[str, Grid]] = {
        "static": static,
        "dynamic": dict.fromkeys(static, DynamicGrid(8)),
        "rows": dict.fromkeys(static, DynamicGrid(8, rows=True)),
    }
    grids = kinds.get(inputs, {})
    scheme = Integer(bits=4, group=32) if inputs == "float" else Integer(bits=7)
    small = rounded_to(model, scheme, grids)
    made = deploy(small)
    form = {"static": Form.INTEGERS, "float": Form.PACKED}.get(inputs, Form.BATCH)
    assert {layer: made.forms[layer] for layer in LINEAR} == dict.fromkeys(LINEAR, form)
    found = kernels(made.content, tmp_path)
    assert found["MatMul"] + found["Gemm"] + found["FusedMatMul"] == 2  # attention's products alone
    if inputs == "dynamic":
        # What three layers read is rounded once.
        assert found["DynamicQuantizeLinear"] + found["DynamicQuantizeMatMul"] == 4
    if inputs == "rows":
        assert (found["QuantizeLinear"], found["MatMulIntegerToFloat"]) == (4, 6)
    assert len(made.content) < (0.25 if inputs == "float" else 0.35) * size_in_floats()
    for rows, length in ((2, LENGTH), (1, 3), (7, 11)):
        given = sentences(rows, length)
        close(ran(made, *given), answered(small.module, *given), 1e-5 if inputs == "float" else 0.02)


class Listener(nn.Module):
    """A recurrence, attention of torch's own, and a table that also answers: weights of no called layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.steps = nn.LSTM(WIDTH, WIDTH, batch_first=True, bidirectional=True)
        self.mixed = nn.MultiheadAttention(2 * WIDTH, 4, batch_first=True)
        self.back = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        x = self.steps(self.words(ids))[0]
        x = self.back(self.mixed(x, x, x, need_weights=False)[0].mean(1))
        return {"vector": x, "scores": nn.functional.linear(x, self.words.weight)}


def listener() -> Checkpoint:
    torch.manual_seed(0)
    module = Listener().eval()
    give_example_(module, sentences(2, LENGTH)[:1])
    return Checkpoint(None, {"ids": INPUTS["ids"]}, (), module)


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "pruned", "share"), [(8, 0.0, 0.3), (4, 0.0, 0.18), (4, 0.8, 0.12)])
def test_weights_without_a_layer_lie_in_the_file_as_integers(bits: int, pruned: float, share: float) -> None:
    model = listener()
    small = rounded_to(model, Integer(bits=bits), mask=pruned)
    made, floats = deploy(small), deploy(model)
    assert len(made.content) < share * len(floats.content)
    assert set(floats.forms.values()) == {Form.FLOAT}
    session = open_session(made.content, 1)
    assert [each.name for each in session.get_inputs()] == ["ids"]
    assert [each.name for each in session.get_outputs()] == ["vector", "scores"]
    for rows, length in ((2, LENGTH), (1, 3), (7, 11)):
        ids = sentences(rows, length)[0]
        close(ran(made, ids), answered(small.module, ids), 1e-4)


@pytest.mark.parametrize("bits", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_tables_stay_integers_in_memory(bits: int, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 3)).eval()
    give_example_(module, sentences(2, LENGTH)[:1])
    small = rounded_to(Checkpoint(None, {"ids": INPUTS["ids"]}, (), module), Integer(bits=bits))
    made = deploy(small)
    kernels(made.content, tmp_path)
    opened = onnx.load(tmp_path / "optimized.onnx").graph.initializer
    assert max(len(each.raw_data) for each in opened) == WORDS * WIDTH  # a byte each
    ids = sentences(3, 4)[0]
    close(ran(made, ids), answered(small.module, ids), 1e-5)


class Pair(nn.Module):
    """Takes a picture and a dict, gives a tuple and names two of its outputs as its inputs are named."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.read = nn.Conv2d(3, 4, 3), nn.Linear(6, 4)

    def forward(self, picture: Tensor, more: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        seen = self.see(picture).mean((2, 3)) + self.read(more["facts"]) * more["share"]
        return seen, {"picture": seen * 2, "read": seen.argmax(1)}


def test_several_inputs_and_outputs_go_by_their_names() -> None:
    torch.manual_seed(0)
    module = Pair().eval()
    given = torch.rand(2, 3, 8, 8), {"facts": torch.rand(2, 6), "share": torch.rand(2, 1)}
    give_example_(module, given)
    made = deploy(Checkpoint(None, (3, 8, 8), (), module))
    session = open_session(made.content, 1)
    names = [each.name for each in session.get_inputs()]
    assert names == ["picture", "more_facts", "more_share"]
    assert len({*names, *(each.name for each in session.get_outputs())}) == 6
    tensors = given[0], given[1]["facts"], given[1]["share"]
    found, wanted = ran(made, *(torch.cat([t, t, t]) for t in tensors)), answered(module, *given)
    close([each[:2].float() for each in found], [each.float() for each in wanted], 1e-5)


class Backwards(nn.Module):
    """Batch norms registered in another order than they run, one behind a rectifier."""

    def __init__(self) -> None:
        super().__init__()
        self.norm3, self.norm2, self.norm1 = (nn.BatchNorm2d(4) for _ in range(3))
        self.third, self.second, self.first = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(1, 4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.norm1(self.first(inputs)).relu()
        x = self.norm2(self.second(x).relu())
        kept = self.third(x)
        return (self.norm3(kept) + kept).mean((2, 3))


def test_the_file_has_the_batch_norms_that_no_pass_proves_to_be_a_layers_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Backwards().eval()
    for norm in (module.norm1, module.norm2, module.norm3):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.weight, 0.2, 3.0)
    made = deploy(Checkpoint(None, (1, 10, 10), tuple("abcd"), module))  # type: ignore[arg-type]
    assert [node.op_type for node in made.model.graph.node].count("BatchNormalization") == 2
    pictures = torch.rand(5, 1, 10, 10)
    close(ran(made, pictures), answered(module, pictures), 1e-5)


def test_rounded_inputs_go_through_torchs_own_export_with_any_batch() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    model = Checkpoint(None, (1, 8, 8), tuple("abc"), module)  # type: ignore[arg-type]
    small = rounded_to(model, Integer(bits=8), ranges(model, 8, torch.rand(4, 1, 8, 8)))
    pictures = torch.rand(9, 1, 8, 8)
    with torch.no_grad():
        program = torch.export.export(
            small.module, (pictures[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)
        )
        assert np.allclose(program.module()(pictures), small.module(pictures), atol=1e-6)


class Odd(nn.Module):
    """A layer that runs twice, a bag of words, and a forward with a type of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.twice = nn.EmbeddingBag(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("shift", torch.linspace(0, 1, WIDTH, dtype=torch.float64))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.twice(self.words(ids)).relu()
        answer: Tensor = self.twice((x.double() + self.shift).float())
        return answer


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["static", "dynamic"])
def test_a_layer_that_runs_twice_runs_in_integers_twice(grid: str) -> None:
    torch.manual_seed(0)
    module = Odd().eval()
    ids = sentences(4, LENGTH)[0]
    give_example_(module, (ids,))
    model = Checkpoint(None, {"ids": TensorInput(shape=(LENGTH,), dtype="int64", below=WORDS)}, (), module)
    static = ranges(model, 8, ids)
    assert [*static] == ["twice"]
    small = rounded_to(model, Integer(bits=8), static if grid == "static" else {"twice": DynamicGrid(8)})
    made = deploy(small)
    assert made.forms["twice"] is (Form.INTEGERS if grid == "static" else Form.BATCH)
    assert [node.op_type for node in made.model.graph.node].count("MatMulInteger") == 2 * (grid == "dynamic")
    assert risky(small) == []
    rows = Rows({"ids": ids})
    check_same("odd", small, open_session(made.content, 1), rows)
    check_same("odd", model, open_session(deploy(model).content, 1), rows)  # float64 cannot tell


class Rank(nn.Module):
    """One layer on rows and on rows of rows, whose products the file has in two forms."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, outputs)

    def forward(self, series: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(series.mean(1)), self.layer(series * 2).mean(1)


@pytest.mark.parametrize("outputs", [pytest.param(WIDTH, marks=pytest.mark.slow), 5])
def test_a_layer_on_rows_and_on_rows_of_rows_lies_in_the_file_in_both_forms(outputs: int) -> None:
    torch.manual_seed(0)
    module, series = Rank(outputs).eval(), torch.randn(6, LENGTH, WIDTH)
    give_example_(module, (series[:2],))
    model = Checkpoint(None, {"series": TensorInput(shape=(LENGTH, WIDTH))}, (), module)
    grid = affine_grid(-8, 8, 8)
    for grids in ({"layer": grid}, {}):
        small = rounded_to(model, Integer(bits=8), grids)
        made = deploy(small)
        close(ran(made, series), answered(small.module, series), 0.02 if grids else 1e-5)


class Answering(nn.Module):
    """A table that is looked up, and multiplied by."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)

    def forward(self, ids: Tensor) -> Tensor:
        answer: Tensor = nn.functional.linear(self.words(ids).relu(), self.words.weight)
        return answer


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_table_that_also_answers_is_looked_up_and_multiplied_by_as_it_is(bits: int) -> None:
    """It is so small that packed words pay off for the look-up alone."""
    torch.manual_seed(0)
    module, ids = Answering().eval(), torch.randint(0, 11, (3, LENGTH))
    give_example_(module, (ids,))
    inputs = {"ids": TensorInput(shape=(LENGTH,), dtype="int64", below=11)}
    small = rounded_to(Checkpoint(None, inputs, (), module), Integer(bits=bits))
    close(ran(deploy(small), ids), answered(small.module, ids), 1e-5)


class Fixed(nn.Module):
    """What it does depends on a length that is said to be free."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, series: Tensor) -> Tensor:
        answer: Tensor = self.layer(series).sum(1)
        return answer * (1 if series.shape[1] == LENGTH else 2)


def test_a_length_that_the_network_writes_down_is_refused() -> None:
    inputs = {"series": TensorInput(shape=("length", 3), example=(LENGTH, 3))}
    model = Checkpoint(None, inputs, (), Fixed().eval())
    with pytest.raises(DecantError, match=r"exports a Fixed with the lengths .* something else, .*\[4, 3\]"):
        deploy(model)


class Answer(NamedTuple):
    classes: Tensor
    hidden: Tensor


class Normalized(nn.Module):
    """Its tensors are called as operators are."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.relu = nn.Linear(8, 3), nn.Parameter(torch.rand(8))
        self.register_buffer("mean", torch.rand(8), persistent=False)
        self.register_buffer("linear", torch.rand(3))

    def forward(self, *inputs: Tensor) -> Answer:
        x, other = inputs
        x = (x - x.mean(1, keepdim=True) + other - self.mean).relu() * self.relu
        return Answer(self.fc(x) * self.linear, x)


def test_tensors_called_as_operators_are_and_inputs_and_outputs_of_any_number() -> None:
    torch.manual_seed(0)
    module, rows = Normalized().eval(), torch.rand(2, 5, 8)
    give_example_(module, (rows[0, :2], rows[1, :2]))
    made = deploy(Checkpoint(None, (1, 1, 1), (), module))  # type: ignore[arg-type]
    assert {"relu", "mean", "linear", "fc.weight"} <= {each.name for each in made.model.graph.initializer}
    assert [each.name for each in made.model.graph.output] == ["classes", "hidden"]
    for found, expected in zip(run(open_session(made.content, 1), *rows), module(*rows), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


class Causal(nn.Module):
    """Torch's transformer with a mask of its own, which it would look at to see what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(4))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        answer: Tensor = self.inner(source, target, tgt_mask=self.mask)
        return answer


def test_a_transformer_with_a_mask_is_exported_with_it() -> None:
    torch.manual_seed(0)
    module, (source, target) = Causal().eval(), torch.rand(2, 3, 4, 8)
    give_example_(module, (source[:2], target[:2]))
    made = deploy(Checkpoint(None, (1, 1, 1), (), module))  # type: ignore[arg-type]
    session, later = open_session(made.content, 1), target.clone()
    later[:, -1] += 1
    (found,), (moved,) = (run(session, source, each) for each in (target, later))
    assert torch.allclose(found, module(source, target), atol=1e-5)
    assert torch.equal(found[:, :-1], moved[:, :-1])  # what comes later is not seen
    assert not torch.equal(found[:, -1], moved[:, -1])
