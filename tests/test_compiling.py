"""Trainings that are compiled: the same bits each time, and never another way unseen."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decant.errors import DecantError
from decant.finetune.params import FinetuneParams
from decant.networks.compiling import missing_compiler
from decant.schema import mistakes
from decant.training.fit import fit_
from decant.training.recipe import Training
from decant.training.run import Run
from tasks.validate import hardware
from tasks.validate.hardware import without_device
from tests.test_devices import ADAM, GPU, SPLITS, TRAINING, check_resuming, gpu_test, same, trained
from tests.test_devices import teacher as teacher

COMPILED = {"compile": True}


# --- recipes


@pytest.mark.parametrize(
    ("changes", "device", "told"),
    [
        ({"graphs": True}, "cuda", "training: graphs: true records what was compiled: add compile: true"),
        (
            {"graphs": True, "compile": True},
            "cpu",
            "top level: training.graphs: CUDA graphs are for GPUs, and this runs on cpu: leave it out, or "
            "take a device",
        ),
        ({"compile": "yes"}, "cpu", "training.compile: must be true or false, got 'yes'"),
    ],
)
def test_what_cannot_be_compiled_so_is_refused(changes: dict[str, Any], device: str, told: str) -> None:
    block = {"op": "finetune", "from": "p", "training": TRAINING | changes, "device": device}
    assert mistakes(block, FinetuneParams) == [told]


def test_what_is_not_asked_for_is_not_said() -> None:
    plain = Training.model_validate(TRAINING)
    assert not {"compile", "graphs", "processes"} & plain.model_dump(mode="json").keys()
    graphs = Training.model_validate(TRAINING | {"compile": True, "graphs": True})
    assert (graphs.unsuited("cuda"), graphs.unsuited("cuda:1")) == ("", "")


def test_validate_tells_a_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def missing(device: str) -> str:
        asked.append(device)
        return "training.compile: there is none"

    monkeypatch.setattr(hardware, "missing_compiler", missing)
    monkeypatch.setattr(hardware, "_made", dict)
    schedule = {"kind": "gradual", "training": {"epochs": 1, "compile": True}}
    params = {
        "teacher": {"training": {"epochs": 1, "compile": True}},
        "models": {"a": {"schedule": schedule}, "b": {"training": {"compile": False}}},
    }
    assert list(without_device(params)) == [
        "teacher.training.compile: there is none",
        "models.a.training.compile: there is none",
    ]
    assert asked == ["cpu", "cpu"]


def test_a_gpu_for_each_process_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr(hardware, "find", looked.append)
    monkeypatch.setattr(hardware, "_made", dict)
    several = {"epochs": 1, "processes": 4}
    params = {
        "teacher": {"device": "cuda", "training": several},
        "models": {"a": {"device": "cuda"}, "b": {"training": several}},
    }
    assert list(without_device(params)) == []
    assert looked == ["cuda:3", "cuda"]
    monkeypatch.undo()
    told = "; processes: 4 take a GPU each"
    assert [
        line.endswith(told) for line in without_device(params | {"models": {"a": {"device": "cuda"}}})
    ] == [
        *(True, False),
    ]


def test_a_gpu_without_triton_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert missing_compiler("cuda") == (
        "training.compile: GPUs need the package triton, and it is not there: install it, or leave compile "
        "out"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert missing_compiler("cuda") == ""


# --- on processors


@pytest.mark.slow
def test_a_compiled_training_repeats_its_bits_and_goes_on_to_them(
    teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if told := missing_compiler("cpu"):
        pytest.skip(told)
    case = trained(**COMPILED)
    one = case(teacher, "cpu", Run(seed=3))
    torch.compiler.reset()  # what follows compiles it anew
    check_resuming(case, teacher, "cpu", tmp_path, monkeypatch)
    assert same(one, case(teacher, "cpu", Run(seed=3)))
    plain = trained()(teacher, "cpu", Run(seed=3))
    for row, expected in zip(one.curve, plain.curve, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-3)


class Reading(nn.Module):
    """Does other things as its numbers are, which no compiler can foresee."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        answers: Tensor = self.head(images.flatten(1))
        return answers if answers.sum() > 0 else answers * 2


@pytest.mark.slow
def test_a_network_that_cannot_be_compiled_whole_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training.model_validate(ADAM | COMPILED)
    settings: dict[str, Any] = {"scratch": None, "seed": 1, "constraints": {}, "title": "t"}
    told = r"training\.compile: the network cannot be compiled whole \(.*\); leave"
    with pytest.raises(DecantError, match=told):
        fit_(Reading(), training, training.hard_loss(), SPLITS.train, SPLITS.validation, **settings)
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def missing() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(
        DecantError, match=r"processors need a C\+\+ compiler, and there is no g\+\+ or clang"
    ):
        fit_(Reading(), training, training.hard_loss(), SPLITS.train, SPLITS.validation, **settings)


# --- on a GPU


@gpu_test
@pytest.mark.parametrize("graphs", [False, True])
def test_a_compiled_training_on_the_gpu_repeats_its_bits(
    graphs: bool, teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if told := missing_compiler(GPU):
        pytest.skip(told)
    case = trained(**COMPILED, graphs=graphs, accumulate=2)
    check_resuming(case, teacher, GPU, tmp_path, monkeypatch)
    plain = trained(accumulate=2)(teacher, GPU, Run(seed=3))
    for row, expected in zip(case(teacher, GPU, Run(seed=3)).curve, plain.curve, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=0.02)
