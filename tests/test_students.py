"""Students: proposed from a budget, begun from the teacher's weights, pruned, quantized, of two teachers."""

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from decant.checkpoints.checkpoint import Checkpoint
from decant.compression.coupling import groups_of
from decant.costs.counts import macs, parameters
from decant.costs.divergence import softened_kl
from decant.distill import distill
from decant.distill.cache import key_of, remember_
from decant.distill.params import DistillParams
from decant.distill.students import Proposed, StudentBudget, inherit_, narrowed, propose
from decant.errors import DecantError
from decant.examples import Splits
from decant.finetune import finetune
from decant.networks.architectures import Lenet5, Lenet300100, Mlp, Resnet, build
from decant.prune import prune
from decant.quantize import quantize
from decant.row_groups import RowGroups
from decant.targets import Tokens
from decant.training.ensemble import Mean
from decant.training.logit_losses import Outputs, Temperature
from decant.training.losses import against_teacher
from decant.training.resume import Scratch
from decant.training.run import Run
from tasks.pipeline.params import validate
from tests.nets import striped
from tests.test_validate import chain, complaints

SPLITS = Splits(striped(0), striped(1, 48))
FAMILY = Resnet(widths=(8, 16), blocks=(1, 2))
TRAINING = {"epochs": 1, "batch_size": 32, "optimizer": {"kind": "sgd", "learning_rate": 0.05}}
HINTS = {"kind": "hints", "layers": {"stages.1": "stages.2"}, "hard": 0.5}


def parent(architecture: Any = FAMILY, seed: int = 2) -> Checkpoint:
    classes = SPLITS.train.classes
    return Checkpoint(architecture, (1, 8, 8), classes, build(architecture, (1, 8, 8), 3, seed).eval())


def distilled(of: Checkpoint | None = None, **changes: Any) -> Any:
    block = {
        "student": {"kind": "resnet", "widths": [4, 8], "blocks": [1, 1]},
        "loss": {"kind": "temperature"},
        "training": TRAINING,
    }
    teacher = changes.pop("teacher", None)
    return distill(of or parent(), block | changes, SPLITS, teacher=teacher, run=Run("test", 1))


# --- proposed


@pytest.mark.parametrize("architecture", [FAMILY, Mlp(hidden=(40, 10)), Lenet300100()])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_a_student_is_the_widest_of_its_family_within_the_budget(architecture: Any, share: float) -> None:
    shape = (1, 8, 8)
    whole = build(architecture, shape, 3, 0)
    for measure, cost in (("kib", lambda net: 4 * parameters(net) / 1024), ("macs", macs)):
        budget = share * cost(whole)
        found = propose(Proposed(budget=StudentBudget(**{measure: budget})), architecture, shape, 3)
        widths = getattr(found, "widths", None) or found.hidden
        largest = getattr(architecture, "widths", None) or getattr(architecture, "hidden", (300, 100))
        assert cost(build(found, shape, 3, 0)) <= budget
        if share == 1:
            assert widths == largest
            continue
        scale = (max(widths) + 1) / max(largest)
        field = "widths" if isinstance(found, Resnet) else "hidden"
        next_one = found.model_copy(update={field: tuple(max(1, round(each * scale)) for each in largest)})
        assert cost(build(next_one, shape, 3, 0)) > budget


def test_a_proposed_student_is_trained_and_the_lineage_says_what_it_is() -> None:
    result = distilled(student={"budget": {"kib": 3}})
    found = result.model.architecture
    assert result.facts["proposed"] == found.model_dump(mode="json")
    assert found.blocks == FAMILY.blocks and found.widths[0] * 2 == found.widths[1]
    assert 4 * parameters(result.model.module) <= 3 * 1024


@pytest.mark.parametrize(
    ("of", "budget", "words"),
    [
        (
            FAMILY,
            {"kib": 0.01},
            r"student\.budget: 0\.01 KiB is less than the narrowest .* has, 0\.\d; raise it",
        ),
        (
            FAMILY,
            {"kib": 1e5},
            r"student\.budget: 100000 KiB is more than the teacher's own .* has, \d+\.\d; lo",
        ),
        (FAMILY, {"macs": 1e9}, r"student\.budget: 1e\+09 macs is more than the teacher's own .*; lower it"),
        (FAMILY, {"macs": 3}, r"student\.budget: 3 macs is less than the narrowest .*; raise it, or name"),
        (Lenet5(), {"kib": 40}, r"student\.budget: lenet-5 has no widths to make smaller; name the student"),
    ],
)
def test_a_budget_that_no_network_meets_is_refused(of: Any, budget: Mapping[str, float], words: str) -> None:
    with pytest.raises(DecantError, match=words):
        propose(validate({"budget": budget}, Proposed), of, (1, 28, 28), 3)


