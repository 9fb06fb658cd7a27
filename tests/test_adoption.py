"""Networks and weights of other people: what is taken, what is refused, and that nothing runs by itself."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import decant
from decant.adoption import weights as reading
from decant.adoption.weights import read_weights
from decant.errors import DecantError
from decant.examples import Batch, Examples, Rows, arguments
from decant.inputs import TensorInput, drawn, inputs_of
from decant.networks import memory, python
from decant.networks.execution import answers, as_rows, predict
from decant.networks.python import Python, function_of, missing, sum_of_code
from decant.networks.record import example_of, record_of

FILE = "tests/test_adoption.py"
TAKES = {"x": TensorInput(shape=(6,))}


class Small(nn.Module):
    """Two layers, a batch norm, and a number that no file has."""

    scale: Tensor

    def __init__(self, width: int, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(6, width, bias=bias)
        self.norm = nn.BatchNorm1d(width)
        self.last = weight_norm(nn.Linear(width, 3))
        self.register_buffer("scale", torch.arange(1.0, 4.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu()) * self.scale


def small(width: int = 5) -> nn.Module:
    return Small(width)


class Random(Small):
    """One that keeps a random number beside its state."""

    def __init__(self) -> None:
        super().__init__(5)
        self.secret = torch.rand(3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.secret


class Deciding(Small):
    """One that looks at its inputs before it chooses what to do."""

    def __init__(self) -> None:
        super().__init__(5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class OneHot(Small):
    """One of which each number is a class: of so many, or of as many as the largest says."""

    def __init__(self, classes: int) -> None:
        super().__init__(5)
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        hot = nn.functional.one_hot((x > 0).long().sum(1), num_classes=self.classes)
        return super().forward(x - hot[:, :1])


class Leaving(Small):
    """One that computes with NumPy in between."""

    def __init__(self, how: str = "numpy") -> None:
        super().__init__(5)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        array = {"numpy": x.numpy, "list": x.tolist, "array": lambda: np.asarray(x)}[self.how]()
        return super().forward(torch.tensor(array))


class Mixing(Small):
    """One whose rows influence each other."""

    def __init__(self) -> None:
        super().__init__(5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class Drawing(Small):
    """One that drops out in eval mode too."""

    def __init__(self) -> None:
        super().__init__(5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.5))


class Counting(Small):
    """One that counts its passes."""

    def __init__(self) -> None:
        super().__init__(5)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(x) * self.passes


class Keeping(nn.Module):
    """One that keeps what it has made of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)
        self.kept: Tensor | None = None

    def made(self) -> Tensor:
        return self.first.weight.detach() * 2

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = self.made()
        return self.last(F.linear(x, self.kept).relu())  # type: ignore[no-any-return]


class Viewing(Keeping):
    """One that keeps a view of them."""

    def made(self) -> Tensor:
        return self.first.weight.detach()


class Forgetting(Keeping):
    """One that forgets it when a training begins."""

    def train(self, mode: bool = True) -> "Forgetting":
        if mode:
            self.kept = None
        return super().train(mode)


class OfBatch(nn.Sequential):
    """One that normalizes by the batch."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3))


class Nothing(Small):
    """One without a number in its answer."""

    def __init__(self) -> None:
        super().__init__(5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :0]


class Infinite(Nothing):
    """One with logarithms of zero."""

    def forward(self, x: Tensor) -> Tensor:
        return (0 * Small.forward(self, x).relu()).log()


class Versioned(Nothing):
    """One whose state is more than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state


class Quiet(Small):
    """One in inference mode."""

    def __init__(self) -> None:
        super().__init__(5)

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class QuietDeciding(Quiet):
    """One that looks at values there."""

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return Small.forward(self, x) * (2 if bool((x > 0).any()) else 1)


