"""Networks, weights and data of one's own in the pipeline: from params.yaml to a compressed model."""

import json
import subprocess
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from torch import Tensor

from decant.checkpoints.lineage import read_lineage
from decant.errors import DecantError
from decant.examples import Rows
from decant.finetune.operation import finetune
from decant.finetune.params import FinetuneParams
from decant.networks.execution import predict
from decant.prune.operation import prune as pruned
from decant.prune.params import PruneParams
from decant.quantize.operation import quantize
from decant.quantize.params import QuantizeParams
from tasks.evaluate.__main__ import main as evaluate
from tasks.pipeline import networks, predictions, splits
from tasks.pipeline.lineages import MODELS
from tasks.pipeline.metrics import OF_OUTPUTS
from tasks.pipeline.models import load_model
from tasks.pipeline.params import read_section, read_yaml
from tasks.pipeline.step import compress
from tasks.prepare.__main__ import main as prepare
from tasks.prepare.params import PrepareParams
from tasks.report.__main__ import main as report
from tasks.teacher.__main__ import main as teach
from tasks.validate.__main__ import main as validate
from tests.homes import home, write_params
from tests.imports import ROOT

CODE = """
import torch
from torch import nn


class Reader(nn.Module):
    def __init__(self, words, width, outputs):
        super().__init__()
        self.table = nn.Embedding(words, width)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, ids, mask):
        seen = self.table(ids) * mask[..., None]
        return self.head(self.hidden(seen.sum(1) / mask.sum(1, keepdim=True)).relu())


def reader(width, words=20, outputs=3):
    return Reader(words, width, outputs)
"""

THREADS = dict.fromkeys(("teacher", "clip", "prune", "quantize", "distill", "finetune", "evaluate"), 1)


def arrays(count: int, seed: int) -> dict[str, Tensor]:
    """Return token ids of eight words and their masks."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 9, (count, 1), generator=generator)
    return {
        "ids": torch.randint(1, 20, (count, 8), generator=generator),
        "mask": (torch.arange(8) < lengths).float(),
    }


def git(*words: str) -> None:
    subprocess.run(["git", *words], check=True, capture_output=True)


def network() -> Any:
    """Return the user's own network with the weights that lie in its file."""
    scope: dict[str, Any] = {}
    exec(compile(CODE, "reader.py", "exec"), scope)
    module = scope["reader"](6)
    module.load_state_dict(safetensors.torch.load_file("networks/reader.safetensors"))
    return module.eval()


def content() -> dict[str, Any]:
    return {
        "seed": 1,
        "threads": THREADS,
        "data": {
            "source": "arrays",
            "train": "data/arrays/train.npz",
            "validation": 20,
            "test": "data/arrays/test.safetensors",
            "inputs": ["ids", "mask"],
        },
        "teacher": {
            "architecture": {
                "kind": "python",
                "file": "networks/reader.py",
                "build": "reader",
                "with": {"width": 6},
            },
            "weights": "networks/reader.safetensors",
            "inputs": {
                "ids": {"shape": ["words"], "dtype": "int64", "below": 20},
                "mask": {"shape": ["words"]},
            },
        },
        "models": {"int8": {"op": "quantize", "from": "teacher", "scheme": {"kind": "integer", "bits": 8}}},
        "benchmark": {"threads": 1, "rounds": 3, "seconds": 1},
    }


@contextmanager
def project(folder: Path, params: dict[str, Any], data: str, file: str, code: str) -> Iterator[None]:
    """Work in a project with a folder for data and the code of a network, which Git tracks."""
    networks.trusted.cache_clear()
    with home(folder, params=params):
        for place in (Path(file).parent, Path(data)):
            place.mkdir(parents=True)
        Path(file).write_text(code)
        git("init", "--quiet")
        git("add", file)
        yield
    networks.trusted.cache_clear()


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Path]:
    with project(tmp_path, content(), "data/arrays", "networks/reader.py", CODE):
        np.savez("data/arrays/train.npz", **{name: each.numpy() for name, each in arrays(60, 0).items()})
        safetensors.torch.save_file(arrays(30, 1), "data/arrays/test.safetensors")
        scope: dict[str, Any] = {}
        exec(compile(CODE, "reader.py", "exec"), scope)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            safetensors.torch.save_file(scope["reader"](6).state_dict(), "networks/reader.safetensors")
        yield tmp_path


