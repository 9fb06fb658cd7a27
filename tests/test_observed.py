"""Networks that are no chain of layers: every call is seen, and what cannot be is left alone and said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decant.checkpoints.activations import DynamicGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import Range
from decant.errors import DecantError
from decant.examples import Examples, Splits, pixels
from decant.networks.architectures import Mlp
from decant.prune.mask_pruning import MaskPruning
from decant.prune.params import PruneParams
from decant.quantize.bias_correction import mean_outputs
from decant.quantize.params import QuantizeParams
from decant.quantize.quantizable import first_and_last, quantizable
from decant.quantize.recipe import Quantized, Recipe
from decant.reconstruction.hessians import moments, norms


class Backwards(nn.Module):
    """Registered from the end to the middle, called from the stem to the head; the stem runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.stem, self.middle = nn.Linear(48, 3), nn.Linear(48, 48), nn.Linear(48, 48)

    def forward(self, inputs: Tensor) -> Tensor:
        once = self.stem(inputs.flatten(1)).relu()
        twice = self.stem(10 * once).relu_()
        return self.head(self.middle(twice).relu())


class Attending(nn.Module):
    """Attention over the rows of a picture, which calls no layer for its weights; and a called layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def attended(self, inputs: Tensor) -> Tensor:
        tokens = inputs[:, 0]
        mixed: Tensor = self.attention(tokens, tokens, tokens)[0]
        return mixed.mean(1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.attended(inputs))


class Varied(nn.Module):
    """Weights of a recurrent layer, a table that a product reads, and one that is embedded and read."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.words = nn.LSTM(8, 6, batch_first=True), nn.Embedding(9, 6)
        self.mix, self.bare = nn.Parameter(torch.randn(6, 6)), nn.Linear(6, 6, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.rnn(inputs[:, 0])[0].mean(1) + self.words((4 * inputs[:, 0, 0, 0]).long())
        return F.linear(self.bare(hidden) @ self.mix, self.words.weight)


def checkpoint(kind: type[nn.Module], classes: int = 3) -> Checkpoint:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = kind().eval()
    names = tuple(map(str, range(classes)))
    return Checkpoint(Mlp(hidden=(3,)), (1, 6, 8), names, module)


def pictures(count: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 1, 6, 8), generator=generator).to(torch.uint8)


def examples(classes: tuple[str, ...], images: Tensor | None = None) -> Examples:
    images = pictures() if images is None else images
    return Examples(images, torch.arange(len(images)) % len(classes), classes)


def quantized(parent: Checkpoint, images: Tensor | None = None, **block: Any) -> Quantized:
    seen = examples(parent.classes, images)
    scheme = {"scheme": {"kind": "integer", "bits": 4}, "images": len(seen)}
    recipe = QuantizeParams.model_validate({"op": "quantize", "from": "teacher", **scheme, **block})
    return Recipe(recipe, parent, parent, seen, seen).rounded()


def pruning(parent: Checkpoint, **block: Any) -> MaskPruning:
    seen = examples(parent.classes)
    base = {"op": "prune", "from": "teacher", "budget": {"sparsity": 0.5}, "allocation": {"kind": "layer"}}
    return MaskPruning(PruneParams.model_validate(base | block), parent, parent, Splits(seen, seen), 0)


# --- every call


