"""What layers receive is counted exactly and drawn within bounds; clamps are held, saved and compared."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from decant.calibration import observers
from decant.calibration.observers import of_inputs
from decant.calibration.range_search import held_out
from decant.calibration.ranges import Best, Deviation, MinMax, Percentile
from decant.checkpoints.activations import InputGrid, attach_
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import Constraints, Range
from decant.checkpoints.files import load, save
from decant.clip.clipping import clip_inputs
from decant.clip.params import ClipParams
from decant.compression.invariants import check_invariants
from decant.compression.ledger import compare
from decant.errors import DecantError
from decant.examples import Examples, pixels
from decant.networks.architectures import Mlp, Resnet, build
from decant.networks.execution import predict
from decant.networks.record import give_example_
from decant.quantize.activations import grids_for
from decant.quantize.params import Activations
from tasks.pipeline.params import validate
from tests.test_checkpoints import redescribe

IMAGES = torch.randint(0, 256, (600, 2, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 5)
    ).eval()


class First(nn.ModuleList):
    """Runs the first of its modules and none of the others."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self[0](inputs)


def checkpoint() -> Checkpoint:
    architecture = Resnet(widths=(4, 8), blocks=(1, 1))
    module = build(architecture, (2, 8, 8), 5, seed=3).eval()
    return Checkpoint(architecture, (2, 8, 8), tuple("abcde"), module)


CLAMPS = {
    "stem.0": Range(0.1, 0.75),
    "stages.1.conv2": Range(-math.inf, 0.5),
    "stages.0.conv1": Range(torch.zeros(4, 1, 1), torch.tensor([0.1, 0.2, 0.3, 0.4]).reshape(4, 1, 1)),
    "head": Range(torch.zeros(8), torch.linspace(0.1, 0.8, 8)),
}


# --- samples


@pytest.mark.parametrize("per_channel", [False, True])
def test_moments_and_extremes_are_those_of_all_inputs(per_channel: bool) -> None:
    module = network()
    seen = of_inputs(module, ["0", "2", "4"], IMAGES, per_channel=per_channel)
    inputs = IMAGES.float() / 255
    for name, received in {"0": inputs, "2": module[:2](inputs), "4": module[:4](inputs)}.items():
        rows = (
            received.detach().transpose(0, 1).flatten(1) if per_channel else received.detach().reshape(1, -1)
        )
        assert len(seen[name].each) == len(rows)
        for sample, row in zip(seen[name].each, rows.double(), strict=True):
            assert (sample.low, sample.high) == pytest.approx((row.min().item(), row.max().item()), rel=1e-6)
            assert sample.mean == pytest.approx(row.mean().item(), rel=1e-6)
            assert sample.sigma == pytest.approx(row.std(correction=0).item(), rel=1e-6)
            assert not sample.symmetric
    assert not any(layer._forward_pre_hooks for layer in module)


@given(st.floats(-1e4, 1e4), st.floats(0.01, 100), st.integers(1, 4))
def test_the_deviation_keeps_its_digits_far_from_zero(middle: float, spread: float, batches: int) -> None:
    values = torch.randn(batches * 250, 1, generator=torch.Generator().manual_seed(0)) * spread + middle
    watched = observers._Watched("layer", len(values), axis=None, rows=250)
    for batch in values.split(250):
        watched.record(nn.Identity(), (batch,), {})
    (sample,) = watched.samples().each
    mean = math.fsum(values.flatten().tolist()) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values.flatten().tolist()) / len(values)
    assert sample.mean == pytest.approx(mean, rel=1e-9, abs=1e-9)
    assert sample.sigma == pytest.approx(math.sqrt(variance), rel=1e-7)


