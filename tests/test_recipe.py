"""A whole block with `op: quantize`: what goes together, and what the stage makes of it on real images."""

import copy
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from decant.checkpoints.activations import DynamicGrid, InputGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.files import size_bytes
from decant.compression.finish import begun
from decant.errors import DecantError
from decant.lowering.folding import folded
from decant.lowering.integers import settled
from decant.networks.architectures import Resnet, build
from decant.networks.layers import Summand
from decant.networks.structure import compressible
from decant.quantize import recipe
from decant.quantize.params import QuantizeParams
from decant.quantize.schemes import Binary, Integer
from decant.schema import Section
from tasks.pipeline.lineages import MODELS
from tasks.pipeline.models import load_model
from tasks.pipeline.params import read_yaml, validate
from tasks.pipeline.step import begin
from tasks.pipeline.step import write as write_model
from tasks.quantize import __main__ as stage
from tests.imports import OPERATIONS
from tests.slow import slow_but

BLOCK: dict[str, Any] = {"op": "quantize", "from": "teacher", "scheme": {"kind": "integer", "bits": 4}}
WIDE: dict[str, Any] = {"kind": "integer", "bits": 8}
TRAIN: dict[str, Any] = {
    "kind": "ste",
    "training": {"epochs": 1, "batch_size": 64, "optimizer": {"kind": "sgd", "learning_rate": 0.02}},
}
NET = Resnet(widths=(8, 16), blocks=(1, 1))
CLASSES = tuple("0123456789")


# --- what goes together


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"fold": False, "equalize": True}, "equalize needs a bias in every layer: take fold: true"),
        ({"fold": False, "correct_bias": True}, "correct_bias needs a bias in every layer: take fold: true"),
        ({"smooth": 0.5}, "smooth helps inputs that are rounded: give activations, or leave it out"),
        ({"smooth": 1.0, "activations": {}}, "smooth: .*less than 1"),
        ({"images": 0}, "images: .*greater than 0"),
        ({"activations": {"bits": 9}}, r"activations\.bits: .*less than or equal to 8"),
        ({"activations": {"bits": 0}}, r"activations\.bits: .*greater than or equal to 1"),
        (
            {"activations": {"dynamic": True, "range": {"kind": "mse"}}},
            "dynamic inputs take the range of each",
        ),
        ({"activations": {"rows": True}}, "rows: only dynamic inputs have a range for each row"),
        (
            {"activations": {"bits": 1}},
            r"bits: 1 needs range: \{kind: mse\}, as only inputs above half .*; got range min-max",
        ),
        (
            {"activations": {"bits": 1, "range": {"kind": "percentile", "keep": 0.99}}},
            r"bits: 1 needs range: \{kind: mse\}, as only inputs .*; got range percentile",
        ),
        (
            {"activations": {"bits": 1, "dynamic": True}},
            r"bits: 1 needs range: \{kind: mse\}, .*; got dynamic: leave it out",
        ),
        (
            {"activations": {"range": {"kind": "min-max", "per_channel": True}}},
            "inputs are rounded per tensor; clip them per channel first",
        ),
        (
            {"train": TRAIN, "rounding": {"kind": "gptq"}},
            "rounding is undone by training: leave out rounding, or train",
        ),
        ({"train": TRAIN, "equalize": True}, "equalize is undone by training"),
        ({"train": TRAIN, "smooth": 0.5, "activations": {}}, "smooth is undone by training"),
        ({"train": TRAIN, "correct_bias": True}, "correct_bias is undone by training"),
        ({"train": TRAIN, "activations": {"dynamic": True}}, "grids of inputs that stand still: leave out"),
        ({"train": {**TRAIN, "kind": "ttq"}}, r"train\.kind: ttq trains weights of the scheme ternary"),
        (
            {"mixed": {"budget": {"bytes": 0.2}}, "scheme": {"kind": "ternary"}},
            "mixed chooses widths of integers, got scheme ternary",
        ),
        (
            {"mixed": {"budget": {"bytes": 0.2}}, "scheme": {**WIDE, "per_channel": False}, "train": TRAIN},
            "mixed counts one scale for each tensor, .*: take per_channel: true, or fold: false",
        ),
        ({"rounding": {"kind": "gptk"}}, "unknown kind 'gptk'; did you mean 'gptq'"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_with_what_to_take(more: dict[str, Any], words: str) -> None:
    with pytest.raises(DecantError, match=words):
        validate(copy.deepcopy(BLOCK | more), QuantizeParams, "models.q")


def test_one_bit_of_inputs_is_allowed_with_its_range_and_two_bits_with_any() -> None:
    for activations in (
        {"bits": 1, "range": {"kind": "mse"}},
        {"bits": 2},
        {"bits": 2, "range": {"kind": "percentile", "keep": 0.99}},
        {"bits": 2, "dynamic": True},
    ):
        block = validate(copy.deepcopy(BLOCK | {"activations": activations}), QuantizeParams)
        assert block.activations.bits == activations["bits"]


def test_ends_are_wide_by_default_for_signs_alone() -> None:
    def ends(**more: Any) -> Integer | None:
        block: QuantizeParams = validate(BLOCK | more, QuantizeParams)
        return block.ends

    assert ends() is None
    assert ends(scheme={"kind": "ternary"}) is None
    assert ends(scheme={"kind": "binary"}) == Integer(bits=8)
    assert ends(scheme={"kind": "binary"}, first_and_last="same") is None
    assert ends(first_and_last={"kind": "integer", "bits": 6}) == Integer(bits=6)


# --- the stage, on the digits


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the digits and a teacher whose batch norms do something."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write({})
        importlib.import_module("tasks.prepare.__main__").main()
        torch.manual_seed(2)
        module = build(NET, (1, 8, 8), 10, seed=1)
        with torch.no_grad():
            for layer in module.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.weight.uniform_(-0.5, 1.5)
                    layer.bias.uniform_(-0.3, 0.3)
                    layer.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
                    layer.running_var.uniform_(0.2, 1.0)  # type: ignore[union-attr]
        teacher = Checkpoint(NET, (1, 8, 8), CLASSES, module.eval())
        write_model(begin("teacher", "teacher", "teacher", Section), begun(teacher, []))
    return folder


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)


