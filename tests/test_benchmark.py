"""The stage on small models: its files, what it says of each model in words; the ratios by hand."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import md5
from pathlib import Path
from typing import Any, Literal

import onnxruntime
import pytest
import torch
from pydantic import create_model
from torch import Tensor, nn

from decant.checkpoints import files as checkpoints
from decant.checkpoints.activations import DynamicGrid, InputGrid
from decant.checkpoints.checkpoint import Checkpoint
from decant.checkpoints.constraints import Constraints, Range
from decant.checkpoints.files import load
from decant.errors import DecantError
from decant.export import accelerated
from decant.export.deploy import check_same, deploy, to_onnx
from decant.export.runtime import open_session
from decant.export.timing import compare, interleave
from decant.lowering.folding import folded
from decant.lowering.integers import settled
from decant.networks.architectures import Architecture, Resnet, build
from decant.networks.execution import predict
from decant.networks.structure import compressible
from decant.quantize.schemes import Binary, Codebook, Integer, PowerOfTwo, Quantizer, Ternary
from tasks.benchmark import __main__ as stage
from tasks.benchmark import exports, hardware, times
from tasks.benchmark.memory import peak_bytes
from tasks.benchmark.params import BenchmarkParams
from tasks.benchmark.tables import path_here
from tasks.benchmark.verdicts import verdict
from tasks.pipeline.params import validate
from tasks.pipeline.stage import run
from tasks.validate import hardware as checks
from tests import homes
from tests.elsewhere import Elsewhere, device_that_computes
from tests.homes import noise, put_model, write_params
from tests.nets import Own
from tests.slow import slow_but

SHAPE = (1, 8, 8)
CLASSES = tuple("abcde")
NET = Resnet(widths=(4, 8), blocks=(1, 1))
LAYERS = ("stem.0", "stages.0.conv1", "stages.0.conv2", "stages.1.conv1", "stages.1.conv2")
ALL = (*LAYERS, "stages.1.shortcut.0", "head")
SUMS = tuple(f"stages.{stage}.{side}" for stage in range(2) for side in ("branch", "carried"))


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


def held(
    scheme: Quantizer,
    *,
    sums: bool = False,
    bits: int = 0,
    dynamic: bool = False,
    start: Checkpoint | None = None,
) -> Checkpoint:
    """Return the teacher on levels, and with `bits` its inputs on grids, as quantizing leaves it."""
    start = start or folded(teacher())
    names = [*ALL, *SUMS] if sums else ALL
    grids = {
        name: DynamicGrid(bits) if dynamic else InputGrid(bits, 4 / 2**bits, 0) for name in names if bits
    }
    levels = {n: Constraints(levels=scheme.levels(w.detach())) for n, w in compressible(start.module).items()}
    return settled(start.narrowed(levels, grids))


def unsettled() -> Checkpoint:
    model = held(EIGHT, sums=True, bits=8)
    with torch.no_grad():
        for name in ALL:
            model.module.get_parameter(f"{name}.bias").add_(0.37e-4)
    return model


def shut() -> Checkpoint:
    """One channel's weights are tiny beside its bias, as behind a batch norm that has all but shut it."""
    start = folded(teacher())
    with torch.no_grad():
        start.module.get_parameter("stages.0.conv1.weight")[0] *= 1e-6
        start.module.get_parameter("stages.0.conv1.bias")[0] = 1.0
    return held(EIGHT, sums=True, bits=8, start=start)


def clamped() -> Checkpoint:
    return teacher().narrowed({}, clamps={"stages.0.conv2": Range(0.0, 0.4), "head": Range(0.0, 0.5)})


