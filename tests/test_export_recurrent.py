"""Recurrent layers: ONNX's own operators for any length, and LSTMs with rounded inputs and states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decant.checkpoints.activations import DynamicGrid, RecurrentGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.files import load, save
from decant.errors import DecantError
from decant.examples import Examples, Rows, Splits
from decant.export.deploy import deploy
from decant.export.kernels import Form
from decant.inputs import TensorInput
from decant.lowering.integers import risky
from decant.networks.python import Python
from decant.networks.record import give_example_
from decant.networks.recurrence import stepped
from decant.quantize.mixed_precision.widths import bit_operations
from decant.quantize.operation import quantize
from decant.quantize.schemes import Integer
from tests.test_export import kernels
from tests.test_export_any_network import answered, close, ran, rounded_to

INPUTS, STATES, LENGTH = 6, 8, 5
LAYERS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}


class Series(nn.Module):
    """A recurrent layer that is called in one of its ways; all that it gives, rows first."""

    def __init__(self, kind: str, given: bool, **options: Any) -> None:
        super().__init__()
        self.steps, self.given = LAYERS[kind](INPUTS, STATES, **options), given

    def forward(self, series: Tensor) -> tuple[Tensor, ...]:
        x = series if self.steps.batch_first else series.transpose(0, 1)
        state = x.new_full((self.steps.num_layers * (1 + self.steps.bidirectional), len(series), STATES), 0.3)
        states: Any = (state, -state) if isinstance(self.steps, nn.LSTM) else state
        y, last = self.steps(x, states) if self.given else self.steps(x)
        ends = last if isinstance(last, tuple) else (last,)
        return y if self.steps.batch_first else y.transpose(0, 1), *(each.transpose(0, 1) for each in ends)


def network(module: nn.Module) -> Checkpoint:
    inputs = {"series": TensorInput(shape=("length", INPUTS), example=(LENGTH, INPUTS))}
    return Checkpoint(None, inputs, (), module.eval())


def series(rows: int, length: int) -> Tensor:
    return torch.randn(rows, length, INPUTS, generator=torch.Generator().manual_seed(rows + length))


OPTIONS = [
    ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}, True),
    *(
        pytest.param(
            kind,
            {"num_layers": count, "bidirectional": both, "batch_first": first, **more},
            given,
            marks=pytest.mark.slow,
        )
        for kind, more in (
            ("LSTM", {"bias": False}),
            ("GRU", {}),
            ("RNN", {"nonlinearity": "relu"}),
            ("RNN", {}),
        )
        for count, both, first, given in (
            (1, False, True, False),
            (2, False, False, True),
            (1, True, True, True),
            (2, True, False, False),
        )
    ),
]


@pytest.mark.parametrize(("kind", "options", "given"), OPTIONS)
def test_recurrent_layers_are_onnxs_own_for_any_length(
    kind: str, options: dict[str, Any], given: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = Series(kind, given, **options)
    made = deploy(network(module))
    found = kernels(made.content, tmp_path)
    assert found[kind] == options["num_layers"]
    assert found["Gather"] == found["Pad"] == 0  # weights are put in order once, when the file is opened
    for rows, length in ((2, LENGTH), (1, 1), (7, 11)):
        given_rows = series(rows, length)
        close(ran(made, given_rows), answered(module, given_rows), 1e-5)


class First(nn.Module):
    """The first of what a layer gives, and of that the last step."""

    def forward(self, given: tuple[Tensor, ...]) -> Tensor:
        return given[0][:, -1]


class Twice(nn.Module):
    """A layer that runs twice, once backwards, with states by name; and one that shares a weight with it."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.tied = (nn.LSTM(INPUTS, INPUTS, dropout=0.5, num_layers=2) for _ in range(2))
        self.tied.weight_ih_l1 = self.steps.weight_hh_l0

    def forward(self, series: Tensor) -> tuple[Tensor, Tensor]:
        self.steps.flatten_parameters()
        x, states = self.steps(input=series.transpose(0, 1))
        x, _ = self.steps(x.flip(0), hx=states)
        return x.transpose(0, 1), self.tied(x)[1][0][-1]