def changed(**sections: Any) -> None:
    """Change entries of params.yaml, named with dots as `teacher__weights`."""
    read = read_yaml()
    for place, value in sections.items():
        *path, last = place.split("__")
        section = read
        for key in path:
            section = section[key]
        if value is None:
            section.pop(last, None)
        else:
            section[last] = value
    write_params(read)


def page(first: str) -> str:
    """Return the block of docs/own-network.md that begins with this line."""
    lines = (ROOT / "docs" / "own-network.md").read_text(encoding="utf-8").splitlines()
    begin = next(at for at, line in enumerate(lines) if line.strip() == first)
    indent = lines[begin].removesuffix(first)
    rest = enumerate(lines[begin:], begin)
    end = next(at for at, line in rest if line.strip() and not line.startswith(indent))
    return textwrap.dedent("\n".join(lines[begin:end]))


@pytest.mark.parametrize("labelled", [True, False])
def test_the_page_holds_as_it_is_written(labelled: bool, workshop: Path) -> None:
    Path("networks/mine.py").write_text(page("from torch import nn"))
    git("add", "networks/mine.py")
    scope: dict[str, Any] = {}
    exec(Path("networks/mine.py").read_text(), scope)
    safetensors.torch.save_model(scope["build"](), "networks/mine.safetensors")
    drawn = np.random.default_rng(0)
    for split in ("train", "test"):
        rows = {"x": drawn.standard_normal((200, 12), np.float32), "kind": np.arange(200) % 3}
        np.savez(f"data/arrays/{split}.npz", **(rows if labelled else {"x": rows["x"]}))
    default = yaml.safe_load((ROOT / "params.yaml").read_text())
    params = {**default, **yaml.safe_load(page("data:")), "threads": THREADS}
    if not labelled:
        del params["data"]["labels"]
        params |= yaml.safe_load(page("gates:"))
    write_params(params)
    validate()
    prepare()
    teach()
    compress("int8", QuantizeParams, quantize)
    compress("half", PruneParams, pruned)
    evaluate("teacher")
    for name in ("int8", "half"):
        evaluate(name)
        measures = json.loads(Path("metrics", f"{name}.json").read_text())
        assert ("accuracy" in measures, "cosine" in measures) == (labelled, not labelled)


def test_a_network_with_weights_and_rows_of_ones_own_is_compressed(workshop: Path) -> None:
    validate()
    prepare()
    read = splits.read_splits()
    assert isinstance(read.train.images, Rows) and len(read.train) == 40 and len(read.validation) == 20
    assert read.train.labels is None
    assert torch.equal(splits.read(splits.TEST).images.tensors["ids"], arrays(30, 1)["ids"])
    every = {tuple(row) for row in arrays(60, 0)["ids"].tolist()}
    assert {tuple(row) for row in read.train.images.tensors["ids"].tolist()} < every
    teach()
    teacher, test = load_model("teacher"), splits.read(splits.TEST).images
    right = network()(**test.tensors)
    assert torch.allclose(predict(teacher.module, test), right, atol=1e-6)
    step = read_lineage(MODELS / "teacher").lineage.steps[0]
    assert len(step["code"]) == len(step["weights_sha256"]) == 64
    compress("int8", QuantizeParams, quantize)
    small = load_model("int8")
    found = predict(small.module, test)
    assert 0 < (found - right).abs().max() < 0.1


def test_a_network_of_ones_own_is_trained_on_labels(workshop: Path) -> None:
    labelled = arrays(60, 0) | {"kind": torch.arange(60) % 3}
    np.savez("data/arrays/train.npz", **{name: each.numpy() for name, each in labelled.items()})
    training = {"epochs": 1, "batch_size": 8, "optimizer": {"kind": "adamw", "learning_rate": 0.01}}
    changed(teacher__weights=None, teacher__training=training, data__labels="kind", data__test=10)
    validate()
    prepare()
    teach()
    assert load_model("teacher").classes == ("0", "1", "2")