EIGHT = Integer(bits=8)
KINDS: dict[str, Callable[[], Checkpoint]] = {
    "teacher": teacher,
    "masked": masked,
    "clamped": clamped,
    "int8": lambda: held(EIGHT),
    "int4": lambda: held(Integer(bits=4)),
    "binary": lambda: held(Binary()),
    "ternary": lambda: held(Ternary()),
    "codebook": lambda: held(Codebook(entries=8)),
    "power-of-two": lambda: held(PowerOfTwo(bits=3)),
    "static": lambda: held(EIGHT, sums=True, bits=8),
    "static-4": lambda: held(Integer(bits=4), bits=4),
    "static-group": lambda: held(Integer(bits=4, group=16), sums=True, bits=8),
    "static-affine": lambda: held(Integer(bits=8, symmetric=False), sums=True, bits=8),
    "static-codebook": lambda: held(Codebook(entries=8), sums=True, bits=8),
    "dynamic": lambda: held(EIGHT, bits=8, dynamic=True),
    "dynamic-4": lambda: held(EIGHT, bits=4, dynamic=True),
    "dynamic-affine": lambda: held(Integer(bits=8, symmetric=False), bits=8, dynamic=True),
    "unsettled": unsettled,
    "shut": shut,
}


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
    ("entry", "words"),
    [
        (numbers(4, FASTER, FASTER), "smaller, and faster"),
        (numbers(1, FASTER, FASTER), "not smaller, but faster"),
        (numbers(4, FASTER, SAME), "smaller, faster at batch 1 only"),
        (numbers(4, SHAKY, FASTER), "smaller, faster at batch 128 only"),
        (numbers(4, SLOWER, FASTER), "smaller, faster at batch 128, slower at batch 1"),
        (numbers(4, SAME, SAME), "smaller, not faster"),
        (numbers(1, SAME, SHAKY), "not smaller, not faster"),
        (numbers(4, SAME, SLOWER), "smaller, slower at batch 128"),
        (numbers(4, SLOWER, SLOWER), "smaller, slower at batch 1 and batch 128"),
    ],
)
def test_what_a_model_gained_in_words(entry: Any, words: str) -> None:
    assert verdict(entry, teacher(), {}) == words


LACKING = "ONNX Runtime has no kernel for"
BOOK = f"{LACKING} weights of 8 levels that are no integers, they run unpacked"
ROUNDING = "rounding the inputs of layers is work on top"


@pytest.mark.parametrize(
    ("kind", "reasons"),
    [
        ("teacher", []),
        ("static", []),
        ("masked", ["its zeros are multiplied like other weights"]),
        ("clamped", ["cutting the inputs of layers is work on top"]),
        ("int8", [f"{LACKING} weights of 8 bits beside inputs in float32, they run unpacked"]),
        (
            "int4",
            [
                f"{LACKING} weights of 4 bits beside inputs in float32, they run unpacked",
                "linear layers of few bits are multiplied in float32, out of 4 bits a weight",
            ],
        ),
        (
            "binary",
            [
                f"{LACKING} weights of one bit beside inputs in float32, they run unpacked",
                "linear layers of few bits are multiplied in float32, out of 4 bits a weight",
            ],
        ),
        pytest.param(
            "ternary",
            [
                f"{LACKING} weights of 2 bits beside inputs in float32, they run unpacked",
                "linear layers of few bits are multiplied in float32, out of 4 bits a weight",
            ],
            marks=pytest.mark.slow,
        ),
        (
            "codebook",
            [BOOK],
        ),
        pytest.param(
            "power-of-two",
            [f"{LACKING} weights of 7 levels that are no integers, they run unpacked"],
            marks=pytest.mark.slow,
        ),
        ("static-4", ["integers whose sums nothing rounds are multiplied in float32"]),
        ("static-group", [f"{LACKING} groups of 16 beside rounded inputs, they run unpacked", ROUNDING]),
        (
            "static-affine",
            [f"{LACKING} a zero point for each channel in convolutions, they run unpacked", ROUNDING],
        ),
        pytest.param("static-codebook", [BOOK, ROUNDING], marks=pytest.mark.slow),
        (
            "dynamic",
            [
                f"{LACKING} convolutions with the range of each batch that beats float32, they run unpacked",
                "the range of each batch or row is looked for first",
                ROUNDING,
            ],
        ),
        (
            "dynamic-affine",
            [
                f"{LACKING} convolutions or zero points with the range of each batch that beats float32, "
                f"they run unpacked",
                ROUNDING,
            ],
        ),
        (
            "dynamic-4",
            [f"{LACKING} inputs of 4 bits with the range of each batch, they run unpacked", ROUNDING],
        ),
        (
            "unsettled",
            [
                f"{LACKING} integers whose biases are no whole steps of their sums, they run unpacked",
                ROUNDING,
            ],
        ),
        (
            "shut",
            [
                f"{LACKING} sums of more than 32 bits, they run unpacked",
                "integers whose sums nothing rounds are multiplied in float32",
                ROUNDING,
            ],
        ),
    ],
)
def test_why_a_model_is_smaller_and_not_faster(kind: str, reasons: list[str]) -> None:
    model = KINDS[kind]()
    made = deploy(model)
    check_same(kind, model, open_session(made.content, 1), images(64))
    said = verdict(numbers(4, SAME, SAME), model, made.forms)
    assert said == "; ".join(["smaller, not faster", *reasons])
    # Who is faster needs no excuse.
    assert verdict(numbers(4, FASTER, FASTER), model, made.forms) == "smaller, and faster"