class Spectral(Small):
    """One with complex numbers: as a parameter, a buffer or its answers."""

    def __init__(self, where: str) -> None:
        super().__init__(5)
        turns = torch.polar(torch.ones(3), torch.arange(3.0))
        if where == "parameter":
            self.turns: Any = nn.Parameter(turns)
        else:
            self.register_buffer("turns", turns, persistent=where == "buffer")
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        turned = super().forward(x) * self.turns
        return turned if self.where == "answers" else torch.view_as_real(turned)


def failing() -> nn.Module:
    raise ValueError("no such size")


def nothing() -> None:
    return None


def endless() -> nn.Module:
    while True:
        try:
            while True:
                pass
        except Exception:  # goes on after whatever it meets
            pass


def large() -> nn.Module:
    return nn.Linear(6, 100_000_000)


def deep() -> nn.Module:
    return nn.Sequential(*(nn.Linear(1000, 1000) for _ in range(1000)))


def adopted(build: Callable[..., Any], **options: Any) -> decant.Checkpoint:
    return decant.adopt(decant.Source(Python.of(build, **options), inputs=TAKES)).model


def trained(width: int = 5) -> dict[str, Tensor]:
    """Return weights as another one's training would leave them."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        module = small(width)
        module(torch.randn(40, 6))  # moves the statistics of its batch norm
        return module.state_dict()


# --- rows


def test_rows_are_cut_like_tensors() -> None:
    rows = Rows({"ids": torch.arange(12).reshape(6, 2), "mask": torch.arange(6) % 2 == 0})
    assert len(rows) == 6
    assert torch.equal(rows[2:4].tensors["ids"], torch.tensor([[4, 5], [6, 7]]))
    assert torch.equal(rows[torch.tensor([5, 0])].tensors["mask"], torch.tensor([False, True]))
    assert [len(part) for part in rows.split(4)] == [4, 2]
    first = next(iter(rows.split(4)))
    assert torch.equal(first.tensors["ids"], rows.tensors["ids"][:4])


@pytest.mark.parametrize("tensors", [{}, {"a": torch.zeros(2), "b": torch.zeros(3)}])
def test_rows_of_other_lengths_are_none(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(DecantError, match="same number of rows"):
        Rows(tensors)


def test_a_network_may_change_what_it_is_called_with() -> None:
    rows = Rows({"x": torch.ones(2, 3)})
    (given,) = arguments(rows)
    given.zero_()
    assert rows.tensors["x"].sum() == 6


def test_answers_of_any_form_are_one_tensor_of_rows() -> None:
    outputs = {"a": torch.arange(12.0).reshape(2, 3, 2), "b": (torch.tensor([7.0, 8.0]), None)}
    assert as_rows(outputs, 2).tolist() == [[0, 1, 2, 3, 4, 5, 7], [6, 7, 8, 9, 10, 11, 8]]
    logits = torch.rand(2, 5)
    assert as_rows(logits, 2) is logits
    assert as_rows([logits], 2) is logits
    for wrong in (torch.zeros(3, 2), torch.tensor(1.0), None, "text"):
        with pytest.raises(DecantError):
            as_rows(wrong, 2)


def test_several_inputs_are_given_by_position() -> None:
    rows = Rows({"left": torch.ones(5, 2), "right": torch.arange(10.0).reshape(5, 2)})
    subtract: Callable[..., Tensor] = lambda left, right: right - left  # noqa: E731
    expected = torch.arange(10.0).reshape(5, 2) - 1
    assert torch.equal(predict(subtract, rows, batch_size=2), expected)
    assert answers(subtract, rows, torch.float64).dtype == torch.float64


def test_examples_without_labels_say_so() -> None:
    examples = Examples(Rows({"x": torch.zeros(4, 2)}), None, ())
    assert len(examples.first(3)) == 3
    with pytest.raises(DecantError, match="no labels"):
        _ = examples.known_labels


# --- inputs


def test_examples_are_drawn_within_what_is_said() -> None:
    takes = {
        "ids": TensorInput(shape=("length",), dtype="int64", at_least=3, below=7, example=(500,)),
        "wave": TensorInput(shape=(1, None)),
        "mask": TensorInput(shape=(4,), dtype="bool"),
    }
    ids, wave, mask = drawn(takes, rows=2, seed=1)
    assert ids.shape == (2, 500) and {*ids.flatten().tolist()} == {3, 4, 5, 6}
    assert wave.shape == (2, 1, 32) and wave.dtype == torch.float32
    assert mask.dtype == torch.bool
    assert all(torch.equal(a, b) for a, b in zip(drawn(takes, 2, 1), (ids, wave, mask), strict=True))


def test_what_takes_tensors_is_read_off_them() -> None:
    found = inputs_of({"ids": torch.tensor([[3, 9], [4, 5]], dtype=torch.int32), "x": torch.zeros(2)})
    assert found["ids"] == TensorInput(shape=(2,), dtype="int32", at_least=3, below=10)
    assert found["x"] == TensorInput(shape=())
    with pytest.raises(ValueError, match="complex64"):
        inputs_of({"x": torch.zeros(2, dtype=torch.complex64)})


# --- adopting


def test_a_network_with_its_weights_comes_in_and_goes_to_disk_and_back(tmp_path: Path) -> None:
    safetensors.torch.save_file(trained(), tmp_path / "w.safetensors")
    source = decant.Source(Python.of(small, width=5), tmp_path / "w.safetensors", inputs=TAKES)
    result = decant.adopt(source)
    original = small()
    original.load_state_dict(trained())
    inputs = Rows({"x": torch.randn(9, 6, generator=torch.Generator().manual_seed(3))})
    assert torch.allclose(predict(result.model.module, inputs), predict(original.eval(), inputs), atol=1e-6)
    assert "last.weight" in dict(result.model.module.named_parameters())  # plain now
    assert result.facts["made plain"] == "last.weight"
    decant.save(result.model, tmp_path / "model")
    loaded = decant.load(tmp_path / "model", build=small)
    assert torch.equal(predict(loaded.module, inputs), predict(result.model.module, inputs))
    assert loaded.shape == TAKES
    assert torch.equal(example_of(loaded.module)[0], example_of(result.model.module)[0])


def test_a_model_on_disk_runs_nothing_and_takes_no_other_code(tmp_path: Path) -> None:
    decant.save(adopted(small, width=4), tmp_path)
    with pytest.raises(DecantError, match=r"small in test_adoption.py, which is not run by itself"):
        decant.load(tmp_path)
    with pytest.raises(DecantError, match="nothing was given"):
        decant.load(tmp_path, build=nothing)
    other = Python.of(small, width=4).model_copy(update={"code": "0" * 64})
    other._builder = small
    with pytest.raises(DecantError, match=r"saved with other code: small of test_adoption.py had the sum"):
        decant.load(tmp_path, build=other)
    wider = Python.of(small, width=6)
    with pytest.raises(DecantError, match="'width': 4"):
        decant.load(tmp_path, build=wider)
    with pytest.raises(DecantError, match="not run by itself"):
        Python.model_validate({"file": "a.py", "build": "f"}).build()


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (Random, r"line \d+: two builds of the network with the same weights answer differently"),
        (Deciding, r"line \d+: what the network computes depends on a value of its inputs"),
        (Leaving, r"line \d+: what the network computes depends on .* or numbers that leave torch"),
        (Mixing, r"line \d+: rows alone and in a batch of 4 .* rows influence each other"),
        (Drawing, r"line \d+: .* draws at random"),
        (Counting, r"line \d+: .* a pass changes what the next one computes, such as by counting"),
        (Keeping, r"line \d+: with other weights the network answers what it did before: a pass keeps"),
        (Viewing, r"line \d+: with other weights the network answers what it did before: a pass keeps"),
        (OfBatch, r"the network fails on one row, .*more than 1 value per channel"),
        (QuietDeciding, r"line \d+: what the network computes depends on a value of its inputs"),
        (Versioned, r"line \d+: _extra_state: a module keeps a state that is no tensor .*; keep what"),
        (Nothing, r"line \d+: the network answers no number for a row, expected one or more"),
        (Infinite, r"line \d+: the network answers infinite numbers, .*mask by one such as -1e4"),
        (failing, r"line \d+: failing cannot build the network: ValueError: no such size"),
        (nothing, r"line \d+: nothing returns NoneType, expected a torch.nn.Module"),
        (Small, r"line \d+: Small: missing a required argument: 'width'; name it under `with`"),
    ],
)
def test_a_network_that_cannot_be_relied_on_is_refused(build: Callable[..., Any], sentence: str) -> None:
    with pytest.raises(DecantError, match=sentence) as refusal:
        adopted(build)
    assert "test_adoption.py" in str(refusal.value)


def test_one_hot_of_as_many_classes_as_are_said_decides_nothing() -> None:
    with pytest.raises(DecantError, match="what the network computes depends on a value of its inputs"):
        adopted(OneHot, classes=-1)
    model, x = adopted(OneHot, classes=7), torch.cat([torch.randn(7, 6), -torch.ones(2, 6)])
    none = ~(x > 0).any(1, keepdim=True)
    assert torch.equal(model.module(x), Small.forward(model.module, x - none.long()))  # type: ignore[arg-type]


def test_what_is_forgotten_when_a_training_begins_may_be_kept() -> None:
    assert adopted(Forgetting).module.get_parameter("first.weight").shape == (5, 6)


def test_a_network_in_inference_mode_shows_what_it_multiplies() -> None:
    plain, quiet = (
        record_of(adopted(build, **more).module) for build, more in ((small, {"width": 5}), (Quiet, {}))
    )
    assert [*quiet.weights] == [*plain.weights] == ["first.weight", "last.weight"]
    assert quiet.macs == plain.macs > 0
    assert all(weight.layer for weight in quiet.weights.values())


@pytest.mark.parametrize("where", ["parameter", "buffer"])
def test_complex_weights_are_refused_by_name(where: str) -> None:
    with pytest.raises(DecantError, match=r"line \d+: turns is a .* of complex64, expected .*view_as_real"):
        adopted(Spectral, where=where)


def test_complex_answers_are_refused_and_complex_numbers_in_between_are_not() -> None:
    with pytest.raises(DecantError, match=r"line \d+: the network answers complex numbers"):
        adopted(Spectral, where="answers")
    model = adopted(Spectral, where="between")
    assert predict(model.module, Rows({"x": torch.ones(2, 6)})).shape == (2, 6)


@pytest.mark.parametrize("how", ["list", "array"])
def test_numbers_do_not_leave_torch_on_their_way(how: str) -> None:
    with pytest.raises(DecantError, match="numbers that leave torch"):
        adopted(Leaving, how=how)


def test_a_build_without_an_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python, "LIMIT", 0.2)
    with pytest.raises(DecantError, match=r"line \d+: endless cannot .* OutOfTime: not done after 0.2 s"):
        adopted(endless)


@pytest.mark.parametrize("build", [large, deep])
def test_a_network_that_does_not_fit_into_memory_is_told(
    build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one layer, or in many that would each fit."""
    monkeypatch.setattr(memory, "free_memory", lambda: 200 << 20)
    with pytest.raises(DecantError, match=r"line \d+: \w+ cannot build the network: it takes more memory"):
        adopted(build)
    assert adopted(small)  # and the limit is gone