@pytest.mark.parametrize(
    ("student", "words"),
    [
        ({"budget": {}}, "student.budget: give exactly one of kib and macs"),
        ({"budget": {"kib": 1, "macs": 1}}, "student.budget: give exactly one of kib and macs"),
        ({"budget": {"kb": 1}}, "student.budget: unknown key 'kb'; did you mean 'kib'?"),
        ({"kind": "resnett"}, "student: unknown kind 'resnett'; did you mean 'resnet'?"),
        ({"kind": "mlp", "hiden": [3]}, "student: unknown key 'hiden'; did you mean 'hidden'?"),
    ],
)
def test_a_wrong_student_is_refused_in_a_sentence(student: Mapping[str, Any], words: str) -> None:
    block = {"op": "distill", "from": "teacher", "student": student, "loss": {"kind": "softmax"}}
    with pytest.raises(DecantError) as told:
        validate(block | {"training": TRAINING}, DistillParams)
    assert words in str(told.value)


def test_blocks_that_ask_for_nothing_new_are_written_as_ever() -> None:
    block = {"op": "distill", "from": "teacher", "student": {"kind": "mlp", "hidden": [3]}}
    read = validate(block | {"loss": {"kind": "temperature"}, "training": TRAINING}, DistillParams)
    written = read.model_dump(mode="json", by_alias=True)
    assert list(written) == ["op", "from", "student", "loss", "training"]
    assert written["loss"] == {"kind": "temperature", "temperature": 4.0, "hard": 0.1}


# --- begun from the teacher


def test_the_first_channels_of_the_teacher_s_blocks_are_copied() -> None:
    teacher, other = build(FAMILY, (1, 8, 8), 3, 2), Resnet(widths=(4, 8), blocks=(1, 1))
    module = build(other, (1, 8, 8), 3, 5)
    assert inherit_(module, other, teacher, FAMILY) == len(list(module.parameters()))
    for own, theirs in (
        ("stem.0", "stem.0"),
        ("stages.0.conv1", "stages.0.conv1"),
        ("stages.1.conv2", "stages.1.conv2"),
    ):
        weight = module.get_parameter(f"{own}.weight")
        outputs, inputs = weight.shape[:2]
        assert torch.equal(weight, teacher.get_parameter(f"{theirs}.weight")[:outputs, :inputs])


def test_a_stage_that_is_cut_short_keeps_its_own_blocks() -> None:
    deep, flat = Resnet(widths=(4, 8), blocks=(2, 1)), Resnet(widths=(4, 8), blocks=(1, 1))
    teacher, module = build(deep, (1, 8, 8), 3, 2), build(flat, (1, 8, 8), 3, 5)
    inherit_(module, flat, teacher, deep)
    for own, theirs in (("stages.0", "stages.0"), ("stages.1", "stages.2")):
        found, expected = (
            net.get_submodule(at).state_dict() for net, at in ((module, own), (teacher, theirs))
        )
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize(
    ("few", "many", "places"),
    [(2, 4, [0, 2]), (3, 6, [0, 2, 4]), (2, 5, [0, 2]), (3, 3, [0, 1, 2]), (4, 2, [0, 1])],
)
def test_a_student_of_fewer_blocks_begins_with_every_other_one(
    few: int, many: int, places: list[int]
) -> None:
    deep, flat = Resnet(widths=(4, 8), blocks=(many, 1)), Resnet(widths=(4, 8), blocks=(few, 1))
    teacher, module = build(deep, (1, 8, 8), 3, 2), build(flat, (1, 8, 8), 3, 5)
    inherit_(module, flat, teacher, deep)
    for own, theirs in [*enumerate(places), (few, many)]:
        found, expected = (net.get_submodule("stages") for net in (module, teacher))
        weight = f"{own}.conv2.weight", f"{theirs}.conv2.weight"
        assert torch.equal(found.get_parameter(weight[0]), expected.get_parameter(weight[1])), (own, theirs)