class Mixer(nn.Module):
    """Features of different sizes, mixed twice by one layer, whose second input comes by name."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        once = self.mix(inputs[:, 0] * torch.arange(1.0, 9.0))
        return self.head(self.mix(input=3 * once).mean(1))


def test_channels_of_tokens_are_features_and_every_call_counts() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Mixer().eval()
        images = torch.randint(0, 256, (300, 1, 6, 8)).to(torch.uint8)
    first = pixels(images)[:, 0] * torch.arange(1.0, 9.0)
    with torch.no_grad():
        both = torch.cat([first, 3 * module.mix(first)])
    found = of_inputs(module, ["mix"], images, per_channel=True)["mix"]
    ends = found.extremes()
    assert torch.as_tensor(ends.low).shape == (8,)
    torch.testing.assert_close(ends.low, both.amin((0, 1)))
    torch.testing.assert_close(ends.high, both.amax((0, 1)))
    means = torch.tensor([sample.mean for sample in found.each])
    torch.testing.assert_close(means, both.mean((0, 1)))
    attach_(module, {}, {"mix": Range(ends.low, torch.as_tensor(ends.high) / 2)})
    halved = of_inputs(module, ["mix"], images, per_channel=True)["mix"].extremes()
    torch.testing.assert_close(halved.high, torch.as_tensor(ends.high) / 2)  # cut at both calls, by each name


def test_what_runs_often_is_not_kept_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Mixer().eval()
    give_example_(module, (torch.zeros(1, 1, 6, 8),))
    monkeypatch.setattr(observers, "KEPT", 960)
    images = torch.zeros(500, 1, 6, 8, dtype=torch.uint8)
    (sample,) = of_inputs(module, ["mix"], images)["mix"].each
    assert len(sample.values) == 960


def test_few_inputs_are_all_kept_and_many_are_drawn_the_same_way_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = network()
    (whole,) = of_inputs(module, ["0"], IMAGES)["0"].each
    assert torch.equal(whole.values.sort().values, (IMAGES.float() / 255).flatten().double().sort().values)
    monkeypatch.setattr(observers, "KEPT", 3000)
    (drawn,) = of_inputs(module, ["0"], IMAGES)["0"].each
    (again,) = of_inputs(module, ["0"], IMAGES)["0"].each
    assert torch.equal(drawn.values, again.values)
    assert len(drawn.values) <= 3000
    assert len(drawn.values) >= 2990
    assert (drawn.low, drawn.high, drawn.mean) == (whole.low, whole.high, whole.mean)
    assert drawn.values.mean().item() == pytest.approx(whole.mean, abs=0.03)
    channels = of_inputs(module, ["2"], IMAGES, per_channel=True)["2"].each
    assert sum(len(channel.values) for channel in channels) <= 3000


def test_no_images_and_no_numbers_are_refused_in_words() -> None:
    module = network()
    with pytest.raises(ValueError, match="no training images"):
        of_inputs(module, ["0"], IMAGES[:0])
    with torch.no_grad():
        module[0].bias[1] = math.nan
    with pytest.raises(ValueError, match=r"inputs of 2: they hold NaN or infinity"):
        of_inputs(module, ["0", "2"], IMAGES)
    assert not any(layer._forward_pre_hooks for layer in module)
    with pytest.raises(ValueError, match="inputs of 1: there are none, the network does not run this layer"):
        of_inputs(First([network(), nn.Linear(2, 2)]).eval(), ["1"], IMAGES)


def test_operations_without_images_say_so() -> None:
    parent = checkpoint()
    nothing = Examples(IMAGES[:0], torch.zeros(0).long(), ("a",))
    block = ClipParams(op="clip", cut=MinMax(), target="activations", **{"from": "teacher"})
    with pytest.raises(ValueError, match="there are no training images"):
        of_inputs(parent.module, ["head"], IMAGES[:0])
    with pytest.raises(DecantError, match="1,000 images are asked for, and there are 0"):
        clip_inputs(parent, ["head.weight"], block, nothing)
    with pytest.raises(DecantError, match="1,000 images are asked for, and there are 0"):
        grids_for(parent, {"head": 8}, Activations(), 1000, nothing)


def test_constant_inputs_have_a_range() -> None:
    black = torch.zeros(10, 2, 8, 8, dtype=torch.uint8)
    seen = of_inputs(network(), ["0"], black, per_channel=True)["0"]
    assert Deviation().over(seen) == Range(torch.zeros(2, 1, 1), torch.zeros(2, 1, 1))
    assert Percentile().over(seen).ends() == (0.0, 0.0)


def test_held_out_images_follow_those_that_ranges_are_taken_from() -> None:
    train = Examples(IMAGES, torch.zeros(600).long(), ("a",))
    assert torch.equal(held_out(train, 100, Best(images=500)), IMAGES[100:])
    assert torch.equal(held_out(train, 0, Best(images=5)), IMAGES[:5])
    with pytest.raises(DecantError, match=r"needs 500 training images beside the 101 .* there are 600"):
        held_out(train, 101, Best(images=500))


# --- ranges per channel


def test_bounds_per_channel_by_hand() -> None:
    held = Range(torch.tensor([[-1.0], [0.0]]), torch.tensor([[1.0], [0.5]]))
    weight = torch.tensor([[-3.0, 0.5], [-3.0, 0.75]])
    assert held.project(weight).tolist() == [[-1.0, 0.5], [0.0, 0.5]]
    assert held.describe() == "range per channel within [-1, 1]"
    assert held.ends() == (-1.0, 1.0)
    assert held.within(Range(-1, 1))
    assert not held.within(Range(-1, 0.9))
    assert not Range(-1, 1).within(held)
    both = held.intersect(Range(-0.5, math.inf))
    assert both == Range(torch.tensor([[-0.5], [0.0]]), torch.tensor([[1.0], [0.5]]))
    assert both == Range(-0.5, math.inf).intersect(held)
    assert both != held
    assert hash(both) == hash(Range(-0.5, math.inf).intersect(held))
    assert Constraints(range=held).narrow(range=Range(-0.5)).range == both


def test_ranges_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"from 2 to 1 holds no number in channel 1"):
        Range(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]))
    with pytest.raises(ValueError, match=r"shapes \[2\] and \[3\]"):
        Range(torch.zeros(2), torch.ones(3))
    with pytest.raises(ValueError, match="are no range"):
        Range(torch.zeros(()), 1.0)
    with pytest.raises(ValueError, match="holds no number"):
        Range(math.nan, 1.0)


@given(st.integers(0, 99), st.integers(100, 199))
def test_an_intersection_lies_in_both_and_projects_as_one_after_the_other(one: int, other: int) -> None:
    ranges = []
    for seed in (one, other):
        ends = torch.randn(2, 4, 1, generator=torch.Generator().manual_seed(seed)).abs()
        ranges.append(Range(-ends[0], ends[1]))
    both = ranges[0].intersect(ranges[1])
    values = torch.linspace(-3, 3, 40).reshape(4, 10)
    assert both.within(ranges[0])
    assert both.within(ranges[1])
    assert torch.equal(both.project(values), ranges[1].project(ranges[0].project(values)))


# --- clamps of a checkpoint


def satisfied(model: Checkpoint) -> dict[str, Tensor]:
    """Return what each clamped layer computes with, as seen behind the checkpoint's own hooks."""
    seen: dict[str, Tensor] = {}
    for layer in model.clamps:
        model.module.get_submodule(layer).register_forward_pre_hook(
            lambda _, inputs, layer=layer: seen.__setitem__(layer, inputs[0])
        )
    predict(model.module, IMAGES[:50])
    return seen