class Stored(nn.Module):
    """A state that comes in and goes out, rows first; what a layer gives at each step is not read."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.GRU(INPUTS, STATES, batch_first=True)

    def forward(self, series: Tensor, state: Tensor) -> Tensor:
        last: Tensor = self.steps(series, state[None])[1][0]
        return last


class Single(nn.Module):
    """Each row by itself, without a dimension for rows."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.RNN(INPUTS, STATES, bidirectional=True)

    def forward(self, series: Tensor) -> Tensor:
        y, last = self.steps(series.mean(0))
        return y.mean(0) + last.flatten() + series[:, 0, :1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Twice, Stored, Single, nn.GRU])
def test_recurrent_layers_may_be_called_in_any_way(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = (
        kind().eval()
        if kind is not nn.GRU
        else nn.Sequential(nn.GRU(INPUTS, STATES, batch_first=True), First())
    )
    model = network(module)
    if kind is Stored:
        model = replace(model, shape={**model.shape, "state": TensorInput(shape=(STATES,))})
        give_example_(module, (series(2, LENGTH), torch.randn(2, STATES)))
    for small in (model, rounded_to(model, Integer(bits=8))):
        made = deploy(small)
        for rows, length in ((2, LENGTH), (7, 11)):
            given = (series(rows, length), *((torch.randn(rows, STATES),) if kind is Stored else ()))
            close(ran(made, *given), answered(small.module, *given), 1e-5)


@pytest.mark.slow
def test_an_lstm_that_runs_twice_runs_in_integers_twice() -> None:
    torch.manual_seed(0)
    small = rounded_to(network(Twice()), Integer(bits=8)).narrowed({}, {"steps": RecurrentGrid(8, (0, 1))})
    made = deploy(small)
    assert [node.op_type for node in made.model.graph.node].count("DynamicQuantizeLSTM") == 4
    assert risky(small) == []
    given = series(3, 7)
    close(ran(made, given), answered(small.module, given), 0.02)


def test_the_same_bytes_whatever_was_exported_before() -> None:
    def content(kind: str) -> bytes:
        torch.manual_seed(0)
        return deploy(network(Series(kind, False, batch_first=True))).content

    first = content("LSTM")
    content("GRU")
    assert content("LSTM") == first


class Packed(nn.Module):
    """A recurrent layer on sequences packed together, which no operator of ONNX takes."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.LSTM(INPUTS, STATES)

    def forward(self, series: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_sequence(list(series))
        last: Tensor = self.steps(packed)[1][0][0]
        return last


def test_packed_sequences_are_refused() -> None:
    with pytest.raises(DecantError, match=r"the architecture 'Packed'|exports a Packed"):
        deploy(network(Packed()))


class Projected(nn.Module):
    """An LSTM whose answers are narrower than its memory."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.steps = nn.LSTM(INPUTS, STATES, batch_first=True, proj_size=3, **options)

    def forward(self, series: Tensor) -> tuple[Tensor, ...]:
        y, (h, c) = self.steps(series)
        return y, h.transpose(0, 1), c.transpose(0, 1)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}])