def write(models: dict[str, Any]) -> None:
    counts = dict.fromkeys((*OPERATIONS, "teacher", "evaluate"), 1)
    data = {"source": "digits", "validation": 100}
    content = {"seed": 1, "threads": counts, "data": data, "teacher": {}, "models": models}
    Path("params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def made(
    images: Path, patch: pytest.MonkeyPatch, name: str = "quantized", **more: Any
) -> tuple[Checkpoint, dict[str, Any], dict[str, dict[str, Any]]]:
    """Return what the stage wrote: the model, the last step of its lineage, its ledger by name."""
    patch.chdir(images)
    # Beside those that it may be made from.
    earlier = {model: block for model, block in (read_yaml().get("models") or {}).items() if model != name}
    write(earlier | {name: copy.deepcopy(BLOCK | more)})
    stage.main(name)
    folder = MODELS / name
    ledger = json.loads((folder / "ledger.json").read_text())
    model = load_model(name)
    return model, dict(model.lineage[-1]), {entry["name"]: entry for entry in ledger}


def widths(model: Checkpoint) -> dict[str, int]:
    return {name: held.levels.bits for name, held in model.constraints.items() if held.levels is not None}


def test_weights_alone(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, step, ledger = made(images, monkeypatch)
    assert model.folded
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.module.modules())
    assert widths(model) == dict.fromkeys(compressible(model.module), 4)
    assert model.grids == {}
    assert step["folded"].startswith("6 batch norms, logits move by at most")
    assert ledger["head.bias"]["untouched"] == "bias"


def test_what_the_ledger_cannot_tell_is_printed(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(**more: Any) -> list[str]:
        made(images, monkeypatch, **more)
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("  note: ")]

    sides, option = printed(scheme={"kind": "integer", "bits": 8}, activations={"bits": 8})
    assert "additions are rounded to 8 bits as well: stages.0.branch, stages.0.carried" in sides
    assert "layers have codes of which two products do not fit 16 bits: on x86-64 without VNNI" in option
    assert "session.x64quantprecision = 1, or take weights of 7 bits" in option
    assert printed(scheme={"kind": "integer", "bits": 7}, activations={"bits": 8}) == [sides]
    assert printed(scheme={"kind": "integer", "bits": 8}) == []


