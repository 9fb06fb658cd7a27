"""The ledger counts exactly, names what it leaves alone, and lets no operation do nothing or undo another."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from decant.checkpoints.activations import InputGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import Constraints, Range
from decant.checkpoints.files import load
from decant.compression.finish import begun, finished
from decant.compression.invariants import check_invariants
from decant.compression.ledger import as_json, compare, created, lines
from decant.compression.selection import select
from decant.errors import DecantError
from decant.networks.architectures import Mlp, Resnet, build
from decant.networks.structure import compressible
from decant.prune.params import PruneParams
from decant.quantize.schemes import Integer
from tasks.pipeline.splits import TRAIN, read
from tasks.pipeline.step import Step, begin_model, write
from tests.homes import home, noise

FIRST, LAST = "layers.0.weight", "layers.2.weight"


def checkpoint() -> Checkpoint:
    architecture = Mlp(hidden=(5,))
    module = build(architecture, (1, 2, 2), 3, seed=0).eval()
    return Checkpoint(architecture, (1, 2, 2), tuple("abc"), module)


def masked(rows: int) -> Constraints:
    mask = torch.ones(5, 4).bool()
    mask[:rows] = False
    return Constraints(mask=mask)


# --- select


def test_all_layers_are_chosen_and_the_rest_has_a_reason() -> None:
    chosen, untouched = select(checkpoint().module, [])
    assert chosen == [FIRST, LAST]
    assert untouched == {
        "layers.0.bias": "bias",
        "layers.2.bias": "bias",
    }


def test_every_parameter_is_chosen_or_has_a_reason() -> None:
    module = build(Resnet(widths=(4, 8), blocks=(1, 1)), (1, 8, 8), 3, seed=0)
    chosen, untouched = select(module, ["head", "stages.1.shortcut.0"])
    assert {*chosen, *untouched} == {name for name, _ in module.named_parameters()}
    assert not {*chosen} & {*untouched}
    assert untouched["head.weight"] == untouched["stages.1.shortcut.0.weight"] == "named in skip"
    assert untouched["head.bias"] == "bias"


def test_a_layer_that_there_is_not_is_refused_with_the_nearest() -> None:
    with pytest.raises(DecantError, match=r"skip names no layer 'layer\.0'; did you mean 'layers\.0'\?"):
        select(checkpoint().module, ["layer.0"])
    with pytest.raises(DecantError, match=r"no layer 'zzz'; known are layers\.0, layers\.2"):
        select(checkpoint().module, ["layers.0", "zzz"])


def test_skipping_every_layer_is_refused() -> None:
    with pytest.raises(DecantError, match=r"skip names every layer there is: layers\.0, layers\.2"):
        select(checkpoint().module, ["layers.0", "layers.2"])


# --- compare


def test_counts_are_exact() -> None:
    parent = checkpoint()
    child = parent.narrowed({FIRST: masked(3)})
    with torch.no_grad():
        child.module.get_parameter("layers.2.bias")[0] += 1
    entries = {entry.name: entry for entry in compare(parent, child, {"layers.0.bias": "because"})}
    assert list(entries) == [name for name, _ in child.module.named_parameters()]
    first = entries[FIRST]
    assert (first.weight, first.count, first.changed, first.zeros) == (True, 20, 12, 12)
    assert (first.holds, first.untouched) == ("mask 60.00% zero", "")
    assert (entries[LAST].changed, entries[LAST].zeros, entries[LAST].holds) == (0, 0, "")
    assert (entries["layers.2.bias"].changed, entries["layers.2.bias"].weight) == (1, False)
    assert entries["layers.0.bias"].untouched == "because"


def test_zeros_that_are_held_from_now_on_are_a_change() -> None:
    parent = checkpoint()
    with torch.no_grad():
        parent.module.get_parameter(FIRST).copy_(masked(2).project(parent.module.get_parameter(FIRST)))
    (first, *_) = compare(parent, parent.narrowed({FIRST: masked(2)}), {})
    assert (first.changed, first.holds) == (0, "mask 40.00% zero")


def test_a_range_that_cuts_nothing_and_a_mask_that_holds_nothing_are_no_change() -> None:
    parent = checkpoint().narrowed({FIRST: masked(2)})
    for same in (replace(masked(2), range=Range(-9, 9)), masked(2)):
        with pytest.raises(DecantError, match="changed nothing"):
            compare(parent, parent.narrowed({FIRST: same}), {})
    whole = Constraints(mask=torch.ones_like(checkpoint().module.get_parameter(LAST), dtype=torch.bool))
    with pytest.raises(DecantError, match="changed nothing"):
        compare(parent, parent.narrowed({LAST: whole}), {})


def test_rounded_inputs_alone_are_a_change() -> None:
    parent = checkpoint()
    child = parent.narrowed({}, {"layers.2": InputGrid(8, 0.25, 3)})
    entries = {entry.name: entry for entry in compare(parent, child, {})}
    assert entries[LAST].holds == "inputs in 8 bits, step 0.25"
    assert entries["layers.2.bias"].holds == ""


def test_an_operation_that_changed_nothing_fails() -> None:
    parent = checkpoint().narrowed({FIRST: masked(2)})
    with pytest.raises(DecantError, match=r"changed nothing: .*ask for more .* or remove the model's block"):
        compare(parent, parent.narrowed({FIRST: masked(2)}), {})
    with pytest.raises(DecantError, match="changed nothing"):
        compare(parent, parent.narrowed({}), {})


def test_a_fresh_network_is_all_new() -> None:
    teacher = checkpoint()
    entries = created(teacher)
    assert [(e.count, e.changed, e.zeros, e.holds, e.untouched) for e in entries] == [
        (count, count, 0, "", "") for count in (20, 5, 15, 3)
    ]
    assert [entry.weight for entry in entries] == [True, False, True, False]


# --- invariants


def parent_of_all_kinds() -> Checkpoint:
    parent = checkpoint()
    levels = Integer(bits=4).levels(parent.module.get_parameter(LAST))
    held = {FIRST: masked(3), LAST: Constraints(range=Range(-0.4, 0.4), levels=levels)}
    return parent.narrowed(held, {"layers.2": InputGrid(8, 0.25, 3)})


def test_a_sound_child_passes() -> None:
    parent = parent_of_all_kinds()
    check_invariants(parent, parent)
    check_invariants(parent, parent.narrowed({FIRST: parent.constraints[FIRST].narrow(range=Range(-1, 1))}))
    check_invariants(checkpoint(), parent)


def test_a_revived_weight_is_named() -> None:
    parent = parent_of_all_kinds()
    child = parent.narrowed({})
    with torch.no_grad():
        child.module.get_parameter(FIRST)[1, 1] = 0.5
    with pytest.raises(DecantError, match=r"layers\.0\.weight: 1 of 12 masked weights are not zero"):
        check_invariants(parent, child)


def test_everything_that_was_lost_is_told_at_once() -> None:
    parent = parent_of_all_kinds()
    with pytest.raises(DecantError) as told:
        check_invariants(parent, checkpoint())
    assert str(told.value).splitlines() == [
        "The operation broke what an earlier one did:",
        "  layers.0.weight: 12 of 12 masked weights are not zero",
        "  layers.0.weight: the mask was lost or widened",
        "  layers.2.weight: the quantization levels were lost or changed",
        "  layers.2.weight: the range [-0.4, 0.4] was lost or widened",
        "  layers.2: its inputs are no longer rounded as they were",
    ]


def test_another_input_grid_is_a_lost_one() -> None:
    parent = parent_of_all_kinds()
    child = replace(parent, grids={"layers.2": InputGrid(8, 0.5, 3)})
    with pytest.raises(DecantError, match=r"layers\.2: its inputs are no longer rounded as they were"):
        check_invariants(parent, child)


# --- print


def test_what_is_printed() -> None:
    parent = checkpoint()
    chosen, untouched = select(parent.module, ["layers.2"])
    assert lines("small: prune", compare(parent, parent.narrowed({chosen[0]: masked(3)}), untouched)) == [
        "small: prune",
        "  layers.0.weight        12 of       20 changed   60.00% zero  mask 60.00% zero",
        "  untouched: 2 (8 parameters), bias: layers.0.bias, layers.2.bias",
        "  untouched: 1 (15 parameters), named in skip: layers.2.weight",
    ]


def test_long_lists_are_cut_and_other_parameters_are_one_line() -> None:
    architecture = Resnet(widths=(4, 8), blocks=(1, 1))
    module = build(architecture, (1, 8, 8), 3, seed=0)
    teacher = Checkpoint(architecture, (1, 8, 8), tuple("abc"), module)
    text = lines("teacher", created(teacher))
    assert len(text) == 1 + len(compressible(module)) + 1
    others = sum(p.numel() for name, p in module.named_parameters() if name not in compressible(module))
    assert text[-1].split() == f"biases and batch norms {others} of {others} changed".split()
    chosen, untouched = select(module, [])
    child = teacher.narrowed({chosen[0]: Constraints(range=Range(-0.01, 0.01))})
    *_, norms, biases = lines("x", compare(teacher, child, untouched))
    assert norms.endswith(", batch norm: stem.1.weight, stem.1.bias, stages.0.norm1.weight …")
    assert biases.endswith(", bias: head.bias")


# --- a whole step


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    small = {
        "op": "prune",
        "from": "teacher",
        "criterion": {"kind": "magnitude"},
        "budget": {"sparsity": 0.5},
    }
    params = {"seed": 7, "threads": {"prune": 1}, "models": {"small": small}}
    with home(tmp_path, noise((1, 2, 2), train=12, validation=12), params) as folder:
        yield folder


def step() -> Step[PruneParams]:
    return begin_model("small", PruneParams)


def test_a_step_writes_the_model_its_ledger_and_its_lineage(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = replace(checkpoint(), lineage=({"op": "teacher", "name": "teacher"},))
    child = parent.narrowed({FIRST: masked(3)})
    result = finished(parent, child, {LAST: "because"}, facts={"drawn": 3}, note="mind the step")
    write(step(), result)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [*lines("small: prune", result.ledger), "  drawn 3", "  note: mind the step"]
    folder = place / "models/small"
    assert sorted(path.name for path in folder.iterdir()) == [
        "ledger.json",
        "lineage.json",
        "model.json",
        "model.safetensors",
    ]
    ledger = json.loads((folder / "ledger.json").read_text())
    assert ledger == as_json(compare(parent, child, {LAST: "because"}))
    assert [entry["changed"] for entry in ledger] == [12, 0, 0, 0]
    earlier, own = load(place / "models" / "small").lineage
    assert earlier == {"op": "teacher", "name": "teacher"}
    assert (own["name"], own["op"], own["from"]) == ("small", "prune", "teacher")
    assert own["budget"]["sparsity"] == 0.5
    assert own["criterion"]["kind"] == "magnitude"
    assert (own["seed"], own["threads"]) == (step().seed, 1)
    assert own["data"].startswith("sha256:")
    assert own["params"]["budget"] == {"sparsity": 0.5}
    assert own["versions"] == {"torch": torch.__version__}
    assert own["drawn"] == 3
    assert list((place / "models").iterdir()) == [folder]


def test_the_same_step_writes_the_same_bytes(place: Path) -> None:
    parent = checkpoint()
    contents = []
    for _ in range(2):
        write(step(), finished(parent, parent.narrowed({FIRST: masked(3)}), {}))
        folder = place / "models/small"
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]


def test_a_curve_is_written_where_there_is_one(place: Path) -> None:
    curve = [{"epoch": 1, "loss": 1 / 3}, {"epoch": 2, "loss": 0.25}]
    write(step(), begun(checkpoint(), curve))
    assert (place / "models/small/curve.csv").read_text() == "epoch,loss\n1.0,0.333333\n2.0,0.25\n"


@pytest.mark.parametrize("before", [True, False])
def test_a_failed_step_leaves_what_was_there(place: Path, before: bool) -> None:
    parent = checkpoint()
    child = parent.narrowed({FIRST: masked(3)})
    if before:
        write(step(), finished(parent, child, {}))
    content = sorted((path, path.read_bytes()) for path in place.glob("models/*/*"))
    with pytest.raises(DecantError, match="changed nothing"):
        write(step(), finished(child, child, {}))
    with pytest.raises(DecantError, match="broke what an earlier one did"):
        write(step(), finished(child, parent, {}))
    broken = parent.narrowed({FIRST: masked(2)})
    with torch.no_grad():
        broken.module.get_parameter(LAST)[0, 0] = torch.nan
    with pytest.raises(DecantError, match="holds NaN"):
        write(step(), finished(parent, broken, {}))
    assert sorted((path, path.read_bytes()) for path in place.glob("models/*/*")) == content
    assert not list(place.glob("models/.*"))


def test_a_block_of_another_operation_is_sent_to_its_own(place: Path) -> None:
    text = Path("params.yaml").read_text().replace("op: prune", "op: clip")
    Path("params.yaml").write_text(text)
    with pytest.raises(DecantError, match=r"small is made by clip: run `python -m tasks\.clip small`"):
        step()
    with pytest.raises(DecantError, match=r"models has no 'smal'; did you mean 'small'\?"):
        begin_model("smal", PruneParams)


def test_no_table_no_step(place: Path) -> None:
    (place / TRAIN).unlink()
    with pytest.raises(DecantError, match=r"No data/train\.parquet; run `dvc repro prepare`"):
        read(TRAIN)