def test_moments_norms_and_means_are_of_all_calls() -> None:
    module = checkpoint(Backwards).module
    assert isinstance(module, Backwards)
    first = pixels(pictures()).flatten(1)
    with torch.no_grad():
        rows = torch.cat([first, 10 * module.stem(first).relu()]).double()
        outputs = module.stem(rows.float()).double()
    found = moments(module, ["stem.weight"], pictures())["stem.weight"]
    assert found.count == len(rows)
    torch.testing.assert_close(found.hessian[0], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-6)
    sizes = norms(module, pictures())
    assert list(sizes) == ["stem.weight", "middle.weight", "head.weight"]
    torch.testing.assert_close(sizes["stem.weight"][0].double(), rows.norm(dim=0), rtol=1e-4, atol=0)
    means = mean_outputs(module, ["head.weight", "stem.weight"], pictures())
    assert list(means) == ["stem.weight", "head.weight"]
    torch.testing.assert_close(means["stem.weight"], outputs.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rounding", [{"kind": "gptq"}, {"kind": "adaround", "steps": 20}])
def test_a_layer_that_runs_twice_is_rounded_for_both_calls(rounding: dict[str, Any]) -> None:
    parent = checkpoint(Backwards)
    plain = quantized(parent, scheme={"kind": "integer", "bits": 3})
    better = quantized(parent, scheme={"kind": "integer", "bits": 3}, rounding=rounding)
    seen = moments(parent.module, ["stem.weight"], pictures())["stem.weight"].hessian[0]
    weight = parent.module.get_parameter("stem.weight").double()
    off = [result.model.module.get_parameter("stem.weight").double() - weight for result in (plain, better)]
    errors = [torch.einsum("oi,ij,oj->", each, seen, each).item() for each in off]
    assert errors[1] < 0.7 * errors[0]


def test_the_first_and_the_last_layer_are_those_that_run_first_and_last() -> None:
    child = quantized(checkpoint(Backwards), scheme={"kind": "binary"}).model
    wide = {name for name, held in child.constraints.items() if held.levels and held.levels.bits == 8}
    assert wide == {"stem.weight", "head.weight"}
    # A table that is looked up first and multiplied by last is both.
    assert first_and_last(checkpoint(Varied, 9).module) == {"rnn.weight_ih_l0", "words.weight"}


# --- what is never called


def test_grids_and_clamps_stand_only_where_a_layer_is_called() -> None:
    parent = checkpoint(Attending)
    for more in (
        {"grids": {"attention.out_proj": DynamicGrid(2)}},
        {"clamps": {"attention.out_proj": Range(0, 1)}},
    ):
        with pytest.raises(DecantError, match=r"attention\.out_proj: the network never calls this"):
            parent.narrowed({}, **more)
    assert parent.narrowed({}, {"head": DynamicGrid(2), "attention": DynamicGrid(8)}).grids.keys() == {
        "head",
        "attention",
    }


@pytest.mark.parametrize("dynamic", [False, True])
def test_attention_is_rounded_by_its_weights_and_said_to_have_float_inputs(dynamic: bool) -> None:
    parent = checkpoint(Attending)
    result = quantized(parent, activations={"bits": 8, "dynamic": dynamic}, rounding={"kind": "gptq"})
    weights = {"attention.in_proj_weight", "attention.out_proj.weight", "head.weight"}
    assert result.model.constraints.keys() == weights
    assert result.model.grids.keys() == {"head"}
    for fact in ("float inputs", "rounded to nearest"):
        assert result.facts[fact].startswith(
            "attention.in_proj_weight, attention.out_proj.weight: no layer of"
        )
    for name in weights - {"head.weight"}:
        held, weight = result.model.constraints[name], parent.module.get_parameter(name)
        assert held.levels is not None
        assert held.levels.scale.shape == (len(weight), 1)
        assert torch.equal(result.model.module.get_parameter(name), held.project(weight))


def test_criteria_that_look_at_inputs_score_what_is_called_and_say_what_is_not() -> None:
    parent = checkpoint(Attending)
    net = parent.module
    assert isinstance(net, Attending)
    with torch.no_grad():
        inputs = net.attended(pixels(pictures()))
    pruned = pruning(parent, criterion={"kind": "wanda"})
    (name,) = scores = pruned.scores()
    assert name == "head.weight"
    torch.testing.assert_close(scores[name].float(), net.head.weight.abs().detach() * inputs.norm(dim=0))
    for weight in ("attention.in_proj_weight", "attention.out_proj.weight"):
        assert "no layer of torch is called for it" in pruned.untouched[weight]
    solved = pruning(parent, criterion={"kind": "obs", "images": 64, "rounds": 2}).pruned().model
    assert solved.constraints.keys() == {"head.weight"}
    assert int((solved.module.get_parameter("head.weight") == 0).sum()) == 12
    with pytest.raises(DecantError, match="criterion wanda: attention"):
        _ = pruning(parent, criterion={"kind": "wanda"}, skip=["head"]).names


def test_what_is_skipped_is_not_looked_at() -> None:
    parent = checkpoint(Backwards)
    with torch.no_grad():
        parent.module.get_parameter("stem.bias").fill_(torch.inf)  # so all that comes after receives infinity
    scores = pruning(parent, criterion={"kind": "obs", "images": 64}, skip=["middle", "head"])
    with pytest.raises(DecantError, match="inputs of stem hold NaN"):
        scores.scores()
    with torch.no_grad():
        parent.module.get_parameter("stem.bias").zero_()
        parent.module.get_parameter("middle.bias").fill_(torch.inf)
    assert scores.scores().keys() == {"stem.weight"}


@pytest.mark.parametrize("kind", ["taylor", "fisher"])
def test_weights_that_are_kept_from_training_are_scored_too(kind: str) -> None:
    parent = checkpoint(Backwards)
    wanted = pruning(parent, criterion={"kind": kind}).scores()
    frozen = parent.module.get_parameter("middle.weight").requires_grad_(False)
    found = pruning(parent, criterion={"kind": kind}).scores()
    assert all(torch.equal(found[name], score) for name, score in wanted.items())
    assert not frozen.requires_grad


# --- weights wherever they live


def test_weights_of_every_kind_are_rounded_by_name() -> None:
    parent = checkpoint(Varied, 9)
    names = ["rnn.weight_ih_l0", "rnn.weight_hh_l0", "words.weight", "bare.weight", "mix"]
    assert list(quantizable(parent.module)) == names
    model = quantized(parent).model
    for name, (weight, axis) in quantizable(parent.module).items():
        levels = model.constraints[name].levels
        assert levels is not None
        assert levels.scale.shape == tuple(n if dim == axis else 1 for dim, n in enumerate(weight.shape))
    assert quantizable(parent.module)["mix"][1] == 1
    with pytest.raises(DecantError, match=r"mix of teacher: A group of 16 is of neighbours"):
        quantized(parent, scheme={"kind": "integer", "bits": 4, "group": 16})


# --- biases


def test_a_network_of_which_nothing_can_be_folded_is_corrected_too() -> None:
    class Over(nn.Sequential):
        def __init__(self) -> None:
            last = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
            super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), *last)

    parent = checkpoint(Over)
    result = quantized(parent, correct_bias=True)
    with torch.no_grad():
        wanted, found = (net[0](pixels(pictures())) for net in (parent.module, result.model.module))  # type: ignore[index]
    torch.testing.assert_close(found.mean((0, 2, 3)), wanted.mean((0, 2, 3)), rtol=0, atol=1e-5)
    assert "uncorrected" not in result.facts


def test_layers_without_a_bias_are_left_uncorrected_and_said() -> None:
    class Headed(Varied):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(9, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(super().forward(inputs))

    parent = checkpoint(Headed)
    result = quantized(parent, correct_bias=True)
    assert "bare.weight: its layer has no bias" in result.facts["uncorrected"]
    assert "rnn.weight_hh_l0: rnn multiplies by it once for each step" in result.facts["uncorrected"]
    wanted, found = (
        mean_outputs(net, ["head.weight"], pictures())["head.weight"]
        for net in (parent.module, result.model.module)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