def test_what_is_made_of_such_a_model_tells_it_again(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"scheme": {"kind": "integer", "bits": 8}, "activations": {"bits": 8}}
    made(images, monkeypatch, **more)
    capsys.readouterr()
    pruned = {
        "op": "prune",
        "from": "quantized",
        "criterion": {"kind": "magnitude"},
        "budget": {"sparsity": 0.5},
    }
    write({"quantized": BLOCK | more, "pruned": pruned})
    importlib.import_module("tasks.prune.__main__").main("pruned")
    assert "codes of which two products do not fit 16 bits" in capsys.readouterr().out


def test_batch_norms_stay_where_they_are_asked_to(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, step, _ = made(images, monkeypatch, fold=False)
    assert not model.folded
    assert "folded" not in step
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in model.module.modules()) == 6


@pytest.mark.parametrize("bits", [8, 4, 1])
def test_static_inputs_and_additions(images: Path, monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    inputs = {"bits": bits, "range": {"kind": "mse"}}
    scheme = {"kind": "binary"} if bits == 1 else BLOCK["scheme"]  # wide ends by default, and when asked for
    more = {} if bits == 1 else {"first_and_last": WIDE}
    model, _, ledger = made(images, monkeypatch, scheme=scheme, activations=inputs, **more)
    layers = [name.removesuffix(".weight") for name in compressible(model.module)]
    sums = [name for name, layer in model.module.named_modules() if isinstance(layer, Summand)]
    assert len(sums) == 4
    # What the first convolution gives is read by a convolution and by an addition: it is rounded before both.
    ends = [layers[0], layers[-1], *sums, "stages.0"]
    expected = dict.fromkeys(layers, bits) | dict.fromkeys(ends, 8)
    assert all(isinstance(grid, InputGrid) for grid in model.grids.values())
    assert {name: grid.bits for name, grid in model.grids.items()} == expected
    # Biases are written as integer kernels add them: to round them again changes nothing.
    again = settled(model)
    for name, parameter in again.module.named_parameters():
        assert torch.equal(parameter, model.module.get_parameter(name))
    # That it moved them is told.
    assert ledger["head.bias"]["changed"] == 10
    assert ledger["head.bias"]["untouched"] == ""


def test_dynamic_inputs_leave_additions_and_biases_alone(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, ledger = made(images, monkeypatch, activations={"dynamic": True})
    assert model.grids == {n.removesuffix(".weight"): DynamicGrid(8) for n in compressible(model.module)}
    assert ledger["head.bias"]["changed"] == 0


def test_rows_of_linear_layers_have_their_own_ranges(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rows in (True, ["head"]):
        model, _, _ = made(images, monkeypatch, activations={"dynamic": True, "rows": rows})
        assert {name for name, grid in model.grids.items() if grid == DynamicGrid(8, rows=True)} == {"head"}
        assert len(model.grids) == len(compressible(model.module))
    for rows, words in ((["haed"], "rows names no layer 'haed'; did you mean"), (["stem"], "is no linear")):
        with pytest.raises(DecantError, match=words):
            made(images, monkeypatch, activations={"dynamic": True, "rows": rows})


def test_a_layer_is_skipped_and_the_ends_are_wide(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"skip": ["stages.0.conv1"], "first_and_last": WIDE, "scheme": {"kind": "binary"}}
    model, _, ledger = made(images, monkeypatch, **more)
    names = list(compressible(model.module))
    expected = dict.fromkeys(names, 1) | {names[0]: 8, names[-1]: 8}
    del expected["stages.0.conv1.weight"]
    assert widths(model) == expected
    assert ledger["stages.0.conv1.weight"]["untouched"] == "named in skip"


@pytest.mark.parametrize("train", slow_but((None,), (None, TRAIN)), ids=["rounded", "trained"])
def test_mixed_widths_keep_to_the_budget(
    images: Path, monkeypatch: pytest.MonkeyPatch, train: dict[str, Any] | None
) -> None:
    monkeypatch.chdir(images)
    made(images, monkeypatch, "uniform")
    limit = size_bytes(MODELS / "uniform")
    more = {"mixed": {"budget": {"bytes": limit}, "images": 100}} | ({"train": train} if train else {})
    model, step, ledger = made(images, monkeypatch, **more)
    used = size_bytes(MODELS / "quantized")
    assert used <= limit
    assert step["budget"] == f"{used:,} of {limit:,} bytes"
    assert len(set(widths(model).values())) > 1
    for name, bits in widths(model).items():
        assert ledger[name]["chosen"] == f"{bits} bits"
        assert list(ledger[name]["tried"]) == [f"{width} bits" for width in (2, 3, 4, 5, 6, 8)]


@pytest.mark.parametrize("train", [None, TRAIN], ids=["rounded", "trained"])
def test_steps_count_as_learned_where_a_training_follows(
    images: Path, monkeypatch: pytest.MonkeyPatch, train: dict[str, Any] | None
) -> None:
    def asked(*_: Any, learned: bool, **__: Any) -> None:
        raise DecantError(f"learned: {learned}")

    monkeypatch.setattr(recipe, "allocate", asked)
    more = {"mixed": {"budget": {"bytes": 0.2}}, "activations": {}} | ({"train": train} if train else {})
    with pytest.raises(DecantError, match=f"learned: {train is not None}"):
        made(images, monkeypatch, **more)


def test_a_trained_model_is_on_its_levels_folded_at_the_end_and_the_same_twice(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = {"kind": "temperature", "temperature": 8.0, "hard": 0.1}
    more = {
        "scheme": {"kind": "binary", "balanced": True},
        "activations": {"bits": 4, "range": {"kind": "mse"}},
        "train": {**TRAIN, "kind": "error-decay", "loss": loss},
    }
    model, step, _ = made(images, monkeypatch, **more)
    assert model.folded
    for name, held in model.constraints.items():
        weight = model.module.get_parameter(name)
        assert torch.equal(held.project(weight), weight)
    inner = [name for name, bits in widths(model).items() if bits == 1]
    assert len(inner) == len(list(compressible(model.module))) - 2
    assert step["warning"].startswith("loss.temperature: 8 is more than 1-bit weights can follow")
    assert (MODELS / "quantized" / "curve.csv").exists()
    first = (MODELS / "quantized" / "model.safetensors").read_bytes()
    made(images, monkeypatch, **more)
    assert (MODELS / "quantized" / "model.safetensors").read_bytes() == first


def test_the_rest_of_a_model_is_trained_and_the_levels_that_were_there_hold(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that have levels are trained on them; folding gives their scales another unit, and no more."""
    parent, _, _ = made(images, monkeypatch, "partly", fold=False, skip=["head"])
    kept = [name for name in compressible(parent.module) if name != "head.weight"]
    unfolded: list[Checkpoint] = []

    def seen(checkpoint: Checkpoint) -> Checkpoint:
        unfolded.append(checkpoint)
        return folded(checkpoint)

    monkeypatch.setattr(recipe, "folded", seen)
    skip = [name.removesuffix(".weight") for name in kept]
    model, _, _ = made(images, monkeypatch, "rest", **{"from": "partly"}, skip=skip, train=TRAIN)
    _, child, _ = unfolded  # the parent is folded before, and for the comparison after
    assert model.folded
    assert not child.folded
    assert widths(model) == dict.fromkeys([*kept, "head.weight"], 4)
    for name in kept:
        earlier, trained, after = (m.constraints[name].levels for m in (parent, child, model))
        first, last = child.module.get_parameter(name), model.module.get_parameter(name)
        assert earlier is not None
        assert after is not None
        assert earlier.equals(trained), name
        assert torch.equal(after.values, earlier.values), name
        assert not torch.equal(after.scale, earlier.scale), name
        assert torch.equal(after.project(last), last), name
        assert torch.equal(after.codes(last), earlier.codes(first)), name


def test_what_is_rounded_already_is_refused_and_what_was_there_stays(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(images, monkeypatch, "once", activations={})
    before = (MODELS / "once" / "model.safetensors").read_bytes()
    with pytest.raises(DecantError, match=r"of once is quantized already; quantize one of its ancestors"):
        made(images, monkeypatch, "twice", **{"from": "once"})
    assert (MODELS / "once" / "model.safetensors").read_bytes() == before


def test_another_function_after_folding_is_refused(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "moved", lambda *_: (0.002, 1.0))
    with pytest.raises(DecantError, match=r"teacher is another function once folded: .*0\.002, their spread"):
        made(images, monkeypatch)


def test_balanced_signs_are_those_of_the_shifted_weights(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, _ = made(images, monkeypatch, scheme={"kind": "binary", "balanced": True})
    teacher = folded(load_model("teacher"))
    name = "stages.1.conv2.weight"
    shifted = Binary(balanced=True).shifted(teacher.module.get_parameter(name).detach(), None, 0)
    assert torch.equal(model.module.get_parameter(name) > 0, shifted >= 0)