def test_params_are_checked() -> None:
    with pytest.raises(DecantError, match=r"benchmark\.rounds: .*greater than or equal to 3"):
        validate({"rounds": 1}, BenchmarkParams, "benchmark")


class Flipping(Own):
    """A network with an operator that ONNX does not know."""

    kind: Literal["flipping"] = "flipping"

    def weights(self, shape: tuple[int, int, int], classes: int) -> dict[str, tuple[int, ...]]:
        return {"2.weight": (classes, 64)}

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), _Flip(), nn.Linear(64, classes))


class _Flip(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return flip_bits(inputs)


@torch.library.custom_op("decant_tests::flip_bits", mutates_args=())
def flip_bits(inputs: Tensor) -> Tensor:
    return 1 - inputs


@flip_bits.register_fake
def _(inputs: Tensor) -> Tensor:
    return torch.empty_like(inputs)


def flipping() -> Checkpoint:
    module = build(Flipping(), SHAPE, len(CLASSES), seed=1).eval()  # type: ignore[arg-type]
    return Checkpoint(Flipping(), SHAPE, CLASSES, module)  # type: ignore[arg-type]


def write_inputs(*names: str) -> None:
    models = {name: {"op": "quantize", "from": "teacher"} for name in names}
    threads, benchmark = {"teacher": 1, "quantize": 1}, {"threads": 1, "rounds": 3, "seconds": 0.1}
    write_params({"seed": 1, "threads": threads, "teacher": {}, "benchmark": benchmark, "models": models})
    for name in ("teacher", *names):
        put_model(name, {**KINDS, "flipping": flipping}[name]())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(hardware, "peak_bytes", lambda *_: None)  # a process each; the last test has one
    with homes.home(tmp_path, noise(SHAPE, test=40)) as folder:
        yield folder


def test_the_stage_writes_a_file_for_each_model_and_the_numbers_of_all(home: Path) -> None:
    write_inputs("static", "masked")
    stage.main()
    assert sorted(path.name for path in Path("onnx").iterdir()) == [
        "masked.onnx",
        "static.onnx",
        "teacher.onnx",
    ]
    for name in ("teacher", "masked", "static"):
        assert Path(f"onnx/{name}.onnx").read_bytes() == deploy(KINDS[name]()).content
    content = json.loads(path_here().read_text())
    assert list(content["models"]) == ["teacher", "masked", "static"]
    assert content["rounds"] == content["settings"]["rounds"] == 3
    assert content["machine"]["threads"] == 1
    assert content["machine"]["processor"]
    for runtime in ("onnxruntime", "pytorch"):
        cell = content["models"]["teacher"][runtime]["batch_128"]
        assert cell["speedup"] == cell["speedup_low"] == cell["speedup_high"] == 1
        assert cell["images_per_second"] == pytest.approx(128 / cell["p50_seconds"], rel=1e-3)
        assert set(content["models"]["static"][runtime]) == {"batch_1", "batch_128"}
    row, file = content["models"]["static"], Path("onnx/static.onnx").read_bytes()
    assert row["onnx_bytes"] == len(file)
    assert row["onnx_md5"] == md5(file).hexdigest()
    assert row["verdict"] == verdict(row, KINDS["static"](), deploy(KINDS["static"]()).forms)
    page = Path("benchmark/README.md").read_text()
    assert "with one thread" in page
    assert "not told" in page
    assert "- **masked**: " in page
    assert "- **teacher**: " not in page
    assert str(home) not in page


def written() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("benchmark").iterdir()}


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("measured, though all was known")


