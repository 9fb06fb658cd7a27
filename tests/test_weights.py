"""Weights wherever they live: in recurrent layers, in attention, as parameters, under several names."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from decant.calibration.ranges import MinMax
from decant.checkpoints import files
from decant.checkpoints.checkpoint import Checkpoint, state
from decant.checkpoints.constraints import Constraints, Range
from decant.checkpoints.files import load, save
from decant.clip.operation import clip
from decant.compression.coupling import proven
from decant.compression.ledger import compare, lines
from decant.compression.selection import select
from decant.compression.surgery import removed
from decant.errors import DecantError
from decant.examples import Examples, Rows, Splits, pixels
from decant.lowering.folding import folded
from decant.networks.architectures import Architecture, Shape
from decant.networks.parametrizations import without_parametrizations_
from decant.networks.python import Python
from decant.networks.record import give_example_
from decant.networks.roles import roles
from decant.networks.structure import compressible
from decant.networks.ties import ties, unite_
from decant.prune.channels.ladder import ChannelPlan
from decant.prune.criteria import Magnitude
from decant.prune.operation import prune as pruned
from decant.training.fit import fit_
from decant.training.recipe import Loss, Sgd, Training
from decant.training.resume import Scratch
from decant.training.steps import group_norms
from tests.nets import Own

EXAMPLES = Examples(
    torch.randint(0, 256, (64, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8),
    torch.randint(0, 3, (64,), generator=torch.Generator().manual_seed(1)),
    tuple("abc"),
)


def taking(module: nn.Module, *shape: int) -> nn.Module:
    """Return the network in eval mode, which knows what it takes."""
    give_example_(module, (torch.zeros(1, *shape),))
    return module.eval()


def fitted(module: nn.Module, training: Training, loss: Loss | None = None, **more: object) -> int:
    """Train in place, and return of how many epochs the curve tells."""
    hard = loss or training.hard_loss()
    settings = {"scratch": None, "seed": 0, "constraints": {}, "title": "test"} | more
    return len(fit_(module, training, hard, EXAMPLES, EXAMPLES, **settings))  # type: ignore[arg-type]


class Mixed(nn.Module):
    """One of each, on 4 tokens of 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(256, 4)
        self.positions = nn.Parameter(torch.randn(4, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.up = nn.ConvTranspose1d(4, 4, 2)
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.dense = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.spare = nn.Linear(3, 3)
        self.table = nn.Parameter(torch.randn(6, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        pixels = inputs.flatten(1)
        words = self.words((pixels[:, :4] * 255).long())
        tokens = self.norm(pixels.unflatten(1, (4, 4)) + self.positions + words)
        tokens = self.up(self.attention(tokens, tokens, tokens)[0].movedim(1, 2)).movedim(1, 2)
        hidden = F.linear(self.lstm(tokens)[0][:, -1], self.dense.weight - self.dense.weight.mean())
        result: Tensor = (hidden * self.scale) @ self.table
        return result


WEIGHTS = [
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "up.weight",
    "lstm.weight_ih_l0",
    "lstm.weight_hh_l0",
    "table",
]


@pytest.fixture
def mixed() -> nn.Module:
    torch.manual_seed(0)
    return taking(Mixed(), 1, 4, 4)


# --- what each parameter is


def test_every_parameter_is_called_what_it_is(mixed: nn.Module) -> None:
    assert list(compressible(mixed)) == WEIGHTS
    chosen, untouched = select(mixed, ())
    assert chosen == WEIGHTS
    assert untouched == {
        "words.weight": "embedding",
        "positions": "added or read, multiplies no inputs",
        "attention.in_proj_bias": "bias",
        "attention.out_proj.bias": "bias",
        "norm.weight": "layer norm",
        "norm.bias": "layer norm",
        "up.bias": "bias",
        "lstm.bias_ih_l0": "bias",
        "lstm.bias_hh_l0": "bias",
        "dense.weight": "what the network itself multiplies by is computed from it",
        "dense.bias": "bias",
        "scale": "scale or offset",
        "spare.weight": "never called in a pass over the example",
        "spare.bias": "bias",
    }
    assert roles(mixed)["lstm.weight_hh_l0"] == "recurrent weight"


def test_skip_names_weights_layers_and_what_they_are_in(mixed: nn.Module) -> None:
    assert select(mixed, ["lstm"])[0] == [name for name in WEIGHTS if "lstm" not in name]
    assert select(mixed, ["table", "lstm.weight_hh_l0"])[0] == WEIGHTS[:4]
    chosen, untouched = select(mixed, ["attention"])
    assert chosen == WEIGHTS[2:]
    assert untouched["attention.out_proj.weight"] == "named in skip"
    with pytest.raises(DecantError, match="skip names no layer 'tabel'; did you mean 'table'"):
        select(mixed, ["tabel"])


def test_a_ledger_tells_recurrent_weights_and_embeddings_apart(mixed: nn.Module) -> None:
    parent = Checkpoint(None, (1, 4, 4), tuple("abc"), mixed)  # type: ignore[arg-type]
    masks = {n: torch.rand(mixed.get_parameter(n).shape) > 0.5 for n in ("lstm.weight_hh_l0", "words.weight")}
    child = parent.narrowed({name: Constraints(mask=mask) for name, mask in masks.items()})
    entries = {entry.name: entry for entry in compare(parent, child, select(mixed, ())[1])}
    assert (entries["lstm.weight_hh_l0"].role, entries["words.weight"].role) == (
        "recurrent weight",
        "embedding",
    )
    assert entries["up.weight"].role == "" and not entries["positions"].weight
    text = "\n".join(lines("x", list(entries.values())))
    assert "embedding" in text and ", layer norm: norm.weight, norm.bias" in text


def test_decay_pulls_at_all_weights_by_one_share(mixed: nn.Module) -> None:
    before = {name: p.detach().clone() for name, p in mixed.named_parameters()}
    training = Training(epochs=1, batch_size=64, weight_decay=0.5, optimizer=Sgd(learning_rate=0.1))
    fitted(mixed, training, lambda inputs, logits, labels: 0 * logits.sum())
    shares = {n: (p.norm() / before[n].norm()).item() for n, p in mixed.named_parameters() if n in WEIGHTS}
    assert max(shares.values()) < 0.999
    assert max(shares.values()) - min(shares.values()) < 1e-5
    assert all(torch.equal(p, before[n]) for n, p in mixed.named_parameters() if n not in WEIGHTS)


def test_masks_hold_in_a_training_wherever_weights_live(mixed: nn.Module) -> None:
    held = {n: Constraints(mask=torch.rand(mixed.get_parameter(n).shape) > 0.5) for n in WEIGHTS}
    parent = Checkpoint(None, (1, 4, 4), tuple("abc"), mixed).narrowed(held)  # type: ignore[arg-type]
    before = {n: parent.module.get_parameter(n).detach().clone() for n in WEIGHTS}
    fitted(parent.module, Training(epochs=2, batch_size=16), constraints=held)
    for name in WEIGHTS:
        weight = parent.module.get_parameter(name)
        assert torch.equal(weight == 0, ~held[name].mask)  # type: ignore[operator]
        assert not torch.equal(weight, before[name])


# --- scores and penalties


def test_a_norm_behind_a_rectifier_is_no_scale_of_the_weights() -> None:
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)
    net = taking(nn.Sequential(*layers), 1, 8, 8)
    nn.init.uniform_(layers[2].running_var, 0.2, 3.0)
    conv, linear = layers[0].weight.detach(), layers[4].weight.detach()
    scores = Magnitude(folded=True).scores(net, EXAMPLES, 0)
    assert torch.equal(scores["0.weight"], conv.abs())
    lasso = sum(math.sqrt(row.numel()) * row.norm().item() for weight in (conv, linear) for row in weight)
    assert group_norms(net).item() == pytest.approx(lasso, rel=1e-5)


FOLDED: list[tuple[Callable[[], nn.Module], int, tuple[int, ...]]] = [
    (lambda: nn.Linear(4, 6), 1, (4,)),
    (lambda: nn.Conv1d(4, 6, 3), 1, (4, 9)),
    (lambda: nn.Conv2d(4, 6, 3, groups=2), 2, (4, 9, 9)),
    (lambda: nn.Conv3d(4, 6, 2), 3, (4, 5, 5, 5)),
    (lambda: nn.ConvTranspose2d(4, 6, 3), 2, (4, 5, 5)),
    (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), 1, (4, 5)),
]


@pytest.mark.parametrize(("layer", "dims", "shape"), FOLDED)
def test_folded_magnitudes_are_those_of_the_folded_network(
    layer: Callable[[], nn.Module], dims: int, shape: tuple[int, ...]
) -> None:
    norm: nn.Module = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1](6)
    for tensor in (norm.weight, norm.running_var):
        nn.init.uniform_(tensor, 0.3, 3.0)  # type: ignore[arg-type]
    net = taking(nn.Sequential(layer(), norm), *shape)
    scores = Magnitude(folded=True).scores(net, EXAMPLES, 0)["0.weight"]
    model = folded(Checkpoint(None, shape, tuple("abc"), net))  # type: ignore[arg-type]
    assert torch.allclose(scores, model.module.get_parameter("0.weight").abs(), rtol=1e-5)


def test_the_lasso_goes_over_output_channels_wherever_they_lie() -> None:
    net = taking(nn.Sequential(nn.ConvTranspose2d(3, 2, 3, bias=False)), 3, 4, 4)
    weight = net.get_parameter("0.weight").detach()
    by_hand = sum(math.sqrt(27) * weight[:, channel].norm().item() for channel in range(2))
    assert group_norms(net).item() == pytest.approx(by_hand, rel=1e-5)


# --- patterns and ranges


class Turned(nn.Module):
    """Weights whose outputs lie on the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 6, 2)
        self.split = nn.ConvTranspose2d(6, 8, 1, groups=2)
        self.table = nn.Parameter(torch.randn(8, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.split(self.up(inputs.reshape(-1, 8, 2, 1)))
        return hidden.relu().mean((2, 3)) @ self.table


@pytest.fixture
def turned() -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(None, (1, 4, 4), tuple("abc"), taking(Turned(), 1, 4, 4))  # type: ignore[arg-type]


def test_patterns_run_along_inputs_wherever_they_lie(turned: Checkpoint) -> None:
    splits = Splits(EXAMPLES, EXAMPLES)
    result = pruned(turned, {"criterion": {"kind": "magnitude"}, "structure": {"kind": "n-of-m"}}, splits)
    for name in ("up.weight", "table"):
        zeros = result.model.module.get_parameter(name) == 0
        assert zeros.unflatten(0, (2, 4)).sum(1).eq(2).all(), name
    left = next(entry for entry in result.ledger if entry.name == "split.weight")
    assert "may have groups" in left.untouched


def test_blocks_are_rows_of_outputs_wherever_they_lie(turned: Checkpoint) -> None:
    blocks = {"kind": "blocks", "rows": 1, "columns": 8}
    recipe = {"criterion": {"kind": "magnitude"}, "structure": blocks, "budget": {"sparsity": 0.4}}
    result = pruned(turned, recipe, Splits(EXAMPLES, EXAMPLES))
    zeros = result.model.module.get_parameter("table") == 0
    assert (zeros.all(0) | ~zeros.any(0)).all()


def test_ranges_per_channel_are_the_output_channels(turned: Checkpoint) -> None:
    recipe = {"cut": {"kind": "percentile", "keep": 0.9, "per_channel": True}}
    result = clip(turned, recipe, Splits(EXAMPLES, EXAMPLES))
    bounds = result.model.constraints["up.weight"].range
    assert bounds is not None and isinstance(bounds.high, Tensor)
    assert bounds.high.shape == (1, 6, 1, 1)
    expected = MinMax(per_channel=True).constrain(turned.module.get_parameter("up.weight"), None, 1).range
    assert expected is not None and bounds.within(expected)


def test_inputs_are_cut_where_a_layer_is_called(mixed: nn.Module) -> None:
    parent = Checkpoint(None, (1, 4, 4), tuple("abc"), mixed)  # type: ignore[arg-type]
    recipe = {"cut": {"kind": "percentile", "keep": 0.9}, "target": "activations", "images": 32}
    result = clip(parent, recipe, Splits(EXAMPLES, EXAMPLES))
    assert list(result.model.clamps) == ["up"]
    reasons = {entry.name: entry.untouched for entry in result.ledger}
    assert "once for each step" in reasons["lstm.weight_hh_l0"]


def test_embeddings_are_pruned_where_the_recipe_says_so_by_rows_too(mixed: nn.Module) -> None:
    parent, splits = Checkpoint(None, (1, 4, 4), tuple("abc"), mixed), Splits(EXAMPLES, EXAMPLES)  # type: ignore[arg-type]
    recipe = {
        "criterion": {"kind": "magnitude"},
        "budget": {"sparsity": 0.5},
        "allocation": {"kind": "layer"},
    }
    assert "words.weight" not in pruned(parent, recipe, splits).model.constraints
    rows = {"structure": {"kind": "blocks", "rows": 1, "columns": 4}, "embeddings": True}
    zeros = pruned(parent, recipe | rows, splits).model.module.get_parameter("words.weight") == 0
    assert zeros.any() and (zeros.all(1) | ~zeros.any(1)).all()


# --- tensors of several names


class Twins(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.head(self.second(self.first(inputs.flatten(1)).relu()).relu())
        return result


def is_one(module: nn.Module) -> bool:
    return module.get_parameter("first.weight") is module.get_parameter("second.weight")


@pytest.mark.parametrize("more", [{}, {"average": 0.5}, {"patience": 1}])
def test_one_weight_of_two_names_is_trained_as_one(more: dict[str, float], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, training = Twins(), Training(epochs=2, batch_size=16, **more)  # type: ignore[arg-type]
    held = {"first.weight": Constraints(mask=torch.rand(16, 16) > 0.5)}
    assert fitted(net, training, constraints=held, scratch=Scratch(tmp_path, "x")) == 2
    assert is_one(net)
    assert torch.equal(net.first.weight == 0, ~held["first.weight"].mask)  # type: ignore[operator]
    assert is_one(copy.deepcopy(net))


def test_a_gradient_of_two_uses_is_their_sum() -> None:
    torch.manual_seed(0)
    net = Twins()
    expected, before = copy.deepcopy(net), copy.deepcopy(net)
    training = Training(epochs=1, batch_size=64, weight_decay=0.0, optimizer=Sgd(learning_rate=0.1))
    fitted(net, training)
    F.cross_entropy(expected(pixels(EXAMPLES.images)), EXAMPLES.known_labels).backward()  # type: ignore[arg-type]
    moved, gradient = before.first.weight - net.first.weight, expected.first.weight.grad
    assert gradient is not None
    assert F.cosine_similarity(moved.flatten(), gradient.flatten(), dim=0).item() == pytest.approx(
        1, abs=1e-5
    )


class Shared(Own):
    """Twins, as files name them."""

    kind: Literal["shared"] = "shared"

    def build(self, shape: Shape, classes: int) -> nn.Module:
        return Twins()


class Tables(nn.Module):
    """A linear layer, and tables of other types than float32."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)
        self.norm = nn.BatchNorm1d(3, momentum=None)  # type: ignore[arg-type]
        for name, dtype in TYPES.items():
            self.register_buffer(name, torch.zeros(3, dtype=dtype))
        self.register_buffer("causal", torch.zeros(2, 2))

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.norm(self.head(inputs.flatten(1)))
        return result


TYPES = {
    "places": torch.int64,
    "steps": torch.float64,
    "mask": torch.bool,
    "halved": torch.float16,
    "brain": torch.bfloat16,
    "small": torch.int8,
}
VALUES = {
    "places": [2**24 + 1, 2**40 + 1, -1],
    "steps": [1 / 3, 1e300, -math.inf],
    "mask": [True, False, True],
    "halved": [0.1, 6e-8, 65504.0],
    "brain": [0.1, 1e38, -0.0],
    "small": [-128, 0, 127],
}


class Tabled(Own):
    """Tables, as files name them."""

    kind: Literal["tabled"] = "tabled"

    def build(self, shape: Shape, classes: int) -> nn.Module:
        return Tables()


class _Description(files.Description):
    architecture: Architecture | Shared | Tabled


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make files able to name these networks."""
    monkeypatch.setattr(files, "Description", _Description)
    yield


def saved(architecture: Own, module: nn.Module, folder: Path) -> Checkpoint:
    checkpoint = Checkpoint(architecture, (1, 4, 4), tuple("abc"), module.eval())  # type: ignore[arg-type]
    save(checkpoint, folder)
    return checkpoint


@pytest.mark.usefixtures("known")
def test_one_weight_of_two_names_is_written_once_and_read_as_one(tmp_path: Path) -> None:
    net = Twins()
    saved(Shared(), net, tmp_path)
    once = 4 * sum(parameter.numel() for parameter in net.parameters())
    assert (tmp_path / "model.safetensors").stat().st_size < once + 200
    again = load(tmp_path).module
    assert is_one(again) and is_one(copy.deepcopy(again))
    assert torch.equal(again.get_parameter("second.weight"), net.first.weight)
    assert ties(again)["first.weight"] == ("first.weight", "second.weight")


def test_two_parameters_over_the_same_numbers_become_one() -> None:
    net = Twins()
    net.second.weight = nn.Parameter(net.first.weight.data)
    assert not is_one(net)
    model = Checkpoint(None, (1, 4, 4), tuple("abc"), net)  # type: ignore[arg-type]
    assert is_one(model.module) and is_one(copy.deepcopy(model.module))
    net.second.weight = nn.Parameter(net.first.weight.data.t())
    with pytest.raises(DecantError, match=r"first\.weight .* and second\.weight .* lie in the same memory"):
        unite_(net)


def overlaid() -> Twins:
    """Return Twins as two parameters over the same numbers."""
    net = Twins()
    net.second.weight = nn.Parameter(net.first.weight.data)
    return net.eval()


def test_what_is_built_with_two_parameters_over_the_same_numbers_is_read_back(tmp_path: Path) -> None:
    model = Checkpoint(Python.of(overlaid).pinned(), (1, 4, 4), tuple("abc"), overlaid())
    save(model, tmp_path)
    again = load(tmp_path, build=overlaid).module
    assert is_one(again)
    assert torch.equal(again.get_parameter("second.weight"), model.module.get_parameter("first.weight"))


def strided() -> nn.Module:
    """Return a network whose weights lie in memory as its owner likes."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(24, 3)).eval()
    net[3].weight = nn.Parameter(torch.randn(24, 3).t())
    return net.to(memory_format=torch.channels_last)


def test_weights_of_any_layout_in_memory_come_back_to_the_bit(tmp_path: Path) -> None:
    assert not strided()[1].weight.is_contiguous() and not strided()[3].weight.is_contiguous()  # type: ignore[index]
    model = Checkpoint(Python.of(strided).pinned(), (1, 4, 4), tuple("abc"), strided())
    save(model, tmp_path)
    again = load(tmp_path, build=strided).module
    assert torch.equal(state(again)["3.weight"], state(strided())["3.weight"])
    assert all(tensor.is_contiguous() for net in (model.module, again) for tensor in net.parameters())


def test_a_network_without_weights_of_its_own_is_told_so() -> None:
    with pytest.raises(
        DecantError, match=r"No weight of the network can be compressed \(the network: it has no"
    ):
        select(taking(nn.Flatten(), 1, 4, 4), ())
    with pytest.raises(DecantError, match=r"No weight .* \(weight: batch norm\); make what multiplies"):
        select(taking(nn.BatchNorm2d(1), 1, 4, 4).eval(), ())


def test_surgery_leaves_one_weight_one() -> None:
    model = Checkpoint(None, (1, 4, 4), tuple("abc"), taking(Twins(), 1, 4, 4))  # type: ignore[arg-type]
    child = removed(model, {"first.weight": {1: torch.arange(8)}})
    assert is_one(child.module)
    assert child.module.get_parameter("second.weight").shape == (16, 8)


@pytest.mark.usefixtures("known")
def test_every_tensor_keeps_its_type_and_its_bits(tmp_path: Path) -> None:
    net = Tables()
    for name, values in VALUES.items():
        net.get_buffer(name).copy_(torch.tensor(values, dtype=TYPES[name]))
    net.causal.fill_(-math.inf).triu_(1)
    net.train()
    for _ in range(3):
        net(torch.rand(8, 1, 4, 4))
    checkpoint = saved(Tabled(), net, tmp_path)
    again = load(tmp_path)
    before, after = state(checkpoint.module), state(again.module)
    assert {n: t.dtype for n, t in before.items()} == {n: t.dtype for n, t in after.items()}
    assert all(
        torch.equal(t.view(torch.uint8), after[n].view(torch.uint8)) for n, t in before.items() if t.dim()
    )
    assert after["norm.num_batches_tracked"] == 3  # its average goes on from there


@pytest.mark.usefixtures("known")
def test_what_is_not_written_is_refused(tmp_path: Path) -> None:
    net = Tables()
    net.register_buffer("turns", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(DecantError, match=r"turns is a .* of complex64, expected a dense one of float32"):
        saved(Tabled(), net, tmp_path)
    net = Tables()
    net.steps[0] = math.nan
    with pytest.raises(DecantError, match="steps holds NaN"):
        saved(Tabled(), net, tmp_path)


def test_tables_stay_as_they_are_in_a_training(tmp_path: Path) -> None:
    net = Tables()
    for name, values in VALUES.items():
        net.get_buffer(name).copy_(torch.tensor(values, dtype=TYPES[name]))
    before = {name: net.get_buffer(name).clone() for name in VALUES}
    training = Training(epochs=3, batch_size=16, average=0.9, patience=5)
    fitted(net, training, scratch=Scratch(tmp_path, "x"))
    for name, tensor in before.items():
        assert torch.equal(net.get_buffer(name), tensor) and net.get_buffer(name).dtype == tensor.dtype


def test_levels_and_ranges_are_of_float32() -> None:
    net = taking(nn.Sequential(nn.Flatten(), nn.Linear(16, 3).to(torch.bfloat16)), 1, 4, 4)
    parent = Checkpoint(None, (1, 4, 4), tuple("abc"), net)  # type: ignore[arg-type]
    assert parent.narrowed({"1.weight": Constraints(mask=torch.ones(3, 16) > 0)})
    with pytest.raises(DecantError, match=r"1\.weight is of bfloat16"):
        parent.narrowed({"1.weight": Constraints(range=Range(-0.1, 0.1))})


# --- computed weights


PARAMETRIZED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight norm": weight_norm,
    "old spectral norm": spectral_norm,
    "mask of torch": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", PARAMETRIZED)
def test_parametrized_weights_are_left_alone_or_made_plain(kind: str) -> None:
    torch.manual_seed(0)
    net = taking(
        nn.Sequential(nn.Flatten(), PARAMETRIZED[kind](nn.Linear(16, 8)), nn.ReLU(), nn.Linear(8, 3)), 1, 4, 4
    )
    inputs = torch.rand(5, 1, 4, 4)
    expected = net(inputs).detach()
    chosen, untouched = select(net, ())
    assert chosen == ["3.weight"]
    computed = {why for name, why in untouched.items() if name[0] == "1" and name != "1.bias"}
    assert computed == {"what 1 multiplies by is computed from it"}
    assert without_parametrizations_(net) == ["1.weight"]
    assert torch.allclose(net(inputs), expected, atol=1e-6)
    assert list(compressible(net)) == ["1.weight", "3.weight"]
    half = {"1.weight": Constraints(mask=torch.arange(128).reshape(8, 16) % 2 == 0)}
    child = Checkpoint(None, (1, 4, 4), tuple("abc"), net).narrowed(half).module  # type: ignore[arg-type]
    assert (child.get_parameter("1.weight") == 0).float().mean() >= 0.5
    assert without_parametrizations_(net) == []
    assert child.load_state_dict(net.state_dict()) == ([], [])
    assert torch.equal(child(inputs), net(inputs))


class Standardized(nn.Conv2d):
    """Each channel's weight has mean 0 and deviation 1 when it is used."""

    def forward(self, inputs: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(inputs, (self.weight - mean) / self.weight.std((1, 2, 3), keepdim=True), self.bias)


def test_a_class_with_a_forward_of_its_own_is_not_its_base() -> None:
    layers = Standardized(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    net = taking(nn.Sequential(*layers, nn.Linear(4, 3)), 1, 8, 8)
    nn.init.uniform_(layers[1].weight, 0.2, 3.0)
    inputs = torch.rand(16, 1, 8, 8)
    model = Checkpoint(None, (1, 8, 8), tuple("abc"), net)  # type: ignore[arg-type]
    assert torch.allclose(folded(model).module(inputs), net(inputs), atol=1e-5)
    assert select(net, ())[1]["0.weight"] == "what 0 multiplies by is computed from it"


# --- channels


class Halves(nn.Module):
    """A tensor cut in two halves, one of which goes on alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.joined, self.head = nn.Conv2d(12, 6, 1), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        kept, passed = self.first(inputs).relu().chunk(2, 1)
        joined = torch.cat([kept, passed, self.branch(passed).relu()], 1)
        result: Tensor = self.head(self.joined(joined).relu().mean((2, 3)))
        return result


class Gated(nn.Module):
    """Half of the channels opens the other half; then channels are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(4, 6, 1)
        self.third, self.head = nn.Conv2d(6, 5, 1), nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        shuffled = F.channel_shuffle(self.second(F.glu(self.first(inputs), 1)), 2)
        result: Tensor = self.head(self.third(shuffled).relu().mean((2, 3)))
        return result


class Recurring(nn.Module):
    """Two linear layers of one weight, and a layer that a recurrent one reads."""

    def __init__(self) -> None:
        super().__init__()
        self.twins, self.before = Twins(), nn.Linear(3, 5)
        self.lstm, self.mid, self.head = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        steps = self.before(self.twins(inputs))[:, None]
        result: Tensor = self.head(self.mid(self.lstm(steps)[0][:, 0]).relu())
        return result


@pytest.mark.parametrize("kind", [Halves, Gated, Recurring])
def test_channels_go_where_that_is_proven_alone(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = Checkpoint(None, (1, 4, 4), tuple("abc"), taking(kind(), 1, 4, 4))  # type: ignore[arg-type]
    groups, unproven = proven(model)
    assert {group.layer for group in groups} <= {"joined", "branch", "first", "third", "mid", "twins.head"}
    assert kind is not Gated or "first" in {group.layer for group in groups}
    assert groups and not {group.name for group in groups} & {*unproven}
    for odd in (0, 1):
        gone = {group.name: torch.arange(group.count) % 2 == odd for group in groups}
        ChannelPlan(model, groups, gone).check(EXAMPLES.images)


def test_rows_of_tokens_are_pruned_by_channel() -> None:
    net = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    rows = Rows({"tokens": torch.randint(0, 11, (7, 5))})
    give_example_(net, (rows.tensors["tokens"][:2],))
    model = Checkpoint(None, (1, 1, 1), tuple("abc"), net)  # type: ignore[arg-type]
    groups, _ = proven(model)
    assert [group.name for group in groups] == ["1"]
    ChannelPlan(model, groups, {"1": torch.arange(6) < 2}).check(rows)


# --- outputs


def test_outputs_that_are_no_logits_are_refused_before_a_training() -> None:
    net = taking(nn.Sequential(nn.Conv2d(1, 3, 1)), 1, 4, 4)
    with pytest.raises(DecantError, match=r"returns \[1, 3, 4, 4\], and training on labels needs logits"):
        fitted(net, Training(epochs=1))


def test_a_network_of_views_is_trained_as_it_lies() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(32, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden: Tensor = self.conv(inputs)
            result: Tensor = self.head(hidden.view(hidden.size(0), -1))
            return result

    assert fitted(Viewed(), Training(epochs=1, batch_size=16)) == 1