def test_models_without_labels_are_measured_and_reported(workshop: Path) -> None:
    training = {"epochs": 2, "batch_size": 8, "optimizer": {"kind": "adamw", "learning_rate": 0.01}}
    prune = {"op": "prune", "criterion": {"kind": "magnitude"}, "budget": {"sparsity": 0.5}}
    models = {
        "half": {"from": "teacher", **prune},
        "half-ft": {"op": "finetune", "from": "half", "training": training},
    }
    changed(models=models)
    validate()
    prepare()
    teach()
    compress("half", PruneParams, pruned)
    compress("half-ft", FinetuneParams, finetune)
    for name in ("teacher", "half", "half-ft"):
        evaluate(name)
    test = splits.read(splits.TEST).images
    right = network()(**test.tensors).double()
    assert np.allclose(np.load(predictions.path_of("teacher")), right.detach(), atol=1e-6)
    rows = {name: json.loads(Path("metrics", f"{name}.json").read_text()) for name in ("teacher", *models)}
    assert all(list(row) == list(OF_OUTPUTS.keys) for row in rows.values())
    assert rows["teacher"]["cosine"] == rows["teacher"]["cosine_least"] == 1
    assert rows["teacher"]["relative_error"] == 0
    found = predict(load_model("half").module, test).double()
    by_hand = [(f @ r / f.norm() / r.norm()).item() for f, r in zip(found, right, strict=True)]
    assert rows["half"]["cosine"] == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-4)
    assert rows["half"]["cosine_least"] == pytest.approx(min(by_hand), rel=1e-4)
    errors = [((f - r).norm() / r.norm()).item() for f, r in zip(found, right, strict=True)]
    assert rows["half"]["relative_error"] == pytest.approx(sum(errors) / len(errors), rel=1e-4)
    assert rows["half-ft"]["relative_error"] < rows["half"]["relative_error"]
    assert list(json.loads(Path("headline/half.json").read_text())) == list(OF_OUTPUTS.headline)
    report()
    assert "| half-ft" in Path("report/README.md").read_text()
    assert (
        Path("report/curves.csv")
        .read_text()
        .startswith("model,epoch,loss,validation_loss,validation_cosine\n")
    )


SOFT = {"kind": "temperature", "hard": 0}
TRAINING = {"epochs": 1}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"gates": {"all": {"accuracy": {"drop": 0.1}}}},
            "gates.all.accuracy: is no measure .*; take cosine",
        ),
        ({"gates": {"models": {"int8": {"nll": {"rise": 0.1}}}}}, "gates.models.int8.nll: is no measure"),
        (
            {"models__a": {"op": "finetune", "loss": SOFT, "training": TRAINING}},
            "a.loss.kind: temperature needs",
        ),
        (
            {"models__a": {"op": "finetune", "loss": {"kind": "outputs", "hard": 0.5}, "training": TRAINING}},
            "a.loss.hard: is the share of labels",
        ),
        (
            {
                "models__a": {
                    "op": "quantize",
                    "scheme": {"kind": "integer", "bits": 4},
                    "train": {"kind": "ste", "loss": SOFT, "training": TRAINING},
                }
            },
            "a.train.loss.kind: temperature needs logits of classes",
        ),
        (
            {"models__a": {"op": "prune", "criterion": {"kind": "taylor"}, "budget": {"sparsity": 0.5}}},
            "a.criterion.kind: taylor needs labels, .*; take fisher",
        ),
        ({"teacher__expect": {"accuracy": 0.5, "within": 0.1}}, "teacher.expect.accuracy: is of labels"),
        ({"teacher__weights": None, "teacher__training": TRAINING}, "a teacher is trained on labels"),
    ],
)
def test_what_needs_labels_is_told_at_once_where_there_are_none(
    change: dict[str, Any], sentence: str, workshop: Path
) -> None:
    if "models__a" in change:
        change["models__a"] |= {"from": "teacher"}
    changed(**change)
    with pytest.raises(DecantError, match=sentence):
        validate()


def test_gates_on_outputs_are_refused_where_there_are_labels(workshop: Path) -> None:
    changed(data__labels="kind", gates={"all": {"cosine": {"drop": 0.1}}})
    with pytest.raises(
        DecantError, match=r"gates\.all\.cosine: is no measure of models whose data have labels"
    ):
        validate()


def test_what_its_owner_measured_has_to_come_out(workshop: Path) -> None:
    prepare()
    rows = arrays(5, 9)
    right = {**rows, "output": network()(**rows).detach()}
    safetensors.torch.save_file(right, "networks/right.safetensors")
    changed(teacher__expect={"outputs": "networks/right.safetensors", "within": 1e-5})
    teach()
    safetensors.torch.save_file(right | {"output": right["output"] + 0.01}, "networks/right.safetensors")
    with pytest.raises(DecantError, match=r"outputs differ from networks/right.safetensors by up to 0.01"):
        teach()