def test_clamped_layers_receive_nothing_outside() -> None:
    received = satisfied(checkpoint().narrowed({}, clamps=CLAMPS))
    assert received.keys() == CLAMPS.keys()
    for layer, inputs in received.items():
        assert torch.equal(CLAMPS[layer].project(inputs), inputs)


def test_a_clamped_model_is_the_same_from_disk_and_counts_its_bounds(tmp_path: Path) -> None:
    grids = {"stem.0": InputGrid(8, 0.02, 3), "stages.0.conv2": InputGrid(4, 0.1, 0)}
    saved = checkpoint().narrowed(
        {"head.weight": MinMax(per_channel=True).constrain(torch.ones(5, 8))}, grids, CLAMPS
    )
    save(saved, tmp_path)
    loaded = load(tmp_path)
    assert loaded.clamps == saved.clamps
    assert loaded.grids == saved.grids
    assert loaded.constraints["head.weight"].range == saved.constraints["head.weight"].range
    assert torch.equal(predict(loaded.module, IMAGES), predict(saved.module, IMAGES))
    described = json.loads((tmp_path / "model.json").read_text())["inputs"]
    assert described["stem.0"] == {
        "bits": 8,
        "scale": 0.02,
        "zero_point": 3,
        "range": [0.1, 0.75],
    }
    assert described["stages.1.conv2"] == {"range": [None, 0.5]}
    assert described["head"] == {"range": "8"}  # the bounds' shape; they lie among the floats
    again = tmp_path / "again"
    again.mkdir()
    save(loaded, again)
    for file in ("model.safetensors", "model.json"):
        assert (tmp_path / file).read_bytes() == (again / file).read_bytes()