def test_an_input_that_does_not_fit_names_the_users_line() -> None:
    takes = {"x": TensorInput(shape=(7,))}
    with pytest.raises(
        DecantError, match=r"test_adoption.py, line \d+: .* fails .* x \[4, 7\] of float32 as the data "
    ):
        decant.adopt(decant.Source(Python.of(small), inputs=takes))


def test_outputs_have_to_fit_the_classes() -> None:
    source = decant.Source(Python.of(small), inputs=TAKES)
    assert decant.adopt(source, classes=("a", "b", "c")).model.classes == ("a", "b", "c")
    with pytest.raises(DecantError, match="3 numbers a row, and there are 2 classes"):
        decant.adopt(source, classes=("a", "b"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda s: s | {"first.wieght": s.pop("first.weight")},
            r"first.weight \[5, 6\] is missing \(nearest: f",
        ),
        (lambda s: s | {"extra": torch.zeros(2)}, r"extra \[2\] has no place"),
        (lambda s: s | {"first.weight": torch.zeros(6, 5)}, r"the shape \[6, 5\], the network's \[5, 6\]"),
        (lambda s: s | {"first.bias": torch.full((5,), math.nan)}, "first.bias holds NaN"),
        (lambda s: s | {"first.bias": torch.full((5,), math.inf)}, "first.bias holds NaN or infinity"),
        (
            lambda s: {f"encoder.{k}.w": v for k, v in s.items()},
            "does not fit the network, in 19 .*; build the",
        ),
        (lambda s: s | {"first.bias": torch.zeros(5, dtype=torch.int64)}, "is of torch.int64"),
    ],
)
def test_weights_that_do_not_fit_are_listed(change: Callable[[Any], Any], sentence: str) -> None:
    with pytest.raises(DecantError, match=sentence):
        decant.adopt(decant.Source(Python.of(small), change(trained()), inputs=TAKES))