class Encoder(torch.nn.Module):
    """Like a transformer: a list of blocks that are all alike, and one that is not."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU(), torch.nn.Linear(3, 3))
        blocks = (torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3)) for _ in range(count))
        self.encoder = torch.nn.ModuleDict({"layer": torch.nn.ModuleList(blocks)})


def test_a_list_of_blocks_is_thinned_out_and_other_lists_are_not() -> None:
    student, teacher = Encoder(3), Encoder(6)
    inherit_(student, None, teacher, None)
    own, theirs = student.state_dict(), teacher.state_dict()
    for name, tensor in own.items():
        first, _, number = name.partition("layer.")
        other = f"{first}layer.{2 * int(number[0])}{number[1:]}" if number else name
        assert torch.equal(tensor, theirs[other]), name
    deeper = Encoder(6)
    inherit_(deeper, None, student, None)
    assert torch.equal(deeper.get_parameter("encoder.layer.2.0.weight"), own["encoder.layer.2.0.weight"])


def test_a_student_of_the_teacher_s_size_begins_as_it() -> None:
    of = parent()
    result = distilled(
        of,
        student=FAMILY.model_dump(),
        start="teacher",
        loss={"kind": "softmax"},
        training=TRAINING | {"optimizer": {"kind": "sgd", "learning_rate": 1e-12}},
    )
    weight = result.model.module.get_parameter("stages.1.conv1.weight")
    assert torch.allclose(weight, of.module.get_parameter("stages.1.conv1.weight"), atol=1e-6)


def sparse_teacher() -> Checkpoint:
    """Of whose eight hidden channels only three are read."""
    of = parent(Mlp(hidden=(8,)))
    with torch.no_grad():
        read = dict(of.module.named_parameters())["layers.2.weight"]
        read[:, [1, 2, 3, 5, 7]] = 0.0
    return of


STILL = TRAINING | {"optimizer": {"kind": "sgd", "learning_rate": 1e-12}, "weight_decay": 0.0}


def test_a_student_begins_with_the_channels_that_matter() -> None:
    of = sparse_teacher()
    student = {"kind": "mlp", "hidden": [3]}
    found = distilled(of, student=student, start="teacher", training=STILL).model.module
    images = SPLITS.validation.images.float() / 255
    with torch.no_grad():
        assert torch.allclose(found(images), of.module(images), atol=5e-3)


def test_what_stays_makes_up_for_the_channels_that_go() -> None:
    of, student = parent(), Resnet(widths=(4, 8), blocks=(1, 2))
    fresh = build(student, (1, 8, 8), 3, 5)
    cut = narrowed(of, groups_of(of), fresh, student, SPLITS.train)
    assert {name: each.shape for name, each in cut.state_dict().items()} == {
        name: each.shape for name, each in fresh.state_dict().items()
    }
    first = copy.deepcopy(fresh)
    inherit_(first, student, of.module, FAMILY)
    images = SPLITS.validation.images.float() / 255
    with torch.no_grad():
        near, far = ((net.eval()(images) - of.module(images)).square().mean().item() for net in (cut, first))
    assert near < 0.5 * far


def test_a_student_begins_with_the_first_channels_where_none_can_be_cut_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> Any:
        raise DecantError("No channels can be removed")

    monkeypatch.setattr("decant.distill.operation.groups_of", refuse)
    result = distilled(start="teacher", training=STILL)
    assert result.notes[-1].startswith("start: teacher: the student begins with the first channels")
    weight = result.model.module.get_parameter("stages.1.conv2.weight")
    whole = parent().module.get_parameter("stages.1.conv2.weight")
    assert torch.allclose(weight, whole[: weight.shape[0], : weight.shape[1]], atol=1e-6)


def test_a_student_of_another_family_has_nothing_to_begin_from() -> None:
    with pytest.raises(DecantError, match="start: teacher: no tensor of the student fits"):
        distilled(student={"kind": "lenet-300-100"}, start="teacher", of=parent(Mlp(hidden=(2,))))


# --- two teachers, and others' data


def test_an_ensemble_matches_the_mean_of_both() -> None:
    one, other = parent(), parent(Mlp(hidden=(8,)), seed=7)
    run = {"loss": {"kind": "temperature", "hard": 0.0}, "ensemble": True, "teacher": other}
    still = TRAINING | {
        "batch_size": 96,
        "optimizer": {"kind": "sgd", "learning_rate": 1e-12},
        "average": 0.0,
    }
    result = distilled(one, **run, training=still)
    alone = distilled(one, loss=run["loss"], training=still)
    assert result.curve[-1]["loss"] != pytest.approx(alone.curve[-1]["loss"], rel=1e-3)
    images = SPLITS.train.images.float() / 255
    mean = (one.module(images) + other.module(images)) / 2
    module = copy.deepcopy(result.model.module).train()
    expected = softened_kl(module(images), mean, 4.0).item()
    assert result.curve[-1]["loss"] == pytest.approx(expected, rel=1e-3)


def test_an_ensemble_of_one_is_refused() -> None:
    of = parent()
    for teacher in (None, of):
        with pytest.raises(DecantError, match="ensemble: there is one teacher alone"):
            distilled(of, ensemble=True, teacher=teacher)
    with pytest.raises(DecantError, match="ensemble: the teachers have other classes or inputs"):
        distilled(of, ensemble=True, teacher=Checkpoint(None, (1, 8, 8), ("a", "b"), parent().module))


@pytest.mark.parametrize(
    ("shape", "classes", "words"),
    [
        ((3, 8, 8), 3, "The teacher takes pictures of 3 x 8 x 8, and these examples are 1 x 8 x 8"),
        ((1, 8, 8), 5, "The teacher tells 5 classes apart, and these examples have 3"),
    ],
)
def test_a_teacher_of_other_data_is_refused(shape: Any, classes: int, words: str) -> None:
    module = build(FAMILY, shape, classes, 2).eval()
    other = Checkpoint(FAMILY, shape, tuple("abcde"[:classes]), module)
    taken = "not what the model takes: pictures of 1 x 8 x 8, expected pictures of 3 x 8 x 8"
    with pytest.raises(DecantError, match=words if shape[0] == 1 else taken):
        distilled(other)
    with pytest.raises(DecantError, match=words):
        finetune(parent(), {"training": TRAINING, "loss": {"kind": "softmax"}}, SPLITS, teacher=other)


# --- answers that are kept

KEPT = {"loss": {"kind": "temperature"}, "training": TRAINING | {"epochs": 3}}


@pytest.mark.parametrize("kept", [False, True])
def test_answers_are_made_once_and_are_those_of_each_batch(kept: bool, tmp_path: Path) -> None:
    of, calls = parent(), list[int]()
    of.module.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    block = {"student": {"kind": "mlp", "hidden": [8]}, **KEPT}
    run = Run("test", 1, (lambda: Scratch(tmp_path / "test", "id")) if kept else None)
    without = distill(of, block, SPLITS, run=Run("test", 1))
    after = len(calls)
    found = distill(of, block | {"cache": True}, SPLITS, run=run)
    asked = 1 if kept else 0  # the first examples, for the key
    assert len(calls) - after == after - 3 * 3 + 1 + asked, "three batches of three epochs, or one of all"
    for name, tensor in found.model.module.state_dict().items():
        assert torch.allclose(tensor, without.model.module.state_dict()[name], atol=1e-4)
    assert re.fullmatch(
        r"the teacher answered once in \d+\.\d s, and 2 times fewer: about \d+ s saved", found.notes[-1]
    )
    files = [each.stem for each in tmp_path.glob("test/*.npy")]
    assert files == ([key_of([of.module], SPLITS.train.images)] if kept else [])
    if kept:
        again = distill(of, block | {"cache": True}, SPLITS, run=run)
        assert re.fullmatch(r"the teacher's answers were read in \d+\.\d s, as it had .*", again.notes[-1])


def test_kept_answers_are_read_and_others_are_not(tmp_path: Path) -> None:
    first, second = (against_teacher(Temperature(), parent(seed=seed).module) for seed in (2, 3))
    remember_(first, SPLITS.train, tmp_path)
    again = against_teacher(Temperature(), parent().module)
    assert remember_(again, SPLITS.train, tmp_path)[1] is False
    assert remember_(second, SPLITS.train, tmp_path)[1] is True
    assert first.known is not None and again.known is not None and second.known is not None
    assert torch.equal(first.known, again.known) and not torch.equal(first.known, second.known)
    assert len(list(tmp_path.glob("*.npy"))) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "one bit", "another file"])
def test_damaged_answers_are_told_and_given_anew(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = against_teacher(Temperature(), parent().module)
    remember_(whole, SPLITS.train, tmp_path)
    (file,) = tmp_path.glob("*.npy")
    assert whole.known is not None
    expected, content = whole.known.clone(), bytearray(file.read_bytes())
    file.unlink()  # it is mapped
    if damage == "one bit":
        content[200] ^= 1
    elif damage == "another file":
        np.save(file, np.zeros((96, 3), np.float32))
        content = bytearray(file.read_bytes())
    file.write_bytes(content[: {"cut": 300, "empty": 0}.get(damage, len(content))])
    again = against_teacher(Temperature(), parent().module)
    assert remember_(again, SPLITS.train, tmp_path)[1] is True
    assert (
        "is not used (it has not the sum that it ends with); the teacher answers" in capsys.readouterr().err
    )
    assert again.known is not None and torch.equal(again.known, expected)
    assert remember_(again, SPLITS.train, tmp_path)[1] is False


def test_teachers_of_the_same_tensors_have_other_keys_where_they_are_other_functions() -> None:
    """The ranges by which inputs of layers are rounded are no tensors of the network."""
    module = parent().module
    rounded = copy.deepcopy(module)
    rounded.register_forward_hook(lambda _, __, outputs: outputs.round())
    images = SPLITS.train.images
    assert key_of([module], images) != key_of([rounded], images)
    assert key_of([module], images) != key_of([module], images, Mean(of="probabilities"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"training": TRAINING | {"augmentation": {"shift": 1}}},
            "cache: augmentation changes images in each",
        ),
        (
            {"loss": {"kind": "similarity", "layers": {"stages.1": "stages.1"}}},
            "cache: keeps outputs, and this",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(changes: Mapping[str, Any], words: str) -> None:
    with pytest.raises(DecantError, match=words):
        distilled(cache=True, **changes)


def test_rows_in_groups_have_the_key_of_the_tensor_that_they_are() -> None:
    pixels = SPLITS.train.images
    assert isinstance(pixels, Tensor)
    groups = tuple(each.flatten(1) for each in pixels.split(40))
    rows = RowGroups(groups, tuple(pixels.shape[1:]), torch.uint8)
    of = [parent().module]
    assert key_of(of, rows) == key_of(of, pixels) != key_of(of, rows[:95])


def test_answers_for_each_token_are_not_kept() -> None:
    lesson = against_teacher(Outputs(), parent().module)
    train = replace(SPLITS.train, target=Tokens(vocabulary=3))
    with pytest.raises(DecantError, match="cache: these answers are for each token, and a batch is as long"):
        remember_(lesson, train, None)
    assert lesson.known is None


# --- students that were compressed before


def test_a_pruned_model_learns_the_teacher_s_features_and_keeps_its_mask() -> None:
    teacher = parent()
    pruned = prune(teacher, {"criterion": {"kind": "magnitude"}, "budget": {"sparsity": 0.5}}, SPLITS).model
    loss = {"kind": "hints", "layers": {"stages.1": "stages.1"}}
    found = finetune(pruned, {"training": TRAINING, "loss": loss}, SPLITS, teacher=teacher).model
    for name, held in pruned.constraints.items():
        assert held.mask is not None
        assert not found.module.get_parameter(name)[~held.mask].any()
    assert not torch.equal(
        found.module.get_parameter("head.weight"), pruned.module.get_parameter("head.weight")
    )


@pytest.mark.parametrize("kind", ["lsq", "pact"])
def test_a_quantized_model_is_distilled_on_its_levels(kind: str) -> None:
    teacher, small = parent(), distilled().model
    block = {
        "scheme": {"kind": "integer", "bits": 4},
        "activations": {"bits": 4},
        "images": 48,
        "train": {"kind": kind, "training": TRAINING, "loss": HINTS},
    }
    found = quantize(small, block, SPLITS, teacher=teacher).model
    assert found.narrowest == 4
    assert all(math.isfinite(each.sum().item()) for each in found.module.parameters())


# --- told before anything runs


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ensemble": True}, "models.a.ensemble: from is the teacher itself; start from a student of it"),
        (
            {"student": {"budget": {"kib": 1e5}}},
            "models.a.student.budget: 100000 KiB is more than the teacher's own architecture has, 77.0; low",
        ),
        ({"student": {"budget": {"macs": 1}}}, "models.a.student.budget: 1 macs is less than the narrowest"),
        (
            {"loss": {"kind": "hint", "layers": {"a": "b"}}},
            "models.a.loss: unknown kind 'hint'; did you mean",
        ),
    ],
)
def test_validate_tells_it(changes: Mapping[str, Any], words: str) -> None:
    block = {
        "op": "distill",
        "student": {"budget": {"kib": 4}},
        "loss": {"kind": "softmax"},
        "training": {"epochs": 1},
    }
    assert any(words in line for line in complaints(chain(block | changes)))
