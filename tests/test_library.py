"""The library from outside: what docs/library.md shows, and what `import decant` costs."""

import ast
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.datasets import load_digits

import decant
from decant.finetune import finetune
from decant.prune import prune
from decant.quantize import quantize
from tests.imports import OPERATIONS, ROOT

DOCS = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")


def ten_lines() -> str:
    """Return the program that the page shows."""
    (shown,) = re.findall(r"<!-- ten lines -->\n```python\n(.*?)```", DOCS, re.DOTALL)
    return str(shown)


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    found = load_digits()
    images = torch.from_numpy(found.images * 15).to(torch.uint8)[:, None]
    return images, torch.from_numpy(found.target).long()


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return (logits.argmax(1) == labels).float().mean().item()


def test_ten_lines_prune_quantize_and_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels = (each[:900] for each in digits())
    there = {"images": images, "labels": labels}
    source = ten_lines()
    statements = [line for line in source.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(statements) <= 10
    exec(compile(source, "docs/library.md", "exec"), there)
    small, teacher = there["small"], there["teacher"]
    assert isinstance(small, decant.Checkpoint)
    assert isinstance(teacher, decant.Checkpoint)
    validation = images[:200]
    logits = decant.predict(small.module, validation)
    accuracy = (logits.argmax(1) == labels[:200]).float().mean().item()
    assert (
        accuracy
        >= (decant.predict(teacher.module, validation).argmax(1) == labels[:200]).float().mean() - 0.05
    )
    assert accuracy > 0.8

    weights = [small.module.get_parameter(name) for name in small.constraints]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros >= 0.6 * sum(weight.numel() for weight in weights) - 1
    assert torch.equal(decant.predict(decant.load("small").module, validation), logits)
    assert decant.size_bytes("small") == sum(
        (tmp_path / "small" / file).stat().st_size for file in ("model.safetensors", "model.json")
    )

    decant.check_same("small", small, decant.open_session(Path("small.onnx").read_bytes(), 1), validation)
    session = onnxruntime.InferenceSession("small.onnx")
    (found,) = session.run(None, {"image": validation.numpy().astype(np.float32) / 255})
    assert (found.argmax(1) == logits.argmax(1).numpy()).mean() > 0.97


def test_a_mistake_in_a_recipe_is_told_with_its_place() -> None:
    images, labels = digits()
    examples = decant.Examples(images[:20], labels[:20], tuple("0123456789"))
    splits = decant.Splits(examples, examples)
    network = decant.Mlp(hidden=(8,))
    module = decant.build(network, examples.shape, 10, seed=0).eval()
    parent = decant.Checkpoint(network, examples.shape, examples.classes, module)
    with pytest.raises(decant.DecantError, match=r"criterion: unknown kind 'magnitud'; did you mean"):
        prune(parent, {"criterion": {"kind": "magnitud"}, "budget": {"sparsity": 0.5}}, splits)
    with pytest.raises(
        decant.DecantError, match=r"recipe for finetune is not valid:\n  training: is missing"
    ):
        finetune(parent, {}, splits)
    with pytest.raises(decant.DecantError, match="changed nothing"):
        prune(
            prune(parent, {"criterion": {"kind": "magnitude"}, "budget": {"sparsity": 0.5}}, splits).model,
            {"criterion": {"kind": "magnitude"}, "budget": {"sparsity": 0.5}},
            splits,
        )


def given(count: int = 20) -> tuple[decant.Checkpoint, decant.Examples]:
    """Return an untrained model of the digits, and some of them."""
    images, labels = digits()
    examples = decant.Examples(images[:count], labels[:count], tuple("0123456789"))
    network = decant.Mlp(hidden=(8,))
    module = decant.build(network, examples.shape, 10, seed=0).eval()
    return decant.Checkpoint(network, examples.shape, examples.classes, module), examples


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"labels": torch.arange(20) % 10 + 1},
            "Labels reach from 1 to 10, .* 10 classes, 0 to 9",
        ),
        ({"labels": torch.arange(20) % 10 - 1}, "Labels reach from -1 to 8"),
        ({"labels": torch.arange(19) % 10}, "There are 19 labels of 20 examples; give one for each"),
        (
            {"labels": torch.rand(20)},
            r"Labels are float32, expected .* int64 in \[0, 10\)",
        ),
        ({"labels": torch.zeros(20, dtype=torch.int32)}, "Labels are int32, expected"),
    ],
)
def test_labels_that_are_no_classes_are_refused(changes: dict[str, Any], sentence: str) -> None:
    _, examples = given()
    with pytest.raises(decant.DecantError, match=sentence):
        replace(examples, **changes)