def test_a_clamp_without_its_bounds_is_told_in_words(tmp_path: Path) -> None:
    save(checkpoint().narrowed({}, clamps=CLAMPS), tmp_path)
    floats = load_file(tmp_path / "model.safetensors")["floats"]
    redescribe(tmp_path, {}, safetensors.torch.save({"floats": floats[:3].clone()}))
    with pytest.raises(DecantError, match=r"numbers expected, \d+ are left"):
        load(tmp_path)


def test_a_lost_or_widened_clamp_is_told() -> None:
    parent = checkpoint().narrowed({}, clamps={"head": Range(0, 0.5)})
    check_invariants(parent, parent.narrowed({}, clamps={"head": Range(0.1, 9)}))
    for wider in ({}, {"head": Range(0, 0.6)}):
        with pytest.raises(DecantError, match=r"head: its inputs are no longer cut to the range \[0, 0\.5\]"):
            check_invariants(parent, replace(parent, clamps=wider))


def test_the_ledger_says_what_inputs_are_cut_to() -> None:
    parent = checkpoint()
    child = parent.narrowed({}, {"head": InputGrid(8, 0.25, 3)}, CLAMPS)
    holds = {entry.name: entry.holds for entry in compare(parent, child, {})}
    assert holds["stem.0.weight"] == "inputs in range [0.1, 0.75]"
    assert holds["head.weight"] == "inputs in range per channel within [0, 0.8], inputs in 8 bits, step 0.25"
    assert holds["head.bias"] == ""
    with pytest.raises(DecantError, match="changed nothing"):
        compare(child, child.narrowed({}, clamps=CLAMPS), {})


def test_clamps_that_do_not_meet_are_refused_by_layer() -> None:
    parent = checkpoint().narrowed({}, clamps={"head": Range(0, 0.5)})
    with pytest.raises(ValueError, match=r"inputs of head: A range from 0\.6 to 0\.5 holds no number"):
        parent.narrowed({}, clamps={"head": Range(0.6, 0.7)})


def test_the_gradient_passes_inside_a_clamp_only() -> None:
    module = build(Mlp(hidden=(3,)), (1, 1, 4), 2, seed=0).eval()
    parent = Checkpoint(Mlp(hidden=(3,)), (1, 1, 4), ("a", "b"), module)
    child = parent.narrowed({}, clamps={"layers.0": Range(0.2, 0.8)})
    inputs = torch.tensor([0.1, 0.3, 0.7, 0.9]).reshape(1, 1, 1, 4).requires_grad_()
    child.module.get_submodule("layers.0")(inputs.flatten(1)).square().sum().backward()
    assert inputs.grad is not None
    assert (inputs.grad.flatten() != 0).tolist() == [False, True, True, False]


def test_clip_params_keep_what_recipes_there_are() -> None:
    old = {"op": "clip", "from": "teacher", "cut": {"kind": "percentile", "keep": 0.999}}
    block = validate(old, ClipParams)
    assert (block.target, block.images) == ("weights", 1000)