@pytest.mark.parametrize(
    "content",
    [
        lambda s: s,
        lambda s: {"model_state": s, "epoch": 3, "optimizer": {"state": {0: {"a": torch.zeros(1)}}, "lr": 1}},
        lambda s: {"net": {"state_dict": {f"module.{k}": v for k, v in s.items()}}},
        lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
        lambda s: {k: v.double() if v.is_floating_point() else v for k, v in s.items()},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_of_torch_are_found_where_they_lie(
    content: Callable[[Any], Any], zipped: bool, tmp_path: Path
) -> None:
    torch.save(content(trained()), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    model = decant.adopt(decant.Source(Python.of(small), tmp_path / "w.pth", inputs=TAKES)).model
    assert torch.equal(model.module.get_parameter("first.weight"), trained()["first.weight"])


def test_of_several_sets_of_weights_one_has_to_be_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"model": trained(), "ema": {k: v + 1 for k, v in trained().items()}}, path)
    with pytest.raises(DecantError, match="several sets of tensors, model, ema; name one"):
        read_weights(path)
    assert torch.equal(read_weights(path, "model")["first.bias"], trained()["first.bias"])
    with pytest.raises(DecantError, match="has no 'mdoel'; it has model, ema"):
        read_weights(path, "mdoel")


def test_files_that_run_code_are_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pth")
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    (tmp_path / "forest.joblib").write_bytes(b"\x80\x04.")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    for name, sentence in {
        "whole.pth": "holds more than tensors.*weights_only=False",
        "script.pt": "is TorchScript, a program.*torch.jit.load",
        "forest.joblib": "neither .safetensors nor .*joblib.load",
        "cut.safetensors": "no whole safetensors file",
        "none.pth": "No weights at",
    }.items():
        with pytest.raises(DecantError, match=f"(?s){sentence}"):
            read_weights(tmp_path / name)


def test_weights_that_do_not_fit_into_memory_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safetensors.torch.save_file(trained(), tmp_path / "w.safetensors")
    monkeypatch.setattr(reading, "free_memory", lambda: 1000)
    with pytest.raises(DecantError, match="GB are free; take a machine with more memory"):
        read_weights(tmp_path / "w.safetensors")


# --- files of code


def test_a_file_is_read_before_it_is_run(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("raise SystemExit('it was run')\ndef f(width, *, depth=1): ...\nclass Net: ...\n")

    def asked(build: str, **options: Any) -> str:
        content = {"file": "net.py", "build": build, "with": options}
        return missing(Python.model_validate(content), tmp_path)

    assert asked("f", width=1) == ""
    assert asked("f", width=1, depth=2) == ""
    assert asked("f") == "net.py, line 2: f needs width; name it under `with`"
    assert asked("f", width=1, wide=2) == "net.py, line 2: f takes no wide; it takes depth, width"
    assert asked("g") == "net.py has no function g; it has f, Net"
    path.write_text("def f(:\n")
    with pytest.raises(DecantError, match=r"net.py, line 1 cannot be read as Python"):
        asked("f")


def test_a_function_is_taken_out_of_its_file_and_files_beside_it_count(tmp_path: Path) -> None:
    (tmp_path / "blocks.py").write_text("from torch import nn\ndef block():\n    return nn.Linear(2, 2)\n")
    path = tmp_path / "net.py"
    path.write_text("from blocks import block\ndef net():\n    return block()\n")
    asked = Python.model_validate({"file": "net.py", "build": "net"})
    assert isinstance(function_of(asked, tmp_path)(), nn.Linear)
    before = python.sum_of_code(path)
    (tmp_path / "blocks.py").write_text("from torch import nn\ndef block():\n    return nn.Identity()\n")
    assert python.sum_of_code(path) != before
    with pytest.raises(DecantError, match=r"net.py has no function other"):
        function_of(asked.model_copy(update={"function": "other"}), tmp_path)
    path.write_text("import torch\nx = 1 / 0\n")
    with pytest.raises(DecantError, match=r"net.py, line 2: the file cannot be run: ZeroDivisionError"):
        function_of(asked, tmp_path)


DRAWN = """
from torch import nn
from parts import SCALE

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x) * SCALE
"""


def test_what_a_file_draws_while_it_is_run_is_no_part_of_a_network(tmp_path: Path) -> None:
    """Each process would draw another number, and so have another function."""
    (tmp_path / "net.py").write_text(DRAWN)

    def bound(parts: str) -> Python:
        (tmp_path / "parts.py").write_text(f"import torch\n{parts}\n")
        sys.modules.pop("parts", None)
        asked = Python.model_validate({"file": "net.py", "build": "Net"})
        return asked.bound(function_of(asked, tmp_path), sum_of_code(tmp_path / "net.py", tmp_path))

    with pytest.raises(DecantError, match=r"net.py, line 5: two builds of the network .* answer differently"):
        decant.adopt(decant.Source(bound("SCALE = torch.rand(3)"), inputs=TAKES))
    steady = bound("SCALE = torch.rand(3, generator=torch.Generator().manual_seed(3))")
    assert decant.adopt(decant.Source(steady, inputs=TAKES)).facts["code"] == steady.code


def test_whatever_a_file_has_under_the_name_may_build(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(
        "import functools\nfrom torch import nn\n"
        "Net = functools.partial(nn.Linear, 6, 3)\nNet2 = lambda width: nn.Linear(6, width)\n"
    )
    for name, options in {"Net": {}, "Net2": {"width": 3}}.items():
        asked = Python.model_validate({"file": "other.py", "build": name, "with": options})
        found = asked.bound(function_of(asked, tmp_path), "0" * 64)
        assert decant.adopt(decant.Source(found, inputs=TAKES)).model.module.out_features == 3


@pytest.mark.parametrize("file", ["/etc/x.py", "../x.py", "x.txt", "a\\b.py"])
def test_only_files_below_the_folder_can_be_named(file: str) -> None:
    with pytest.raises(ValueError, match="below this folder"):
        Python.model_validate({"file": file, "build": "f"})


def test_pictures_go_in_as_ever() -> None:
    pictures: Batch = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    (given,) = arguments(pictures)
    assert given.tolist() == [[[[0.0, 1.0]]]]
