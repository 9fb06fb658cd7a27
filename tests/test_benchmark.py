"""The ONNX files compute what PyTorch does and carry nothing of this machine; the ratios by hand."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

import tasks
from tasks.benchmark import __main__ as stage
from tasks.benchmark.memory import peak_bytes
from tasks.benchmark.params import BenchmarkParams
from tasks.benchmark.words import verdict
from tasks.checkpoints import Checkpoint, save
from tasks.constraints import Constraints, InputGrid, Levels, Range
from tasks.errors import DecantError
from tasks.export import _rounded, check_same, open_session, to_onnx
from tasks.models import Resnet, build, compressible, predict
from tasks.params import validate
from tasks.timing import compare, interleave

SHAPE = (1, 8, 8)
CLASSES = tuple("abcde")
NET = Resnet(widths=(4, 8), blocks=(1, 1))


def images(count: int) -> Tensor:
    return torch.randint(
        0, 256, (count, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(count)
    )


def teacher() -> Checkpoint:
    module = build(NET, SHAPE, len(CLASSES), seed=1).eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):  # fresh ones do nothing, and nobody would miss them
            layer.running_mean = torch.linspace(-0.2, 0.2, layer.num_features)
            layer.running_var = torch.linspace(0.5, 2.0, layer.num_features)
    return Checkpoint(NET, SHAPE, CLASSES, module, lineage=({"name": "teacher", "op": "teacher"},))


def masked() -> Checkpoint:
    weights = compressible(teacher().module)
    return teacher().narrowed({n: Constraints(mask=w.abs() > w.abs().median()) for n, w in weights.items()})


def integers() -> Checkpoint:
    weights = compressible(teacher().module)
    values = torch.arange(-7, 8).float()
    return teacher().narrowed(
        {n: Constraints(levels=Levels(values, w.abs().max() / 7)) for n, w in weights.items()}
    )


def rounded_inputs() -> Checkpoint:
    layers = [name.removesuffix(".weight") for name in compressible(teacher().module)]
    grids = {layer: InputGrid(8, 0.02, 0) for layer in layers}
    return integers().narrowed({}, {**grids, "stages.0.conv2": InputGrid(4, 0.15, 3)})


def clamped_inputs() -> Checkpoint:
    """Return a model whose layers cut their inputs: to numbers, on one side, per channel, before a grid."""
    channels = Range(torch.zeros(4, 1, 1), torch.tensor([0.1, 0.4, 0.7, 1.0]).reshape(4, 1, 1))
    features = Range(torch.full((8,), 0.05), torch.linspace(0.3, 1.0, 8))
    clamps = {"stem.0": Range(-0.5, 0.7), "stages.0.conv1": channels, "head": features}
    return teacher().narrowed({}, clamps={**clamps, "stages.0.conv2": Range(-math.inf, 0.4)})


def clamped_and_rounded() -> Checkpoint:
    return clamped_inputs().narrowed(
        {}, {"stages.0.conv1": InputGrid(4, 0.07, 0), "head": InputGrid(8, 0.01, 9)}
    )


KINDS: dict[str, Callable[[], Checkpoint]] = {
    "teacher": teacher,
    "masked": masked,
    "integers": integers,
    "rounded": rounded_inputs,
    "clamped": clamped_inputs,
    "clamped-rounded": clamped_and_rounded,
}


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_runtime_computes_what_pytorch_does(kind: str) -> None:
    checkpoint = KINDS[kind]()
    session = open_session(to_onnx(checkpoint).SerializeToString(), threads=1)
    check_same(kind, checkpoint, session, images(256))
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(float)", [*SHAPE])
    assert (logits.name, logits.type) == ("logits", "tensor(float)")
    for count in (1, 3, 128):  # any batch, not only the one that was traced
        pixels = torch.rand(count, *SHAPE)
        assert session.run(None, {"image": pixels.numpy()})[0].shape == (count, len(CLASSES))


@pytest.mark.parametrize("kind", ["teacher", "integers"])
def test_onnx_runtime_folds_every_batch_norm(kind: str, tmp_path: Path) -> None:
    """It folds none whose convolution has a bias that is computed, which halved the speed of all models."""
    model = to_onnx(KINDS[kind]())
    weights = {initializer.name for initializer in model.graph.initializer}
    for node in model.graph.node:
        assert node.op_type != "Conv" or set(node.input[1:]) <= weights
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # that the file is for this machine alone
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert "Conv" in kinds
    assert "BatchNormalization" not in kinds


def test_the_rounding_that_is_exported_is_pytorchs_to_the_bit() -> None:
    inputs = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * 3
    for grid in (
        InputGrid(8, 0.0137, 100),
        InputGrid(8, 0.02, 0),
        InputGrid(4, 0.3, 3),
        InputGrid(2, 1.1, 1),
    ):
        assert torch.equal(_rounded(grid, nn.Identity(), (inputs,))[0], grid(inputs))


def test_another_function_is_told_with_the_models_name() -> None:
    session = open_session(to_onnx(masked()).SerializeToString(), threads=1)
    with pytest.raises(DecantError, match=r"not compute the same function as PyTorch for student.*logits"):
        check_same("student", teacher(), session, images(256))
    with pytest.raises(DecantError, match="spread on average"):
        check_same("student", rounded_inputs(), session, images(256))


@pytest.mark.parametrize("kind", ["teacher", "rounded"])
def test_the_file_is_the_same_twice_is_whole_and_tells_nothing_of_this_machine(kind: str) -> None:
    model = to_onnx(KINDS[kind]())
    content = model.SerializeToString(deterministic=True)
    assert content == to_onnx(KINDS[kind]()).SerializeToString(deterministic=True)
    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    root = Path(tasks.__file__).parent.parent
    for words in (str(root), str(Path(torch.__file__).parent), ".py", "site-packages", torch.__version__):
        assert words.encode() not in content


def test_exporting_leaves_the_checkpoint_alone() -> None:
    checkpoint = rounded_inputs()
    before = predict(checkpoint.module, images(8))
    to_onnx(checkpoint)
    assert torch.equal(predict(checkpoint.module, images(8)), before)


def test_speedups_are_paired_by_round() -> None:
    # The machine slows down threefold in the second round, for both alike: the ratio stays 2.
    rounds = {"teacher": [[4.0, 4.0, 8.0], [12.0, 12.0, 12.0]], "fast": [[2.0, 2.0, 2.0], [6.0, 6.0, 9.0]]}
    latencies = compare(rounds, "teacher")
    assert latencies["fast"].speedup == latencies["fast"].speedup_low == latencies["fast"].speedup_high == 2
    assert latencies["fast"].median == (2 + 6) / 2
    assert latencies["teacher"].speedup == 1
    assert latencies["teacher"].median == (8 + 12) / 2


def test_percentiles_of_calls_and_of_rounds() -> None:
    rounds = {"teacher": [[1.0]] * 11, "other": [[1 / (1 + i / 10)] for i in range(11)]}
    other = compare(rounds, "teacher")["other"]
    assert other.speedup == pytest.approx(1.5)
    assert other.speedup_low == pytest.approx(1.1)
    assert other.speedup_high == pytest.approx(1.9)
    ninety = compare({"a": [[float(i)] for i in range(1, 102)]}, "a")["a"]
    assert ninety.median == 51
    assert ninety.p95 == pytest.approx(96)


def test_models_take_turns_and_every_call_is_timed_alone() -> None:
    seen: list[str] = []
    ticks = iter(range(100))
    calls = {name: lambda name=name: seen.append(name) for name in ("a", "b", "c")}
    seconds = interleave(calls, 2, random.Random(3), clock=lambda: float(next(ticks)))
    assert seconds == {"a": [1.0, 1.0], "b": [1.0, 1.0], "c": [1.0, 1.0]}
    turns = seen[::3]
    assert sorted(turns) == ["a", "b", "c"]
    assert seen == [name for name in turns for _ in range(3)]  # one untimed, two timed
    orders = set()
    for seed in range(20):
        orders.add(tuple(interleave(calls, 1, random.Random(seed), clock=lambda: 0.0)))
    assert len(orders) > 1


def numbers(size_ratio: float, one: tuple[float, float, float], many: tuple[float, float, float]) -> Any:
    keys = ("speedup_low", "speedup", "speedup_high")
    batches = {"batch_1": dict(zip(keys, one, strict=True)), "batch_128": dict(zip(keys, many, strict=True))}
    return {"size_ratio": size_ratio, "onnxruntime": batches}


FASTER, SAME, SLOWER, SHAKY = (1.8, 2.0, 2.2), (0.9, 1.01, 1.1), (0.5, 0.6, 0.7), (0.8, 1.5, 2.0)


@pytest.mark.parametrize(
    ("entry", "kind", "words"),
    [
        (numbers(4, FASTER, FASTER), "teacher", "smaller, and faster"),
        (numbers(1, FASTER, FASTER), "teacher", "not smaller, but faster"),
        (numbers(4, FASTER, SAME), "teacher", "smaller, faster at batch 1 only"),
        (numbers(4, SLOWER, FASTER), "teacher", "smaller, faster at batch 128, slower at batch 1"),
        (numbers(1, SAME, SHAKY), "teacher", "not smaller, not faster"),
        (
            numbers(4, SAME, SAME),
            "masked",
            "smaller, not faster; its zeros are multiplied like other weights",
        ),
        (numbers(4, SAME, SAME), "integers", "smaller, not faster; its weights are unpacked to float32 here"),
        (
            numbers(4, SLOWER, SLOWER),
            "rounded",
            "smaller, slower at batch 1 and batch 128; its weights are unpacked to float32 here; "
            "rounding the inputs of layers is work on top",
        ),
        (
            numbers(1, SLOWER, SLOWER),
            "clamped",
            "not smaller, slower at batch 1 and batch 128; cutting the inputs of layers is work on top",
        ),
    ],
)
def test_what_a_model_gained_in_words(entry: Any, kind: str, words: str) -> None:
    assert verdict(entry, KINDS[kind]()) == words


def test_params_are_checked() -> None:
    with pytest.raises(DecantError, match=r"benchmark\.rounds: .*greater than or equal to 3"):
        validate({"rounds": 1}, BenchmarkParams, "benchmark")


def write_inputs() -> None:
    Path("params.yaml").write_text(
        "benchmark: {threads: 1, rounds: 3, seconds: 0.1}\n"
        "models:\n  rounded: {op: quantize, from: teacher}\n  masked: {op: prune, from: teacher}\n"
    )
    for name in ("teacher", "rounded", "masked"):
        folder = Path("models", name)
        folder.mkdir(parents=True)
        save(KINDS[name](), folder)
    test = images(40)
    table = pa.table(
        {
            "image": pa.array([bytes(image.flatten().tolist()) for image in test], pa.binary(64)),
            "label": pa.array([0] * 40, pa.uint8()),
        }
    )
    Path("data").mkdir()
    metadata = {"shape": json.dumps(SHAPE), "classes": json.dumps(CLASSES)}
    pq.write_table(table.replace_schema_metadata(metadata), "data/test.parquet")


def test_the_stage_writes_a_file_for_each_model_and_the_numbers_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "peak_bytes", lambda *_: None)  # a process each; the next test has one
    threads = torch.get_num_threads()
    write_inputs()
    try:
        stage.main()
    finally:
        torch.set_num_threads(threads)
    assert sorted(path.name for path in Path("onnx").iterdir()) == [
        "masked.onnx",
        "rounded.onnx",
        "teacher.onnx",
    ]
    content = json.loads(Path("benchmark/latency.json").read_text())
    assert list(content["models"]) == ["teacher", "masked", "rounded"]
    assert content["settings"]["rounds"] == 3
    assert content["machine"]["threads"] == 1
    assert content["machine"]["processor"]
    for runtime in ("onnxruntime", "pytorch"):
        cell = content["models"]["teacher"][runtime]["batch_128"]
        assert cell["speedup"] == cell["speedup_low"] == cell["speedup_high"] == 1
        assert cell["images_per_second"] == pytest.approx(128 / cell["p50_seconds"], rel=1e-3)
        assert set(content["models"]["rounded"][runtime]) == {"batch_1", "batch_128"}
    page = Path("benchmark/README.md").read_text()
    assert "with one thread" in page
    assert "not told" in page
    assert "- **masked**: " in page
    assert str(tmp_path) not in page


def test_peak_memory_is_of_the_model_in_a_process_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(to_onnx(teacher()).SerializeToString())
    found = peak_bytes(file, 128, threads=1)
    if found is None:
        pytest.skip("this system does not tell a process's peak")
    assert 128 * 64 * 4 < found < 1e9
    with pytest.raises(DecantError, match=r"none\.onnx could not be measured"):
        peak_bytes(tmp_path / "none.onnx", 1, threads=1)