def test_projections_of_an_lstm_stand_behind_its_steps(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = network(Projected(**options))
    made = deploy(model)
    assert {each.op_type for each in made.model.graph.node} >= {"LSTM"}
    for rows, length in ((3, 9), (1, 2)):
        given = series(rows, length)
        close(ran(made, given), answered(model.module, given), 1e-5)


@pytest.mark.parametrize("numbers", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize(("first", "both", "bias"), [(True, True, True), (False, False, False)])
def test_stepped_without_rounding_is_the_lstm(
    numbers: tuple[int, ...], first: bool, both: bool, bias: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(INPUTS, STATES, 2, batch_first=first, bidirectional=both, bias=bias).eval()
    state = torch.randn(2 * (1 + both), 3, STATES)
    inputs = series(3, LENGTH) if first else series(LENGTH, 3)
    calls: list[tuple[Tensor, Any]] = [
        (inputs, None),
        (inputs, (state, -state)),
        (series(1, LENGTH)[0], None),
    ]
    for x, given in calls:
        wanted, found = layer(x, given), stepped(layer, numbers, lambda x: x, x, given)
        for one, other in zip((wanted[0], *wanted[1]), (found[0], *found[1]), strict=True):
            assert one.shape == other.shape
            assert torch.allclose(one, other, atol=1e-6)


def test_stepped_rounds_what_comes_in_and_each_state() -> None:
    torch.manual_seed(0)
    layer, inputs, seen = nn.LSTM(INPUTS, STATES), series(LENGTH, 2), list[Tensor]()

    def halved(x: Tensor) -> Tensor:
        seen.append(x)
        return x / 2

    answers, _ = stepped(layer, (0,), halved, inputs)
    halves = nn.LSTM(INPUTS, STATES)  # the same with half the weights
    halves.load_state_dict({n: w / 2 if "weight" in n else w for n, w in layer.state_dict().items()})
    assert torch.allclose(answers, halves(inputs)[0], atol=1e-6)
    assert torch.equal(seen[0], inputs)
    assert torch.equal(torch.stack(seen[2:]), answers[:-1])


def integers(**options: Any) -> Checkpoint:
    torch.manual_seed(0)
    return rounded_to(network(Series("LSTM", False, batch_first=True, **options)), Integer(bits=8))


@pytest.mark.parametrize(
    "options",
    [
        {"num_layers": 3},
        pytest.param({"num_layers": 2, "bidirectional": True, "bias": False}, marks=pytest.mark.slow),
    ],
)
def test_layers_of_an_lstm_run_in_integers_where_their_states_are_rounded(options: dict[str, Any]) -> None:
    bare = integers(**options)
    small = bare.narrowed({}, {"steps": RecurrentGrid(8, (1,))})
    made = deploy(small)
    kinds = [node.op_type for node in made.model.graph.node]
    assert kinds.count("DynamicQuantizeLSTM") == 1
    assert kinds.count("LSTM") == options["num_layers"] - 1
    inside = {name for name, form in made.forms.items() if form is Form.BATCH}
    assert inside == {name for name in made.forms if "_l1" in name}
    assert set(risky(small)) == inside
    assert bit_operations(small) < bit_operations(bare)
    for rows, length in ((2, LENGTH), (1, 1), (7, 11)):
        given = series(rows, length)
        close(ran(made, given), answered(small.module, given), 0.02)
    assert not torch.equal(answered(small.module, given)[0], answered(bare.module, given)[0])


def test_states_that_no_kernel_rounds_are_refused() -> None:
    with pytest.raises(DecantError, match=r"steps.weight_ih_l0: the states .* kernel of 8 bits"):
        deploy(integers().narrowed({}, {"steps": RecurrentGrid(4, (0,))}))


def test_an_lstm_rounds_no_packed_sequences() -> None:
    small = network(Packed()).narrowed({}, {"steps": RecurrentGrid(8, (0,))})
    with pytest.raises(DecantError, match="packed sequences are not rounded"):
        small.module(series(2, LENGTH))


def quantized(module: nn.Module, **recipe: Any) -> Any:
    given = Examples(Rows({"series": series(16, LENGTH)}), None, ())
    block = {"op": "quantize", "from": "some", "scheme": {"kind": "integer"}, "images": 8, **recipe}
    return quantize(network(module), block, Splits(given, given))


def test_dynamic_recipes_round_states_where_all_weights_of_a_layer_are_integers() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        Series("LSTM", False, batch_first=True, num_layers=2), First(), nn.Linear(STATES, 3)
    )
    ends = {"kind": "integer", "group": 16}
    for recipe, layers in (
        ({}, (0, 1)),
        ({"first_and_last": ends}, (1,)),
        ({"skip": ["0.steps.weight_hh_l1"]}, (0,)),
    ):
        found = quantized(module, activations={"dynamic": True}, **recipe)
        assert found.model.grids == {"0.steps": RecurrentGrid(8, layers), "2": DynamicGrid(8)}
        assert "states" not in found.facts.get("float inputs", "")
    for activations in ({"dynamic": True, "bits": 7}, {}):
        found = quantized(module, activations=activations)
        assert [*found.model.grids] == ["2"]
        assert "0.steps.weight_ih_l0" in found.facts["float inputs"]


def speaker() -> nn.Module:
    return Series("LSTM", False, batch_first=True, num_layers=2)


def test_rounded_states_come_back_from_disk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bare = network(speaker())
    saved = replace(bare, architecture=Python.of(speaker)).narrowed({}, {"steps": RecurrentGrid(8, (1,))})
    save(saved, tmp_path)
    loaded = load(tmp_path, speaker)
    assert loaded.grids == saved.grids
    for one, other in zip(*(answered(each.module, series(2, 9)) for each in (saved, loaded)), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(answered(bare.module, series(2, 9))[0], one)