def test_only_what_looks_at_no_example_needs_none() -> None:
    model, examples = given()
    training, empty = {"training": {"epochs": 1}}, examples.first(0)
    for splits, name in (
        (decant.Splits(examples, empty), "validation"),
        (decant.Splits(empty, examples), "training"),
    ):
        with pytest.raises(decant.DecantError, match=f"There are no {name} examples; give one or more"):
            finetune(model, training, splits)
    rounding = {"scheme": {"kind": "integer"}, "activations": {"bits": 8}, "images": 1}
    with pytest.raises(decant.DecantError, match="1 training images are asked for, and there are 0"):
        quantize(model, rounding, decant.Splits(empty, empty))
    recipe = {"criterion": {"kind": "magnitude"}, "budget": {"sparsity": 0.5}}
    nothing = decant.Examples(torch.zeros(0, 3, 9, 9), torch.zeros(0), examples.classes)
    pruned, other = (prune(model, recipe, decant.Splits(each, each)).model for each in (examples, nothing))
    assert all(
        torch.equal(a, b) for a, b in zip(pruned.module.parameters(), other.module.parameters(), strict=True)
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_says_what_it_was_given_in_the_place_of_a_model(operation: str) -> None:
    carry_out = getattr(import_module(f"decant.{operation}"), operation)
    model, examples = given()
    splits = decant.Splits(examples, examples)
    thick = replace(examples, images=examples.images.repeat(1, 3, 1, 1))  # type: ignore[union-attr]
    rows = replace(examples, images=decant.Rows({"x": torch.rand(20, 3)}))
    taken = "The training examples are not what the model takes: "
    for arguments, sentence in (
        ((model.module, {}, splits), "The model is a Sequential, expected a decant.Checkpoint"),
        ((model, {}, examples), "The examples are Examples, expected decant.Splits"),
        (
            (model, {}, decant.Splits(thick, examples)),
            f"{taken}pictures of 3 x 8 x 8, expected pictures of 1 x 8 x 8",
        ),
        ((model, {}, decant.Splits(rows, examples)), f"{taken}the tensors x, expected pictures of 1 x 8 x 8"),
        ((model, "half", splits), "The recipe is str, expected a dict with the keys of params.yaml"),
    ):
        with pytest.raises(decant.DecantError, match=sentence):
            carry_out(*arguments)
    with pytest.raises(decant.DecantError, match="The teacher is a Sequential, expected a"):
        carry_out(model, {}, splits, teacher=model.module)


def test_rows_that_a_model_does_not_take_are_told_by_their_tensor() -> None:
    net = torch.nn.Linear(3, 2).eval()
    rows = decant.Examples(decant.Rows({"x": torch.rand(9, 3)}), None, ())
    model = decant.Checkpoint(None, rows.shape, (), net)
    recipe = {"criterion": {"kind": "magnitude"}, "budget": {"sparsity": 0.5}}
    for other, sentence in (
        ({"z": torch.rand(9, 3)}, "the tensors z, expected the tensors x"),
        ({"x": torch.rand(9, 4)}, r"x \[4\] of float32, expected \[3\] of float32"),
        ({"x": torch.rand(9, 3).double()}, r"x \[3\] of float64, expected \[3\] of float32"),
    ):
        with pytest.raises(decant.DecantError, match=sentence):
            prune(model, recipe, decant.Splits(rows, replace(rows, images=decant.Rows(other))))


def test_an_array_of_numpys_is_told_apart_from_a_tensor() -> None:
    model, examples = given()
    with pytest.raises(decant.DecantError, match=r"Images are ndarray, expected a tensor, .*from_numpy"):
        decant.predict(model.module, examples.images.numpy())  # type: ignore[union-attr]


def run_python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *options, "-c", code], env=environment, capture_output=True, text=True, check=True
    )


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "pydantic", "onnx", "onnxruntime", "tqdm", "safetensors")
    code = f"import sys, decant; print([name for name in {heavy} if name in sys.modules])"
    assert run_python(code).stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["decant", *(f"decant.{op}" for op in OPERATIONS)])
def test_every_name_of_a_stub_is_there(package: str) -> None:
    stub = ROOT.joinpath(*package.split("."), "__init__.pyi").read_text(encoding="utf-8")
    names = [
        alias.asname or alias.name
        for node in ast.parse(stub).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert names == sorted(names, key=names.index)
    found = import_module(package)
    assert all(callable(getattr(found, name)) for name in names)
    assert set(names) <= set(dir(found))


def test_names_on_the_page_are_there() -> None:
    for name in set(re.findall(r"\bdecant\.([A-Za-z_]\w*)\b", DOCS)):
        if name not in OPERATIONS:
            assert hasattr(decant, name), name
    for module, name in re.findall(r"from (decant\.\w+) import (\w+)", DOCS):
        assert callable(getattr(import_module(module), name))