def test_what_was_measured_once_is_left_as_it_is(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_inputs("static", "masked")
    stage.main()
    assert capsys.readouterr().out == f"There is no {path_here()}: all models are measured\n"
    before = written()
    assert sorted(before) == ["README.md", path_here().name]
    with monkeypatch.context() as patched:
        patched.setattr(times, "measure", never)
        patched.setattr(hardware, "peak_bytes", never)
        stage.main()
        said = "has the times of these very models and is left as it is; delete it to measure anew"
        assert capsys.readouterr().out == f"{path_here()} {said}\n"
        assert written() == before
        Path("benchmark/README.md").unlink()  # a run that was killed in between
        stage.main()
        assert written() == before
    path_here().unlink()
    stage.main()
    assert written().keys() == before.keys()
    assert written() != before


def test_models_are_timed_on_a_gpu_where_one_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device of the tests, in the place of a GPU; ONNX Runtime has none here."""
    write_inputs("static")
    monkeypatch.setattr(accelerated, "open_session_on", lambda content, device: open_session(content, 1))
    with device_that_computes(monkeypatch) as name:
        gpu = hardware.Gpu(1, torch.device(name))
        monkeypatch.setattr(times, "hardware_of", lambda *_: gpu)
        made = Elsewhere.made
        stage.main()
        assert Elsewhere.made > made
    (file,) = Path("benchmark").glob("*.json")
    content = json.loads(file.read_text())
    assert file != path_here()
    assert content["machine"]["processor"] == "a device of the tests"
    assert content["models"]["static"]["peak_memory_bytes"] is None
    assert content["models"]["static"]["pytorch"]["batch_1"]["p50_seconds"] > 0


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_an_onnx_runtime_without_cuda_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    content, device = deploy(KINDS["teacher"]()).content, torch.device("cuda:0")
    monkeypatch.setattr(checks, "find", lambda _: device)
    (told,) = checks.without_device({"benchmark": {"device": "cuda"}, "models": {"a": {"device": "cuda"}}})
    assert re.fullmatch(r"benchmark\.device: onnxruntime .* and not CUDAExecutionProvider: install .*", told)
    with pytest.raises(DecantError, match=r"and not CUDAExecutionProvider: install onnxruntime-gpu"):
        accelerated.open_session_on(content, device)
    known = [accelerated.PROVIDER, "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: known)
    with pytest.raises(DecantError, match=r"does not start here, and CPUExecutionProvider took its place"):
        accelerated.open_session_on(content, device)


def test_what_follows_from_a_models_files_is_brought_up_to_date_without_measuring(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs("static")
    stage.main()
    before, content = written(), json.loads(path_here().read_text())
    row = content["models"]["static"]
    row |= {"size_bytes": 1, "size_ratio": 9.0, "onnx_bytes": 2, "verdict": "a former wording"}
    content["machine"]["python"] = "3.11.0"
    path_here().write_text(json.dumps(content))
    monkeypatch.setattr(times, "measure", never)
    stage.main()
    assert "former" not in Path("benchmark/README.md").read_text()
    content = json.loads(path_here().read_text())
    assert content["models"] == json.loads(before[path_here().name])["models"]
    assert content["machine"]["python"] == "3.11.0"  # it was measured with that


def test_another_model_has_all_measured_anew(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_inputs("static", "masked")
    stage.main()
    first = json.loads(path_here().read_text())
    put_model("masked", KINDS["int8"]())
    capsys.readouterr()
    stage.main()
    said = "is not what would be measured now (other models: masked): all models are measured anew"
    assert capsys.readouterr().out == f"{path_here()} {said}\n"
    second = json.loads(path_here().read_text())
    same = {
        name: first["models"][name]["onnx_md5"] == row["onnx_md5"] for name, row in second["models"].items()
    }
    assert same == {"teacher": True, "masked": False, "static": True}
    times_of = [
        {n: (r["onnxruntime"], r["pytorch"]) for n, r in c["models"].items()} for c in (first, second)
    ]
    assert times_of[0]["static"] != times_of[1]["static"]  # ratios are within one run


def test_a_file_that_holds_no_times_is_named_and_replaced(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_inputs("masked")
    Path("benchmark").mkdir()
    path_here().write_text("<<<<<<< HEAD\n{}\n")  # as a merge leaves it
    Path("benchmark/latency.json").write_text('{"machine": {}, "models": {}}')
    stage.main()
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2
    assert out[0].startswith(
        f"{path_here()} does not hold what it should (JSONDecodeError: Expecting value: line 1"
    )
    assert out[0].endswith(": all models are measured anew")
    assert out[1].startswith("benchmark/latency.json is no table of measured times: ")
    assert out[1].endswith(": it is left out of benchmark/README.md")
    assert list(json.loads(path_here().read_text())["models"]) == ["teacher", "masked"]


def test_a_model_that_onnx_cannot_say_keeps_none_of_the_others_from_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = create_model("More", __base__=checkpoints.Description, architecture=(Architecture | Flipping, ...))
    monkeypatch.setattr(checkpoints, "Description", more)
    write_inputs("masked", "flipping", "int4")
    before = {path: path.read_bytes() for path in Path("models").rglob("*.*")}
    monkeypatch.setattr(sys, "argv", ["benchmark"])
    with pytest.raises(SystemExit) as left:
        run(stage.main)
    told = str(left.value.code)  # a status that is words is printed, and the exit is 1
    assert told.startswith("error: 1 of 4 models are not in onnx:\n  flipping: ONNX has no operator for")
    assert "decant_tests" in told
    assert "flip_bits" in told
    assert len(told.splitlines()) == 2
    assert sorted(path.stem for path in Path("onnx").iterdir()) == ["int4", "masked", "teacher"]
    assert {path: path.read_bytes() for path in Path("models").rglob("*.*")} == before
    logits = predict(load(Path("models/flipping")).module, images(8))
    assert torch.equal(logits, predict(flipping().module, images(8)))
    assert list(json.loads(path_here().read_text())["models"]) == ["teacher", "int4", "masked"]


def test_a_model_that_cannot_be_read_keeps_none_of_the_others_from_it(home: Path) -> None:
    write_inputs("masked", "int4", "static")
    Path("models/masked/model.safetensors").write_bytes(b"damaged")
    Path("models/int4/model.json").unlink()
    with pytest.raises(DecantError, match=r"2 of 4 models are not in onnx:\n  int4: ") as told:
        stage.main()
    assert [line.split(":")[0] for line in str(told.value).splitlines()[1:]] == ["  int4", "  masked"]
    assert sorted(path.stem for path in Path("onnx").iterdir()) == ["static", "teacher"]
    assert list(json.loads(path_here().read_text())["models"]) == ["teacher", "static"]


@pytest.mark.parametrize(
    ("part", "error"),
    [
        ("open_session", RuntimeError("memory\nand a trace")),
        ("check_same", ZeroDivisionError()),
        *(
            pytest.param("deploy", error, marks=pytest.mark.slow)
            for error in (AssertionError("no place for head.weight"), MemoryError("too large"))
        ),
    ],
    ids=repr,
)
def test_whatever_a_library_raises_at_one_model_is_that_models(
    part: str, error: Exception, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs("masked", "int4")
    original, calls = getattr(exports, part), iter(range(9))

    def second_fails(*arguments: Any) -> Any:
        if next(calls) == 1:
            raise error
        return original(*arguments)

    monkeypatch.setattr(exports, part, second_fails)
    monkeypatch.setattr(exports, "at_once", lambda function, names, _: map(function, names))
    reason = str(error).partition("\n")[0] or "nothing more is known"
    with pytest.raises(
        DecantError, match=rf"1 of 3 models are not in onnx:\n  int4: {type(error).__name__}: {reason}$"
    ):
        stage.main()
    assert sorted(path.stem for path in Path("onnx").iterdir()) == ["masked", "teacher"]
    assert list(json.loads(path_here().read_text())["models"]) == ["teacher", "masked"]


class Tired(nn.Module):
    """A network that fails at the seventh call."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 6:
            raise RuntimeError("out of memory")
        return self.module(inputs)


@pytest.mark.parametrize("when", slow_but(("memory", "rounds"), ("memory", "rounds", "words")))
def test_a_model_that_cannot_be_measured_is_named_and_the_others_are_measured(
    when: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs("masked", "int4")

    def refuse(path: Path, *_: Any) -> None:
        if path.stem == "int4":
            raise DecantError("out of memory")

    def wordless(row: Any, model: Checkpoint, forms: Any) -> str:
        if any(held.levels for held in model.constraints.values()):
            raise RuntimeError("out of memory")
        return "smaller"

    def tiring(*arguments: Any) -> Any:
        made = deploy_checked(*arguments)
        if any(held.levels for held in made.model.constraints.values()):
            return replace(made, model=replace(made.model, module=Tired(made.model.module)))
        return made

    deploy_checked = exports._export
    if when == "memory":
        monkeypatch.setattr(hardware, "peak_bytes", refuse)
    elif when == "words":
        monkeypatch.setattr(times, "verdict", wordless)
    else:
        monkeypatch.setattr(exports, "_export", tiring)
    with pytest.raises(DecantError, match=r"^1 of 3 models are not measured:\n  int4: .*out of memory$"):
        stage.main()
    assert sorted(path.stem for path in Path("onnx").iterdir()) == ["int4", "masked", "teacher"]
    content = json.loads(path_here().read_text())
    assert list(content["models"]) == ["teacher", "masked"]
    assert content["rounds"] == 3
    assert "masked" in Path("benchmark/README.md").read_text()


def test_a_teacher_that_cannot_be_measured_leaves_no_ratios(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs("masked")
    monkeypatch.setattr(hardware, "peak_bytes", never)
    with pytest.raises(
        DecantError, match=r"2 of 2 models are not measured:\n  teacher: AssertionError: measured"
    ):
        stage.main()
    assert sorted(path.stem for path in Path("onnx").iterdir()) == ["masked", "teacher"]
    assert not Path("benchmark").exists()


def test_a_teacher_that_cannot_be_deployed_leaves_the_others_files_and_no_ratios(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs("masked")

    def refuse(name: str, *_: Any) -> None:
        if name == "teacher":
            raise DecantError("another function")

    monkeypatch.setattr(exports, "check_same", refuse)
    with pytest.raises(DecantError, match=r"1 of 2 models are not in onnx:\n  teacher: another function"):
        stage.main()
    assert [path.name for path in Path("onnx").iterdir()] == ["masked.onnx"]
    assert not Path("benchmark").exists()


def test_all_test_images_are_looked_at_where_anything_is_rounded(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs("static", "int4", "int8", "masked")
    seen = {}
    monkeypatch.setattr(exports, "FLOATS", 7)
    monkeypatch.setattr(exports, "check_same", lambda name, _, __, given: seen.update({name: len(given)}))
    monkeypatch.setattr(stage, "write_times", lambda *_: {})
    stage.main()
    assert seen == {"teacher": 7, "masked": 7, "int8": 7, "int4": 40, "static": 40}


def test_peak_memory_is_of_the_model_in_a_process_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(to_onnx(teacher()).SerializeToString())
    found = peak_bytes(file, 128, threads=1)
    if found is None:
        pytest.skip("this system does not tell a process's peak")
    assert 128 * 64 * 4 < found < 1e9
    with pytest.raises(DecantError, match=r"none\.onnx could not be measured"):
        peak_bytes(tmp_path / "none.onnx", 1, threads=1)
