"""Weights of the pattern 2:4: which are packed, what is said of others, and on a GPU what they answer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from decant.errors import DecantError
from decant.export import semi_structured as kernels
from decant.export.semi_structured import in_float16, packable, packed, two_of_four, unpackable
from decant.networks import devices
from decant.networks.architectures import Mlp, build
from decant.networks.devices import without_patterns
from decant.prune.structures import NOfM
from decant.schema import mistakes
from tasks.benchmark import hardware
from tasks.benchmark import semi_structured as stage
from tasks.benchmark.page import readme
from tasks.benchmark.params import BenchmarkParams
from tasks.benchmark.tables import path_here, read, settings
from tasks.validate import hardware as checks
from tests.test_devices import GPU, gpu_test

CPU = torch.device("cpu")
PARAMS = BenchmarkParams(rounds=3, seconds=0.1, device="cuda", semi_structured=True)


def halved(module: nn.Module) -> nn.Module:
    """Return a network whose weights have the pattern wherever there are four inputs."""
    for weight in module.parameters():
        if weight.dim() > 1 and weight.shape[1] % 4 == 0:
            scores = weight.detach().abs()
            weight.data *= NOfM().mask(scores, weight.numel() // 2)
    return module.eval()


def network() -> nn.Module:
    """28 x 28 -> 128 -> 64 -> 10: the second weight alone has sides that kernels take."""
    return halved(build(Mlp(hidden=(128, 64)), (1, 28, 28), 10, seed=1))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, 0, 0, 2, 0, 3, 4, 0]], True),
        ([[1, 0, 0, 2], [0, 0, 0, 0]], True),
        ([[0, 1, 2, 3, 0, 0, 0, 0]], False),  # half are zero, and not two of each four
        ([[1, 0, 0, 0, 1, 1]], False),
        ([[0, 0, 0, 0]], False),
    ],
)
def test_the_pattern_is_two_of_each_four_neighbours(rows: list[list[float]], expected: bool) -> None:
    assert two_of_four(torch.tensor(rows, dtype=torch.float32)) == expected


def test_inputs_of_a_convolution_are_neighbours_at_one_place() -> None:
    weight = torch.randn(3, 8, 2, 2, generator=torch.Generator().manual_seed(1))
    assert two_of_four(weight * NOfM().mask(weight.abs(), weight.numel() // 2))
    assert not two_of_four(weight)


def test_linear_layers_of_the_right_sides_are_packed_and_no_others() -> None:
    module = network()
    assert [n for n, p in module.named_parameters() if p.dim() > 1 and two_of_four(p)] == [
        "layers.0.weight",
        "layers.2.weight",
        "layers.4.weight",
    ]
    assert packable(module) == ["layers.2"]
    assert unpackable(module) == ""


def test_why_nothing_is_packed_is_told() -> None:
    free = nn.Sequential(nn.Linear(64, 32))
    assert unpackable(free) == (
        "no weight has two zeros in each four neighbours of a row; prune with structure: {kind: n-of-m}"
    )
    odd = halved(nn.Sequential(nn.Conv2d(8, 4, 1), nn.Linear(64, 10)))
    assert unpackable(odd) == (
        "the pattern 2:4 is in 0.weight (Conv2d, 4 x 8 x 1 x 1), 1.weight (Linear, 10 x 64), and torch has "
        "kernels for weights of Linear whose rows are a multiple of 32 and whose columns are one of 64"
    )


def test_a_device_without_the_instructions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DecantError, match="weights are packed for GPUs, and this is cpu; leave it out"):
        packed(network(), CPU)
    card = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert "cuda:0 has compute capability 7.5, and the instructions are there from 8.0" in without_patterns(
        card
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert without_patterns(card) == ""


def test_params_ask_for_it_on_a_gpu_alone() -> None:
    asked = {"semi_structured": True}
    assert mistakes(asked | {"device": "cuda"}, BenchmarkParams) == []
    (told,) = mistakes(asked, BenchmarkParams)
    assert "the kernels are of GPUs, and this runs on cpu: add device: cuda, or leave it out" in told
    assert BenchmarkParams().model_dump() == {"threads": 1, "rounds": 20, "seconds": 25.0}
    assert settings(PARAMS)["semi_structured"] is True
    assert settings(PARAMS)["code"] != settings(BenchmarkParams())["code"]


def test_a_gpu_without_the_instructions_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `validate`, and by the stage before it exports a model."""
    for file in (checks, hardware):
        monkeypatch.setattr(file, "find", lambda _: torch.device("cuda:0"))
        monkeypatch.setattr(file, "without_patterns", lambda _: "semi_structured: there are none")
    monkeypatch.setattr(checks, "_missing_provider", str)
    section = {"device": "cuda", "semi_structured": True}
    told = "benchmark.semi_structured: there are none"
    assert list(checks.without_device({"benchmark": section, "models": {}})) == [told]
    with pytest.raises(DecantError, match=told):
        hardware.hardware_of(PARAMS)
    assert list(checks.without_device({"benchmark": {"device": "cuda"}, "models": {}})) == []
    assert isinstance(hardware.hardware_of(BenchmarkParams(device="cuda")), hardware.Gpu)