def test_only_code_that_git_tracks_is_run(workshop: Path) -> None:
    prepare()
    Path("networks/other.py").write_text("raise SystemExit('it was run')\ndef reader(width): ...\n")
    changed(teacher__architecture__file="networks/other.py")
    sentence = r"Git does not track networks/other.py, and no other code is run: `git add networks/other.py`"
    for stage in (validate, teach):
        with pytest.raises(DecantError, match=sentence):
            stage()
    git("add", "networks/other.py")
    validate()  # which reads it and does not run it
    with pytest.raises(DecantError, match="SystemExit: it was run"):
        teach()


def test_a_model_is_not_read_with_other_code(workshop: Path) -> None:
    prepare()
    teach()
    Path("networks/reader.py").write_text(CODE.replace("relu()", "tanh()"))
    networks.trusted.cache_clear()
    with pytest.raises(DecantError, match=r"saved with other code: reader of networks/reader.py had the sum"):
        load_model("teacher")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"teacher__architecture__build": "raeder"}, "has no function raeder; it has Reader, reader"),
        ({"teacher__architecture__with": {}}, r"line 18: reader needs width; name it under `with`"),
        ({"teacher__architecture__with": {"width": 6, "deep": 1}}, "reader takes no deep; it takes"),
        ({"teacher__architecture__file": "networks/none.py"}, "there is no file networks/none.py"),
        ({"teacher__architecture__file": "networks/raeder.py"}, "did you mean networks/reader.py?"),
        ({"teacher__weights": "networks/none.pth"}, "teacher.weights: there is no file networks/none.pth"),
        ({"teacher__weights": "/etc/passwd"}, "teacher.weights: must lie in networks/"),
        ({"teacher__weights": None}, "needs training, or weights"),
        ({"data__train": "data/raw/x.npz"}, "data: data/raw/x.npz must lie in data/arrays/"),
        ({"data__test": None}, "needs train, a file, and test"),
        ({"data__source": "digits"}, "train, test, inputs belongs to the source arrays"),
        ({"teacher__inputs__ids__dtype": "int63"}, "teacher.inputs.ids.dtype"),
    ],
)
def test_what_a_recipe_says_wrongly_of_ones_own_is_told_at_once(
    change: dict[str, Any], sentence: str, workshop: Path
) -> None:
    changed(**change)
    with pytest.raises(DecantError, match=sentence):
        validate()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ids": torch.zeros(3, 8, dtype=torch.int64)}, "ids has 3, mask has 30"),
        ({"mask": torch.full((30, 8), torch.nan)}, "mask holds NaN, as in row 0"),
        ({"mask": torch.zeros(30, 7)}, "data: test has"),
    ],
)
def test_arrays_that_are_no_examples_are_refused(
    change: dict[str, Tensor], sentence: str, workshop: Path
) -> None:
    safetensors.torch.save_file(arrays(30, 1) | change, "data/arrays/test.safetensors")
    with pytest.raises(DecantError, match=sentence):
        prepare()


def test_objects_of_python_are_no_arrays(workshop: Path) -> None:
    np.savez("data/arrays/train.npz", ids=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DecantError, match="does not hold tensors"):
        prepare()


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.bool, torch.float16, torch.bfloat16, torch.float64, torch.int32]
)
def test_rows_of_every_type_come_back_as_they_were(dtype: torch.dtype, workshop: Path) -> None:
    first = {"one": torch.arange(30).to(dtype), "many": torch.arange(180).reshape(30, 2, 3).to(dtype)}
    safetensors.torch.save_file(first, "data/arrays/all.safetensors")
    file = "data/arrays/all.safetensors"
    changed(
        data={"source": "arrays", "train": file, "validation": 5, "test": file, "inputs": ["one", "many"]}
    )
    prepare()
    read = splits.read(splits.TEST).images
    assert isinstance(read, Rows)
    for name, tensor in first.items():
        assert read.tensors[name].dtype == dtype and torch.equal(read.tensors[name], tensor)


def test_the_sums_of_files_of_ones_own_change_with_them(workshop: Path) -> None:
    validate()
    before = {name: Path(f"data/files/{name}").read_text() for name in ("prepare", "teacher")}
    assert [text.count("\n") for text in before.values()] == [3, 3]  # a line of words, and two files each
    Path("networks/reader.py").write_text(CODE + "# another word\n")
    validate()
    assert Path("data/files/teacher").read_text() != before["teacher"]
    assert Path("data/files/prepare").read_text() == before["prepare"]
    assert read_section("data", PrepareParams).files == (
        "data/arrays/train.npz",
        "data/arrays/test.safetensors",
    )