def exported(module: nn.Module) -> Any:
    return SimpleNamespace(model=SimpleNamespace(module=module))


def test_each_model_is_compared_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the processor, where nothing is packed: both are the same network, so neither is faster by much."""
    monkeypatch.setattr(kernels, "without_patterns", lambda _: "")
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda weight: weight)
    images = torch.randint(0, 256, (20, 1, 28, 28), dtype=torch.uint8)
    models = {"two-of-four": exported(network()), "free": exported(nn.Linear(64, 32))}
    found, failed = stage.times(models, images, PARAMS, CPU)
    assert failed == {}
    assert list(found) == ["two-of-four"]
    row = found["two-of-four"]
    assert row["layers"] == 1
    assert 0.1 < row["batch_128"]["speedup"] < 10
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda weight: weight * 2)
    _, failed = stage.times(models, images, PARAMS, CPU)
    assert "packed weights answer with" in failed["two-of-four"].reason


def test_a_table_tells_what_was_packed(tmp_path: Path) -> None:
    cell = {"p50_seconds": 0.001, "p95_seconds": 0.002, "images_per_second": 1000.0}
    cell |= {"speedup": 1.5, "speedup_low": 1.25, "speedup_high": 1.75}
    both = {"batch_1": cell, "batch_128": cell}
    sizes = {"onnx_md5": "a", "size_bytes": 1, "size_ratio": 1.0, "onnx_bytes": 1, "peak_memory_bytes": None}
    row = sizes | {"onnxruntime": both, "pytorch": both, "verdict": "smaller"}
    machine = dict.fromkeys(("processor", "system", "onnxruntime", "python", "torch"), "x") | {"threads": 1}
    models = {"teacher": row, "half": row | {"semi_structured": {"layers": 2, **both}}}
    table = {"machine": machine, "settings": settings(PARAMS), "rounds": 3, "models": models}
    path = tmp_path / path_here().name
    path.write_text(json.dumps(table))
    page = readme([read(path)], {"teacher": "a", "half": "a"})
    assert "| half | 2 | 1.50 (1.25 to 1.75) | 1.50 (1.25 to 1.75) | 1,000 |" in page
    del models["half"]
    assert "packed layers" not in readme([table], {"teacher": "a"})


@gpu_test
def test_packed_weights_answer_as_the_dense_ones_on_the_gpu() -> None:
    device = devices.find(GPU)
    if told := without_patterns(device):
        pytest.skip(told)
    module = network()
    made, layers = packed(module, device)
    assert layers == ["layers.2"]
    assert all(weight.device == CPU for weight in module.parameters())
    inputs = torch.rand(128, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        dense = in_float16(module, device)(inputs.half().to(device)).float().cpu()
        answers = made(inputs.half().to(device)).float().cpu()
    torch.testing.assert_close(answers, dense, rtol=2e-2, atol=2e-2)
    found, failed = stage.times({"half": exported(module)}, (inputs * 255).byte(), PARAMS, device)
    assert (list(found), failed) == (["half"], {})
